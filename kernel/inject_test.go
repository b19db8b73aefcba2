package kernel

import (
	"testing"

	"github.com/faultgraft/faultgraft/test/vm"
	"golang.org/x/sys/unix"
)

// Each backend that the kernel has for a system call fails it in the cgroup only.
func TestSyscallBackends(t *testing.T) {
	in, _ := newInjector(t)
	for _, backend := range []string{FmodRet, Override, LSM} {
		t.Run(backend, func(t *testing.T) {
			if backend != LSM {
				vm.NeedFault(t)
			}
			c := testCgroup(t, "/backend")
			r := rule(HookSyscall, "mount", unix.ENOMEM)
			r.Kernel.Backend = backend
			a := arm(t, in, Fault{ID: backend, Rule: r, Cgroup: c})
			want(t, c, "mount", unix.ENOMEM)
			want(t, outside, "mount", 0)
			want(t, c, "umount", unix.ENOENT)
			if got := counters(t, a); got.Injected != 1 || got.Matched != 1 || got.Evaluated != 1 {
				t.Errorf("counted %+v", got)
			}
			if err := a.Disarm(); err != nil {
				t.Fatal(err)
			}
			want(t, c, "mount", 0)
			if got := counters(t, a); got.Injected != 1 {
				t.Errorf("after the end: %+v", got)
			}
		})
	}
}
