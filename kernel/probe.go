package kernel

import (
	"fmt"
	"slices"
	"strings"
)

// target is a kernel function that a backend is tried on.
type target struct {
	name string
	// config is the setting without which the kernel has no such function.
	config string
	// since says from which version on that is so, where it was not always.
	since string
}

var (
	// Up to 6.10 both functions were in every kernel.
	failslab  = target{"should_failslab", "CONFIG_FAILSLAB", " since Linux 6.11"}
	failPage  = target{"should_fail_alloc_page", "CONFIG_FAIL_PAGE_ALLOC", " since Linux 6.11"}
	failBio   = target{name: "should_fail_bio", config: "CONFIG_BLOCK"}
	sysMount  = target{name: syscallPrefix + "mount"}
	fileOpen  = target{name: "security_file_open", config: "CONFIG_SECURITY"}
	lsmOpen   = target{name: "bpf_lsm_file_open", config: "CONFIG_BPF_LSM"}
	nowhere   = target{}
	injection = []string{"CONFIG_KPROBES", "CONFIG_FUNCTION_ERROR_INJECTION"}
)

// probe is one backend at one hook point. It holds if check returns no reason
// for one of the targets.
type probe struct {
	hook, backend string
	targets       []target
	check         func(*host, target) (reason string)
}

var probes = []probe{
	{HookSlab, FmodRet, []target{failslab}, modifyReturn},
	{HookSlab, Override, []target{failslab}, overrideReturn},
	{HookSlab, LSM, []target{nowhere}, onlyLSM},

	{HookPage, FmodRet, []target{failPage}, modifyReturn},
	{HookPage, Override, []target{failPage}, overrideReturn},
	{HookPage, LSM, []target{nowhere}, onlyLSM},

	{HookBio, FmodRet, []target{failBio}, modifyReturn},
	{HookBio, Override, []target{failBio}, overrideReturn},
	{HookBio, LSM, []target{nowhere}, onlyLSM},

	// Any of the three will do: a compiler may leave one of them out of BTF.
	{HookFunction, FmodRet, []target{failBio, failslab, failPage}, modifyReturn},
	{HookFunction, Override, []target{failBio, failslab, failPage}, overrideReturn},
	{HookFunction, LSM, []target{nowhere}, onlyLSM},

	{HookSyscall, FmodRet, []target{sysMount}, modifyReturn},
	{HookSyscall, Override, []target{sysMount}, overrideReturn},
	{HookSyscall, LSM, []target{nowhere}, onlyLSM},

	{HookLSM, FmodRet, []target{fileOpen}, modifyReturn},
	{HookLSM, Override, []target{nowhere}, notInjectable},
	{HookLSM, LSM, []target{lsmOpen}, securityModule},
}

func (p probe) run(h *host) Backend {
	b := Backend{Hook: p.hook, Name: p.backend, Target: p.targets[0].name}
	for i, t := range p.targets {
		reason := p.check(h, t)
		if reason == "" {
			b.OK, b.Target, b.Reason = true, t.name, ""
			return b
		}
		if i == 0 {
			b.Reason = reason
		}
	}
	return b
}

func onlyLSM(*host, target) string {
	return "not possible: security modules only decide at LSM hooks"
}

func notInjectable(*host, target) string {
	return "not possible: LSM hooks are not on the kernel's error-injection list"
}

// overrideReturn tries a kprobe with bpf_override_return. Whether the function
// is on the error-injection list is only checked by the kernel when a program is
// attached (kernel/trace/bpf_trace.c, perf_event_attach_bpf_prog), so it is
// looked up where debugfs is mounted. Otherwise its being there is enough: all
// our targets are marked ALLOW_ERROR_INJECTION.
func overrideReturn(h *host, t target) string {
	needs := append(slices.Clone(injection), "CONFIG_KPROBE_EVENTS", "CONFIG_BPF_KPROBE_OVERRIDE")
	gone := h.absent(t)
	if gone != "" && t.config != "" {
		needs = append(needs, t.config)
	}
	if err := h.load(overrideProgram()); err != nil {
		return h.because("bpf_override_return: "+h.cut(err), err, needs)
	}
	if !h.kprobeEvents {
		return h.because("the kernel has no kprobe events", nil, needs)
	}
	if gone != "" {
		return h.because(gone, nil, needs)
	}
	if h.injectable != nil && h.injectable[t.name] == "" {
		return t.name + " is not on the list " + injectionList
	}
	return ""
}

