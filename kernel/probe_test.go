package kernel

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// capable is a kernel with all that there is; the tests take things away. The
// errors of its loads are those of the kernels named in the tests.
func capable() *host {
	h := &host{
		config: config{}, symbols: targetNames(), btf: true, kprobeEvents: true, privileged: true,
		lsms: []string{"capability", "bpf"}, load: func(*ebpf.ProgramSpec) error { return nil },
	}
	for _, n := range []string{
		"KPROBES", "KPROBE_EVENTS", "FUNCTION_ERROR_INJECTION", "BPF_KPROBE_OVERRIDE", "FAILSLAB", "FAIL_PAGE_ALLOC",
		"BPF_LSM", "DEBUG_INFO_BTF", "BPF_JIT", "DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
	} {
		h.config["CONFIG_"+n] = "y"
	}
	return h
}

func refused(errno unix.Errno, log ...string) error {
	return fmt.Errorf("load program: %w", &ebpf.VerifierError{Cause: errno, Log: append(log, "processed 2 insns (limit 1000000)")})
}

// debian has the settings and the refusals of Debian's 6.12.
func debian() *host {
	h := capable()
	for _, n := range []string{"FUNCTION_ERROR_INJECTION", "BPF_KPROBE_OVERRIDE", "FAILSLAB", "FAIL_PAGE_ALLOC"} {
		delete(h.config, "CONFIG_"+n)
	}
	delete(h.symbols, "should_failslab")
	delete(h.symbols, "should_fail_alloc_page")
	h.load = func(s *ebpf.ProgramSpec) error {
		switch {
		case s.Type == ebpf.Kprobe:
			return refused(unix.EINVAL, "1: (85) call bpf_override_return#58", "program of this type cannot use helper bpf_override_return#58")
		case s.AttachTo == "should_fail_bio":
			return fmt.Errorf("attach Tracing/ModifyReturn: %w", ebpf.ErrNotSupported)
		case s.AttachType == ebpf.AttachModifyReturn && !strings.HasPrefix(s.AttachTo, "security_"):
			return refused(unix.EINVAL, s.AttachTo+"() is not modifiable")
		}
		return nil
	}
	return h
}

func find(t *testing.T, h *host, hook, backend string) Backend {
	t.Helper()
	all := backends(h)
	i := slices.IndexFunc(all, func(b Backend) bool { return b.Hook == hook && b.Name == backend })
	if i < 0 {
		t.Fatalf("no %s at %s", backend, hook)
	}
	return all[i]
}

func TestCapableKernel(t *testing.T) {
	for _, b := range backends(capable()) {
		possible := b.Target != ""
		if b.OK != possible {
			t.Errorf("%s at %s: OK is %t: %s", b.Name, b.Hook, b.OK, b.Reason)
		}
	}
}

