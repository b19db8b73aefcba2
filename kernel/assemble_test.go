package kernel

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf/asm"
)

// The library's own FetchAdd loses the flag that makes it fetch; the kernel
// takes it for an addition then, and every operation would be the first.
func TestFetchAdd(t *testing.T) {
	var b bytes.Buffer
	if _, err := fetchAdd(asm.R9, asm.R8, 8).Marshal(&b, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	// opcode BPF_STX|BPF_ATOMIC|BPF_DW, registers, offset, BPF_ADD|BPF_FETCH
	if want := []byte{0xdb, 0x89, 8, 0, 1, 0, 0, 0}; !bytes.Equal(b.Bytes(), want) {
		t.Errorf("% x, want % x", b.Bytes(), want)
	}
}
