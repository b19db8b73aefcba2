package kernel

import (
	"slices"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/test/vm"
	"golang.org/x/sys/unix"
)

// Block requests: those of the cgroup's own threads, and those that the kernel's
// threads submit for what the cgroup wrote. Not those of others.
func TestBio(t *testing.T) {
	vm.NeedFault(t)
	in, events := newInjector(t)
	c := testCgroup(t, "/bio")
	for _, backend := range []string{FmodRet, Override} {
		r := rule(HookBio, "", unix.EIO)
		r.Kernel.Backend = backend
		a := arm(t, in, Fault{ID: "direct " + backend, Rule: r, Cgroup: c})
		vm.Disk(t)
		want(t, c, "direct", unix.EIO)
		want(t, outside, "direct", 0)
		if err := a.Disarm(); err != nil {
			t.Fatal(err)
		}
		want(t, c, "direct", 0)
	}

	dir := mountDisk(t)
	want(t, outside, "write 1 "+dir+"/others", 0) // so that nothing must be read for the next
	unix.Sync()
	r := rule(HookBio, "", unix.EIO)
	r.Kernel.Where = "bio->bi_opf & 1" // writes, see enum req_op
	a := arm(t, in, Fault{ID: "write-back", Rule: r, Cgroup: c})
	want(t, c, "write 1 "+dir+"/its", 0) // it is in memory only
	unix.Sync()                          // by this thread, which is outside
	if got := counters(t, a); got.Injected == 0 {
		t.Errorf("no request for what the cgroup wrote: %+v", got)
	}
	if err := a.Disarm(); err != nil {
		t.Fatal(err)
	}
	want(t, outside, "write 1 "+dir+"/others", 0)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(events.all(), func(e Event) bool { return e.Fault == "write-back" && e.Cgroup == c.ID && e.Comm != "exe" }) {
		t.Errorf("no request was submitted for the cgroup by another: %+v", events.all())
	}
}

// A cgroup without the io controller has no requests of its own: the rule could
// not tell them apart.
func TestBioNeedsIO(t *testing.T) {
	vm.NeedFault(t)
	in, _ := newInjector(t)
	testCgroup(t, "/no-io")
	c := testCgroup(t, "/no-io/below") // /no-io passes no controller on
	_, err := in.Arm(t.Context(), Fault{ID: "bio", Rule: rule(HookBio, "", unix.EIO), Cgroup: c})
	if err == nil || !strings.Contains(err.Error(), "cgroup.subtree_control") {
		t.Errorf("%v", err)
	}
}

func TestPage(t *testing.T) {
	vm.NeedFault(t)
	in, _ := newInjector(t)
	c := testCgroup(t, "/page")
	r := rule(HookPage, "", unix.ENOMEM)
	r.Kernel.Within = []policy.Frame{{Function: "pipe_write"}}
	for _, backend := range []string{FmodRet, Override} {
		r.Kernel.Backend = backend
		a := arm(t, in, Fault{ID: backend, Rule: r, Cgroup: c})
		want(t, c, "pipe", unix.ENOMEM)
		want(t, outside, "pipe", 0)
		if err := a.Disarm(); err != nil {
			t.Fatal(err)
		}
	}
}

// A function of the error-injection list, by its kind: an errno, and true.
func TestFunction(t *testing.T) {
	vm.NeedFault(t)
	in, _ := newInjector(t)
	names, err := Functions()
	if err != nil || !slices.Contains(names, "should_fail_bio") || !slices.IsSorted(names) {
		t.Errorf("%d functions, %v", len(names), err)
	}
	c := testCgroup(t, "/function")
	arm(t, in, Fault{ID: "errno", Rule: rule(HookFunction, syscallPrefix+"mount", unix.EBUSY), Cgroup: c})
	want(t, c, "mount", unix.EBUSY)
	r := rule(HookFunction, "should_fail_alloc_page", unix.ENOMEM)
	r.Kernel.Within = []policy.Frame{{Function: "pipe_write"}}
	arm(t, in, Fault{ID: "true", Rule: r, Cgroup: c})
	want(t, c, "pipe", unix.ENOMEM)
	want(t, outside, "pipe", 0)
	if _, err := in.Arm(t.Context(), Fault{ID: "no", Rule: rule(HookFunction, "vfs_read", unix.EIO), Cgroup: c}); err == nil || !strings.Contains(err.Error(), "not on the kernel's error-injection list") {
		t.Errorf("%v", err)
	}
}

// LSM hooks on every kernel, and the whole range of errors that is safe.
func TestLSMHook(t *testing.T) {
	in, _ := newInjector(t)
	c := testCgroup(t, "/lsm")
	for _, backend := range []string{LSM, FmodRet} {
		for _, errno := range []unix.Errno{1, 200} {
			r := rule(HookLSM, "sb_mount", errno)
			r.Kernel.Backend, r.Kernel.Where = backend, `type == "tmpfs"`
			a := arm(t, in, Fault{ID: backend + errno.Error(), Rule: r, Cgroup: c})
			want(t, c, "mount", errno)
			want(t, outside, "mount", 0)
			if err := a.Disarm(); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := rule(HookLSM, "sb_mount", maxError)
	arm(t, in, Fault{ID: "last", Rule: r, Cgroup: c})
	if got, _ := act(t, c, "mount"); got != maxError&0xff {
		t.Errorf("the last errno: status %d", got)
	}
}

// On a stock kernel a rule is refused with the settings that are missing.
func TestStockKernelRefuses(t *testing.T) {
	vm.NeedDebian(t)
	in, _ := newInjector(t)
	c := testCgroup(t, "/stock")
	for name, x := range map[string]struct {
		rule policy.Rule
		want []string
	}{
		"slab":     {rule(HookSlab, "", unix.ENOMEM), []string{"CONFIG_FUNCTION_ERROR_INJECTION", "CONFIG_BPF_KPROBE_OVERRIDE"}},
		"bio":      {rule(HookBio, "", unix.EIO), []string{"CONFIG_FUNCTION_ERROR_INJECTION"}},
		"override": {rule(HookSyscall, "mount", unix.EIO, func(r *policy.Rule) { r.Kernel.Backend = Override }), []string{"CONFIG_BPF_KPROBE_OVERRIDE"}},
		"fsync":    {rule(HookSyscall, "fsync", unix.EIO), []string{syscallPrefix + "fsync", "CONFIG_FUNCTION_ERROR_INJECTION"}},
	} {
		_, err := in.Arm(t.Context(), Fault{ID: name, Rule: x.rule, Cgroup: c})
		_, checked := Check(x.rule)
		for _, w := range x.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v; want %s", name, err, w)
			}
			if checked == nil || !strings.Contains(checked.Error(), w) {
				t.Errorf("%s: check: %v; want %s", name, checked, w)
			}
		}
	}
}