func TestReasons(t *testing.T) {
	for name, c := range map[string]struct {
		host          func() *host
		hook, backend string
		want          []string // parts of the reason; none: the backend is OK
		without       string
	}{
		"stock, slab":        {debian, HookSlab, FmodRet, []string{"no function should_failslab", "since Linux 6.11", "missing CONFIG_FUNCTION_ERROR_INJECTION, CONFIG_FAILSLAB"}, ""},
		"stock, page":        {debian, HookPage, Override, []string{"CONFIG_BPF_KPROBE_OVERRIDE, CONFIG_FAIL_PAGE_ALLOC"}, ""},
		"stock, bio":         {debian, HookBio, FmodRet, []string{"type information", "missing CONFIG_FUNCTION_ERROR_INJECTION"}, "not supported:"},
		"stock, override":    {debian, HookBio, Override, []string{"cannot use helper bpf_override_return#58 (EINVAL)", "missing CONFIG_FUNCTION_ERROR_INJECTION, CONFIG_BPF_KPROBE_OVERRIDE"}, "processed"},
		"stock, syscall":     {debian, HookSyscall, FmodRet, []string{syscallPrefix + "mount() is not modifiable (EINVAL)"}, "processed"},
		"stock, lsm":         {debian, HookLSM, LSM, nil, ""},
		"stock, security_*":  {debian, HookLSM, FmodRet, nil, ""},
		"not an LSM hook":    {capable, HookSlab, LSM, []string{"not possible"}, ""},
		"not injectable":     {capable, HookLSM, Override, []string{"not possible"}, ""},
		"bpf not active":     {func() *host { h := capable(); h.lsms = []string{"capability", "apparmor"}; return h }, HookLSM, LSM, []string{"not an active security module", "capability,apparmor", "lsm="}, ""},
		"bpf's name in part": {func() *host { h := capable(); h.lsms = []string{"bpfx"}; return h }, HookLSM, LSM, []string{"not an active"}, ""},
		"modules unknown":    {func() *host { h := capable(); h.lsmErr = unix.ENOSYS; return h }, HookLSM, LSM, []string{"cannot tell", "mount securityfs"}, ""},
		"no BTF": {func() *host { h := capable(); h.btf = false; delete(h.config, "CONFIG_DEBUG_INFO_BTF"); return h },
			HookLSM, LSM, []string{"missing CONFIG_DEBUG_INFO_BTF"}, ""},
		"no kprobe events": {func() *host {
			h := capable()
			h.kprobeEvents = false
			delete(h.config, "CONFIG_KPROBE_EVENTS")
			return h
		},
			HookBio, Override, []string{"no kprobe events; missing CONFIG_KPROBE_EVENTS"}, ""},
		"cannot be attached": {func() *host { h := capable(); delete(h.config, "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"); return h },
			HookBio, FmodRet, []string{"missing CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"}, ""},
		"not on the list": {func() *host { h := capable(); h.injectable = map[string]errorKind{"open_ctree": kindErrno}; return h },
			HookBio, Override, []string{"should_fail_bio is not on the list"}, ""},
		"on the list": {func() *host {
			h := capable()
			h.injectable = map[string]errorKind{"should_fail_bio": kindErrno}
			return h
		}, HookBio, Override, nil, ""},
		"symbols unknown": {func() *host { h := capable(); h.symbols = nil; return h }, HookSlab, FmodRet, nil, ""},
		"no configuration": {func() *host { h := debian(); h.config, h.configErr = nil, errors.New("no file"); return h },
			HookBio, Override, []string{"needs CONFIG_KPROBES", "was not found: no file"}, "missing"},
		"no capability": {func() *host {
			h := capable()
			h.privileged, h.load = false, func(*ebpf.ProgramSpec) error {
				return fmt.Errorf("load program: %w (MEMLOCK may be too low)", unix.EPERM)
			}
			return h
		}, HookBio, FmodRet, []string{"CAP_BPF and CAP_PERFMON"}, "MEMLOCK"},
		"refused with capabilities": {func() *host {
			h := capable()
			h.load = func(*ebpf.ProgramSpec) error { return unix.EPERM }
			return h
		}, HookBio, FmodRet, []string{"EPERM although the capabilities are there"}, "missing"},
	} {
		t.Run(name, func(t *testing.T) {
			b := find(t, c.host(), c.hook, c.backend)
			if b.OK != (c.want == nil) || b.OK != (b.Reason == "") {
				t.Errorf("OK is %t: %q", b.OK, b.Reason)
			}
			for _, w := range c.want {
				if !strings.Contains(b.Reason, w) {
					t.Errorf("the reason does not say %q: %q", w, b.Reason)
				}
			}
			if c.without != "" && strings.Contains(b.Reason, c.without) {
				t.Errorf("the reason says %q: %q", c.without, b.Reason)
			}
		})
	}
}

// A function that the compiler left out of BTF is no reason while another works.
func TestAnyFunctionWillDo(t *testing.T) {
	h := capable()
	h.load = func(s *ebpf.ProgramSpec) error {
		if s.AttachTo == "should_fail_bio" {
			return ebpf.ErrNotSupported
		}
		return nil
	}
	if b := find(t, h, HookFunction, FmodRet); !b.OK || b.Target != "should_failslab" {
		t.Errorf("got %+v", b)
	}
}
