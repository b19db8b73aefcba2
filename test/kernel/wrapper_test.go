package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/test/vm"
)

// Under the runc wrapper a container's kernel fault is in force before the first
// instruction of its program, which here does nothing but the call that fails, at
// the first start and at the next one. runc itself, which is in the cgroup by
// then, is spared.
func TestKernelFaultBeforeProgram(t *testing.T) {
	vm.NeedFault(t)
	n := startNode(t)
	t.Setenv("FAULTGRAFT_STATE", n.state) // containerd's shim hands it on
	containerd(t)
	wrapper := filepath.Join(t.TempDir(), "runc")
	if err := os.Symlink(os.Getenv("FAULTGRAFT_BIN"), wrapper); err != nil {
		t.Fatal(err)
	}
	program := []string{image, "mount", "-t", "tmpfs", "none", "/dev"}
	run := []string{"nerdctl", "run", "--net", "none", "--privileged", "--runtime", wrapper}
	if out, ok := ended(t, append(append(run, "--rm"), program...)...); !ok {
		t.Fatalf("without a fault: %s", out)
	}
	t.Cleanup(func() {
		if out, err := command(2*patience, "nerdctl", "rm", "-f", "first"); err != nil {
			t.Errorf("nerdctl rm: %v: %s", err, out)
		}
	})
	out, ok := ended(t, append(append(run, "--name", "first", "--label", "oom.faultgraft.io="+mountRule), program...)...)
	if ok || !strings.Contains(out, noMemory) {
		t.Errorf("worked: %v, %q; want %q", ok, out, noMemory)
	}
	out, ok = ended(t, "nerdctl", "start", "-a", "first")
	if ok || !strings.Contains(out, noMemory) {
		t.Errorf("started again: worked: %v, %q; want %q", ok, out, noMemory)
	}
	await(t, "no fault is listed of a container that has ended", func() bool { return len(n.ps()) == 0 })
}
