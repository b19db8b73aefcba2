package kernel

import (
	"os"
	"os/exec"
	"testing"

	"github.com/faultgraft/faultgraft/test/vm"
	"golang.org/x/sys/unix"
)

// inOwnMounts starts this program, to act, in a cgroup and a mount namespace of its own.
func inOwnMounts(t *testing.T, c Cgroup, act string) *exec.Cmd {
	t.Helper()
	cmd := command(t, c, act)
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// What is in the target's cgroup and still in the mount namespace that the
// runtime comes from is spared; what is in another one is not, and neither is
// what comes from the runtime's to it, or from the target's to a new one.
func TestWhatHasNotEnteredIsSpared(t *testing.T) {
	in, _ := newInjector(t)
	c := testCgroup(t, "/entered")
	target := inOwnMounts(t, c, "pause")
	r := rule(HookSyscall, "mount", unix.ENOMEM)
	r.Kernel.Backend = mountBackend()
	a := arm(t, in, Fault{ID: "entered", Rule: r, Cgroup: c, PID: target.Process.Pid})
	want(t, c, "mount", 0)
	if got := counters(t, a); got.Evaluated != 0 {
		t.Errorf("the runtime's calls are counted: %+v", got)
	}
	for _, act := range []string{"mount", "forkedas 1 sh"} {
		cmd := inOwnMounts(t, c, act)
		_ = cmd.Wait() // its status says it
		if got := cmd.ProcessState.ExitCode(); got != int(unix.ENOMEM) {
			t.Errorf("%s in a mount namespace of its own: status %d", act, got)
		}
	}
	if err := a.Disarm(); err != nil {
		t.Fatal(err)
	}
	// A process that shares the mounts of who starts it is not to be told from that.
	sharing := command(t, c, "pause")
	if err := sharing.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sharing.Process.Kill(); _ = sharing.Wait() })
	arm(t, in, Fault{ID: "sharing", Rule: r, Cgroup: c, PID: sharing.Process.Pid})
	want(t, c, "mount", unix.ENOMEM)
}

// The runtime's mount namespace is the one that the first process of the cgroup
// was started from, wherever in the cgroup the process is that is asked for.
func TestRuntimesOf(t *testing.T) {
	vm.Need(t)
	c := testCgroup(t, "/runtimes")
	own, err := mountNamespace(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	first := inOwnMounts(t, c, "pause")
	got, err := runtimesOf(first.Process.Pid, c)
	if err != nil || got != (runtimeNamespaces{own}) {
		t.Errorf("%v, %v; want %d", got, err, own)
	}
	if got, err := runtimesOf(0, c); err != nil || got != (runtimeNamespaces{}) {
		t.Errorf("of nobody: %v, %v", got, err)
	}
	if got, err := runtimesOf(os.Getpid(), outside); err != nil || got != (runtimeNamespaces{}) {
		t.Errorf("of this process, which shares its mounts: %v, %v", got, err)
	}
	if got, err := runtimesOf(1<<22+1, c); err == nil {
		t.Errorf("of a process that is not there: %v", got)
	}
}
