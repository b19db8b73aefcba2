package kernel

import (
	"testing"

	"github.com/faultgraft/faultgraft/test/vm"
)

// A program without libraries is grafted on Debian's kernels, whose vdso has just room for the code of a swap.
func TestGraftWithoutLibraries(t *testing.T) {
	vm.NeedDebian(t)
	s := startStoppable(t, "static")
	code := vdso(t, s.pid())
	zeros := 0
	for zeros < len(code) && code[len(code)-1-zeros] == 0 {
		zeros++
	}
	t.Logf("the vdso ends in %d bytes of zero", zeros)
	for range 2 {
		s.graft("/data")
		s.whole("EIO", "ok")
		s.recover()
		s.whole("ok", "ok")
	}
}
