//go:build !amd64 && !arm64

package chain

const (
	contextType         = "" // call chains are not known on this architecture
	contextStackPointer = ""
	returnSlot          = 0
)
