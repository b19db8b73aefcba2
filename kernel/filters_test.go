package kernel

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/test/vm"
	"golang.org/x/sys/unix"
)

// A predicate means the same whichever backend fails the system call.
func TestWhere(t *testing.T) {
	in, _ := newInjector(t)
	for _, backend := range []string{FmodRet, Override, LSM} {
		t.Run(backend, func(t *testing.T) {
			if backend != LSM {
				vm.NeedFault(t)
			}
			c := testCgroup(t, "/where")
			r := rule(HookSyscall, "mkdirat", unix.EDQUOT)
			r.Kernel.Backend, r.Kernel.Where = backend, `pathname == "/tmp/made" && mode & 0o700`
			a := arm(t, in, Fault{ID: backend, Rule: r, Cgroup: c})
			want(t, c, "mkdir", unix.EDQUOT)
			want(t, outside, "mkdir", 0)
			if err := a.Disarm(); err != nil {
				t.Fatal(err)
			}
			r.Kernel.Where = `pathname == "/tmp/other"`
			a = arm(t, in, Fault{ID: backend, Rule: r, Cgroup: c})
			want(t, c, "mkdir", 0)
			if got := counters(t, a); got.Evaluated != 1 || got.Matched != 0 {
				t.Errorf("counted %+v", got)
			}
			if err := a.Disarm(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Callers: by name, beginning of a name, user and process id.
func TestCaller(t *testing.T) {
	in, _ := newInjector(t)
	c := testCgroup(t, "/caller")
	one := []policy.Range{{From: 1, To: 1}}
	for name, x := range map[string]struct {
		caller policy.Caller
		hit    bool
	}{
		"name":         {policy.Caller{Comm: []string{"exe"}}, true},
		"beginning":    {policy.Caller{Comm: []string{"other", "ex*"}}, true},
		"longer name":  {policy.Caller{Comm: []string{"exec"}}, false},
		"shorter name": {policy.Caller{Comm: []string{"ex"}}, false},
		"user":         {policy.Caller{UID: []policy.Range{{From: 0, To: 0}}}, true},
		"other user":   {policy.Caller{UID: one}, false},
		"pid":          {policy.Caller{PID: one}, true},
		"other pid":    {policy.Caller{PID: []policy.Range{{From: 2, To: 1 << 22}}}, false},
		"all of them":  {policy.Caller{Comm: []string{"e*"}, UID: []policy.Range{{From: 0, To: 5}}, PID: one}, true},
	} {
		r := rule(HookSyscall, "mount", unix.ENOMEM)
		r.Kernel.Backend, r.Kernel.Caller = mountBackend(), x.caller
		a := arm(t, in, Fault{ID: name, Rule: r, Cgroup: c})
		cmd := command(t, c, "mount")
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID // it is process 1 there
		_ = cmd.Run()                                  // its status is what counts
		if got := cmd.ProcessState.ExitCode(); (got == int(unix.ENOMEM)) != x.hit || got != 0 && !x.hit {
			t.Errorf("%s: status %d", name, got)
		}
		if err := a.Disarm(); err != nil {
			t.Fatal(err)
		}
	}
}

// K8 in its simplest form; package chain has the rest.
func TestWithin(t *testing.T) {
	vm.NeedFault(t)
	in, events := newInjector(t)
	c := testCgroup(t, "/within")
	r := rule(HookSlab, "", unix.ENOMEM)
	r.Kernel.Within = []policy.Frame{{Function: "path_mount"}}
	r.Kernel.Stack = true
	a := arm(t, in, Fault{ID: "slab", Rule: r, Cgroup: c})
	want(t, c, "mount", unix.ENOMEM)
	want(t, c, "mkdir", 0)
	want(t, outside, "mount", 0)
	got := counters(t, a)
	if got.Injected == 0 || got.Evaluated <= got.Matched {
		t.Errorf("counted %+v", got)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	for _, e := range events.all() {
		if !strings.Contains(strings.Join(e.Stack, " "), "path_mount") {
			t.Errorf("stack %v", e.Stack)
		}
	}
}

// What is wrong with a rule is said without a load, also outside of the machine.
func TestCheckRefuses(t *testing.T) {
	if _, err := os.Stat(vmlinuxBTF); err != nil {
		t.Skip("the kernel has no type information here")
	}
	for name, c := range map[string]struct {
		rule policy.Rule
		want string
	}{
		"slab":     {rule(HookSlab, "", unix.EIO), "ENOMEM whatever the hook says"},
		"bio":      {rule(HookBio, "", unix.ENOMEM), "EIO whatever the hook says"},
		"restart":  {rule(HookSyscall, "mount", 512), "the kernel's own"},
		"success":  {rule(HookSyscall, "mount", 0), "not between 1 and 4094"},
		"too big":  {rule(HookSyscall, "mount", 4095), "not between 1 and 4094"},
		"no call":  {rule(HookSyscall, "frobnicate", unix.EIO), syscallPrefix + "frobnicate"},
		"no hook":  {rule(HookLSM, "frobnicate", unix.EIO), "bpf_lsm_frobnicate"},
		"no kind":  {rule("page-fault", "", unix.EIO), "no such hook point"},
		"backend":  {rule(HookSlab, "", unix.ENOMEM, func(r *policy.Rule) { r.Kernel.Backend = LSM }), "backend=lsm cannot fail it"},
		"caller":   {rule(HookSyscall, "mount", unix.EIO, func(r *policy.Rule) { r.Kernel.Caller.Exe = []string{"/bin/x"} }), "use comm"},
		"pattern":  {rule(HookSyscall, "mount", unix.EIO, func(r *policy.Rule) { r.Kernel.Caller.Comm = []string{"a?b"} }), "cannot be decided inside the kernel"},
		"no fault": {policy.Rule{Name: "x"}, "no kernel fault"},
	} {
		_, err := Check(c.rule)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if c.rule.Kernel != nil && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v is not ErrUnsupported", name, err)
		}
	}
}

// An error in a predicate has its place in the rule's text.
func TestPredicateErrorHasItsPlace(t *testing.T) {
	if _, err := os.Stat(vmlinuxBTF); err != nil {
		t.Skip("the kernel has no type information here")
	}
	r, err := policy.ParseRule("x", `kernel hook=syscall:mount(flags == nosuch) error=EIO ttl=1m`, policy.Defaults{MaxTTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	spec, err := kernelTypes()
	if err != nil {
		t.Fatal(err)
	}
	all, err := ways(r.Kernel, readSettings(), spec)
	if err != nil {
		t.Fatal(err)
	}
	_, err = newFilters(spec, r, all[0])
	var wrong *policy.SyntaxError
	if !errors.As(err, &wrong) || wrong.Column != strings.Index(r.Text, "nosuch")+1 || !strings.Contains(wrong.Message, "nosuch") {
		t.Errorf("%v", err)
	}
}
