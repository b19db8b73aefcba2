package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/test/vm"
	"golang.org/x/sys/unix"
)

// mountBackend is one that every kernel of the tests has.
func mountBackend() string {
	if vm.Kernel() == vm.Fault {
		return FmodRet
	}
	return LSM
}

// K4: every child of a process in the cgroup sees the fault, nobody else does.
func TestAllForksFail(t *testing.T) {
	in, events := newInjector(t)
	c, other := testCgroup(t, "/forks"), testCgroup(t, "/forks-other")
	r := rule(HookSyscall, "mount", unix.ENOMEM)
	r.Kernel.Backend = mountBackend()
	a := arm(t, in, Fault{ID: "forks", Rule: r, Cgroup: c})
	const forks = 200 // TestForks of test/kernel has 1,000
	if odd, _ := act(t, c, "forks 200"); odd != 0 {
		t.Errorf("%d of %d forks did not fail", odd, forks)
	}
	want(t, outside, "mount", 0)
	want(t, other, "mount", 0)
	if got := counters(t, a); got.Injected != forks || got.Matched != forks || got.Evaluated != forks {
		t.Errorf("counted %+v, want %d", got, forks)
	}
	if err := in.Close(); err != nil { // all events have come then
		t.Fatal(err)
	}
	all := events.all()
	if len(all) != forks {
		t.Fatalf("%d events", len(all))
	}
	for i, e := range all {
		if e.Seq != uint64(i+1) || e.Fault != "forks" || e.Rule != "test" || e.Hook != "syscall:mount" || e.Error != "ENOMEM" ||
			e.Cgroup != c.ID || e.PID <= 0 || e.TID <= 0 || e.Comm == "" || time.Since(e.Time).Abs() > time.Hour {
			t.Fatalf("event %d: %+v", i, e)
		}
	}
}

// K5: cgroups below are in; a cgroup that is made again is another one.
func TestNestedCgroups(t *testing.T) {
	in, _ := newInjector(t)
	c := testCgroup(t, "/nest")
	below := testCgroup(t, "/nest/a")
	deep := testCgroup(t, "/nest/a/b")
	beside := testCgroup(t, "/nest-2")
	r := rule(HookSyscall, "mount", unix.ENOMEM)
	r.Kernel.Backend = mountBackend()
	a := arm(t, in, Fault{ID: "upper", Rule: r, Cgroup: below})
	for _, inside := range []Cgroup{below, deep} {
		want(t, inside, "mount", unix.ENOMEM)
	}
	for _, out := range []Cgroup{c, beside, outside} {
		want(t, out, "mount", 0)
	}
	// A second fault of the same shape above the first counts on its own.
	b := arm(t, in, Fault{ID: "top", Rule: r, Cgroup: c})
	want(t, c, "mount", unix.ENOMEM)
	if err := a.Disarm(); err != nil {
		t.Fatal(err)
	}
	want(t, deep, "mount", unix.ENOMEM)
	if got := counters(t, b); got.Injected != 2 {
		t.Errorf("the fault above injected %d times", got.Injected)
	}
	if _, err := in.Arm(t.Context(), Fault{ID: "root", Rule: r, Cgroup: Cgroup{ID: 1, Path: "/"}}); err == nil {
		t.Error("the root was armed")
	}
}

func TestCgroupMadeAgain(t *testing.T) {
	in, _ := newInjector(t)
	r := rule(HookSyscall, "mount", unix.ENOMEM)
	r.Kernel.Backend = mountBackend()
	first := testCgroup(t, "/again")
	a := arm(t, in, Fault{ID: "first", Rule: r, Cgroup: first})
	if err := os.Remove(first.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(first.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	second, err := CgroupAt("/again")
	if err != nil || second.ID == first.ID {
		t.Fatalf("%+v, then %+v, %v", first, second, err)
	}
	want(t, second, "mount", 0)
	if _, err := in.Arm(t.Context(), Fault{ID: "stale", Rule: r, Cgroup: first}); err == nil || !strings.Contains(err.Error(), "made again") {
		t.Errorf("a cgroup that is gone: %v", err)
	}
	arm(t, in, Fault{ID: "second", Rule: r, Cgroup: second})
	want(t, second, "mount", unix.ENOMEM)
	if err := a.Disarm(); err != nil { // of a cgroup that is gone
		t.Fatal(err)
	}
	want(t, second, "mount", unix.ENOMEM)
}

// K6: two cgroups with one rule count on their own, and so do two hook points.
func TestFaultsAreApart(t *testing.T) {
	in, _ := newInjector(t)
	one, two := testCgroup(t, "/one"), testCgroup(t, "/two")
	r := rule(HookSyscall, "socket", unix.ENOMEM)
	r.Kernel.Backend = mountBackend()
	r.Trigger.Times = 2
	a := arm(t, in, Fault{ID: "one", Rule: r, Cgroup: one})
	r.Trigger.Times, r.Trigger.After = 0, 3
	b := arm(t, in, Fault{ID: "two", Rule: r, Cgroup: two})
	u := rule(HookLSM, "sb_mount", unix.EMFILE)
	s := arm(t, in, Fault{ID: "mount", Rule: u, Cgroup: one})
	if len(in.instances) != 2 {
		t.Errorf("%d programs for two shapes", len(in.instances))
	}
	if _, got := act(t, one, "pattern 5"); got != "xx..." {
		t.Errorf("one: %s", got)
	}
	if _, got := act(t, two, "pattern 5"); got != "...xx" {
		t.Errorf("two: %s", got)
	}
	want(t, one, "mount", unix.EMFILE)
	want(t, two, "mount", 0)
	for name, c := range map[string]struct {
		a    *Armed
		want Counters
	}{
		"one": {a, Counters{Evaluated: 5, Matched: 5, Injected: 2}}, "two": {b, Counters{Evaluated: 5, Matched: 5, Injected: 2}},
	} {
		if got := counters(t, c.a); got != c.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := counters(t, s); got.Injected != 1 {
		t.Errorf("mount: %+v", got)
	}
}

// The cgroup of a process, on the machine and in a cgroup namespace of its own.
func TestCgroupOfProcess(t *testing.T) {
	vm.Need(t)
	c := testCgroup(t, "/of")
	deep := testCgroup(t, "/of/deep")
	cmd := command(t, deep, "pause")
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWCGROUP
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	got, err := CgroupOf(cmd.Process.Pid)
	if err != nil || got != deep || got.Level != 2 || filepath.Dir(got.Path) != c.Path {
		t.Errorf("%+v, %v; want %+v", got, err, deep)
	}
}
