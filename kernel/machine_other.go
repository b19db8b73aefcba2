//go:build !amd64 && !arm64

package kernel

import "github.com/cilium/ebpf/asm"

const syscallRegister = ""

func preemptCount(l *layout) asm.Instructions {
	l.fail("kernel faults are only there for amd64 and arm64")
	return nil
}
