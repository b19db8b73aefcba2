package chain

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/test/vm"
)

// TestTailCall has file_remove_privs, which compilers let jump to
// file_remove_privs_flags: it is off the stack then, but its trampoline is not.
// Linux 7.2 jumps to trampolines instead of calling them: there it is off too.
func TestTailCall(t *testing.T) {
	vm.NeedFault(t)
	dir, n := t.TempDir(), 0
	write := func() error { // a file's first write asks
		n++
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(n)))
		if err != nil {
			return err
		}
		_, err = unix.Write(int(f.Fd()), []byte{1})
		return errors.Join(err, f.Close())
	}
	held := map[way]seen{}
	for _, w := range []way{{method: Stack}, {method: State}} {
		h := attachHook(t, attached(t, w, named("file_remove_privs")...), "kprobe", "security_inode_need_killpriv")
		held[w] = h.during(t, write)
	}
	if held[way{method: Stack}] != (seen{1, 0}) {
		t.Skip("this kernel has no tail call there: nothing is shown")
	}
	if got := held[way{method: State}]; got != (seen{1, 1}) {
		t.Errorf("in a function that has left by a tail call: asked and held %v, want {1 1}", got)
	}
}
