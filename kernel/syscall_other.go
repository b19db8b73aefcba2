//go:build !amd64 && !arm64

package kernel

// syscallPrefix is not known for this architecture.
const syscallPrefix = ""

var syscallNumbers map[string]int32