// modifyReturn tries a BPF_MODIFY_RETURN program. The kernel checks at the load
// whether the function may be modified (kernel/bpf/verifier.c,
// check_attach_modify_return).
func modifyReturn(h *host, t target) string {
	needs := []string{"CONFIG_DEBUG_INFO_BTF"}
	if !strings.HasPrefix(t.name, "security_") {
		needs = append(needs, injection...)
	}
	if gone := h.absent(t); gone != "" {
		if t.config != "" {
			needs = append(needs, t.config)
		}
		return h.because(gone, nil, needs)
	}
	if !h.btf {
		return h.because("the kernel has no type information ("+vmlinuxBTF+")", nil, needs)
	}
	if err := h.load(modifyReturnProgram(t.name)); err != nil {
		return h.because("load for "+t.name+": "+h.cut(err), err, needs)
	}
	return h.trampoline()
}

// securityModule tries an LSM program. It can be loaded and attached where the
// module is not active, but then the kernel never calls it.
func securityModule(h *host, t target) string {
	needs := []string{"CONFIG_DEBUG_INFO_BTF", "CONFIG_BPF_LSM"}
	if gone := h.absent(t); gone != "" {
		return h.because(gone, nil, needs)
	}
	if !h.btf {
		return h.because("the kernel has no type information ("+vmlinuxBTF+")", nil, needs)
	}
	hook := strings.TrimPrefix(t.name, "bpf_lsm_")
	if err := h.load(lsmProgram(hook)); err != nil {
		return h.because("load for "+hook+": "+h.cut(err), err, needs)
	}
	switch {
	case h.lsmErr != nil:
		return fmt.Sprintf("cannot tell whether the bpf module is active: %v; mount securityfs on %s", h.lsmErr, securityfs)
	case !slices.Contains(h.lsms, "bpf"):
		return fmt.Sprintf("bpf is not an active security module (active: %s): add it to lsm= on the kernel's command line", strings.Join(h.lsms, ","))
	}
	return h.trampoline()
}

// trampoline says what a loaded tracing or LSM program cannot be attached
// without: attaching is the only other way to know, and it changes kernel text.
func (h *host) trampoline() string {
	if h.config == nil {
		return ""
	}
	needs := []string{"CONFIG_BPF_JIT", "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"}
	if len(h.config.missing(needs)) == 0 {
		return ""
	}
	return h.because("loaded, but cannot be attached", nil, needs)
}

// absent says that the kernel has no such function. It is silent where the
// kernel's symbols could not be read: the load decides then.
func (h *host) absent(t target) string {
	switch {
	case syscallPrefix == "" && t == sysMount:
		return "names of system calls are only known for amd64 and arm64"
	case h.symbols == nil || h.symbols[t.name]:
		return ""
	case t.since != "":
		return fmt.Sprintf("no function %s (needs %s%s)", t.name, t.config, t.since)
	}
	return "no function " + t.name
}

// because adds to what was found the settings that are missing for it. A refusal
// is no sign of a missing setting, so nothing is supposed after one.
func (h *host) because(what string, err error, needs []string) string {
	if h.config == nil && denied(err) {
		return what
	}
	if h.config == nil {
		return fmt.Sprintf("%s; needs %s (the kernel's configuration was not found: %v)", what, strings.Join(needs, ", "), h.configErr)
	}
	if missing := h.config.missing(needs); len(missing) > 0 {
		return what + "; missing " + strings.Join(missing, ", ")
	}
	return what
}
