package kernel

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
	"github.com/faultgraft/faultgraft/kernel/predicate"
	"github.com/faultgraft/faultgraft/policy"
	"golang.org/x/sys/unix"
)

// Resolution is how a rule would be carried out here.
type Resolution struct {
	Hook string `json:"hook"`
	// Backend is the one that is expected to be taken; which one is is only known when programs are loaded.
	Backend string `json:"backend"`
	// Functions are the kernel functions that would be failed.
	Functions []string `json:"functions"`
	// Note says in words what the backend covers where it stands for another hook point; else it is empty.
	Note string `json:"note,omitempty"`
	// Chain is how the call chain would be watched, state or stack; empty without one.
	Chain string `json:"chain,omitempty"`
}

// way is one backend on one kernel function that could carry out a rule.
type way struct {
	backend  string
	function target
	// attach is the name by which a program finds the function: the function's, or the LSM hook's.
	attach string
	// value is what the function is made to return.
	value int32
	scope scope
	guard guard
	// syscall: the parameters are those of a system call, one pointer further.
	syscall bool
	note    string
	// no is why the way is not there, known without a load.
	no string
}

func (w way) name() string { return w.backend + " on " + w.function.name }

// ErrUnsupported is in the chain of errors that say that the running kernel
// cannot carry out a rule: it makes no sense to try again.
var ErrUnsupported = errors.New("not supported by this kernel")

// errRefused is a rule that does not fit its hook point.
type errRefused struct{ hook, why string }

func (e *errRefused) Error() string { return "hook=" + e.hook + ": " + e.why }

func (e *errRefused) Is(target error) bool { return target == ErrUnsupported }

// maxError is the last errno that is safe to answer: the kernel takes -1 to
// -4095 for errors (MAX_ERRNO), but Go programs take -4095 for success.
const maxError = 4094

// ways gives what could carry out a rule, the best first.
func ways(k *policy.KernelFault, h *host, spec *btf.Spec) ([]way, error) {
	refuse := func(format string, args ...any) ([]way, error) {
		return nil, &errRefused{k.Hook.String(), fmt.Sprintf(format, args...)}
	}
	errno := int32(k.Error)
	if errno < 1 || errno > maxError {
		return refuse("error %d is not between 1 and %d", errno, maxError)
	}
	if errno >= 512 && errno <= 531 { // include/linux/errno.h, ERESTARTSYS and others
		return refuse("error %d is the kernel's own and would leak to the program", errno)
	}
	if k.Backend != "" && !slices.Contains([]string{FmodRet, Override, LSM}, k.Backend) {
		return refuse("no backend %q: there are %s, %s and %s", k.Backend, FmodRet, Override, LSM)
	}
	if err := checkCaller(k.Caller); err != nil {
		return refuse("%v", err)
	}
	var all []way
	switch k.Hook.Kind {
	case HookSlab, HookPage, HookBio:
		var err error
		if all, err = allocations(k); err != nil {
			return nil, err
		}
	case HookFunction:
		kind, why := h.errorKind(k.Hook.Name, spec)
		if why != "" {
			return refuse("%s", why)
		}
		all = functions(k, kind)
	case HookSyscall:
		_, known := standIns[k.Hook.Name]
		if _, here := syscallNumbers[k.Hook.Name]; known && !here {
			return refuse("%s has no system call %s; use %s", runtime.GOARCH, k.Hook.Name, successor(k.Hook.Name))
		}
		all = systemCall(k)
	case HookLSM:
		all = hooks(k.Hook.Name, -errno, guard{task: true, user: true, flags: -1}, "")
		all[1].note = "the kernel's own function for the hook, which asks all security modules"
	default:
		return refuse("there is no such hook point: there are slab, page, bio, function:NAME, syscall:NAME and lsm:NAME")
	}
	if k.Backend != "" {
		all = slices.DeleteFunc(all, func(w way) bool { return w.backend != k.Backend })
		if len(all) == 0 {
			return refuse("backend=%s cannot fail it", k.Backend)
		}
	}
	for i := range all {
		all[i].no = h.objection(all[i], spec)
	}
	return all, nil
}

// allocations are the ways for what has one function and one error.
func allocations(k *policy.KernelFault) ([]way, error) {
	w := way{guard: guard{task: true, user: true, flags: -1}}
	only := unix.ENOMEM
	switch k.Hook.Kind {
	case HookSlab:
		w.function, w.value, w.guard.flags = failslab, -int32(unix.ENOMEM), 1
	case HookPage:
		w.function, w.value, w.guard.flags = failPage, 1, 0
	case HookBio:
		w.function, w.value, only = failBio, -int32(unix.EIO), unix.EIO
		w.scope, w.guard.user = scopeBio, false
	}
	if unix.Errno(k.Error) != only {
		return nil, &errRefused{k.Hook.Kind, fmt.Sprintf("error=%v: the kernel answers %v whatever the hook says", k.Error, unix.ErrnoName(only))}
	}
	return injected(w), nil
}

// injected gives the two ways to fail a function on the error-injection list.
func injected(w way) []way {
	w.attach = w.function.name
	modify, override := w, w
	modify.backend, override.backend = FmodRet, Override
	return []way{modify, override}
}

func functions(k *policy.KernelFault, kind errorKind) []way {
	w := way{function: target{name: k.Hook.Name}, value: -int32(k.Error), guard: guard{task: true, user: true, flags: -1}}
	switch kind {
	case kindTrue:
		w.value, w.note = 1, "it answers true, from which its caller makes an error of its own"
	case kindNull:
		w.value, w.note = 0, "it answers NULL, from which its caller makes an error of its own"
		return injected(w)[1:] // to return 0 from fmod_ret is not to change anything
	}
	return injected(w)
}

// errorKind finds out what a function's error looks like, from the list or,
// where that cannot be read, from its type.
func (h *host) errorKind(name string, spec *btf.Spec) (errorKind, string) {
	if kind := h.injectable[name]; kind != "" {
		return kind, ""
	}
	if h.injectable != nil {
		return "", name + " is not on the kernel's error-injection list; faultgraft doctor prints it"
	}
	proto, ok := function(spec, name)
	if !ok {
		return "", "the kernel's type information has no function " + name
	}
	switch t := btf.UnderlyingType(proto.Return).(type) {
	case *btf.Int:
		if t.Encoding == btf.Bool {
			return kindTrue, ""
		}
		return kindErrno, ""
	case *btf.Pointer:
		return "", "it returns a pointer, and whether its errors are NULL is only known from " + injectionList + ": mount debugfs"
	}
	return "", "it returns nothing that could be an error"
}

func systemCall(k *policy.KernelFault) []way {
	direct := way{
		function: target{name: syscallPrefix + predicate.SyscallFunction(k.Hook.Name)}, value: -int32(k.Error), syscall: true,
		guard: guard{user: true, flags: -1},
	}
	all := injected(direct)
	stand, number := standIns[k.Hook.Name], syscallNumbers[k.Hook.Name]
	for _, hook := range stand.hooks {
		note := fmt.Sprintf("lsm hook %s stands for the system call %s", hook, k.Hook.Name)
		if stand.misses != "" {
			note += "; " + stand.misses
		}
		for _, w := range hooks(hook, -int32(k.Error), guard{user: true, flags: -1, syscalls: []int32{number}}, note) {
			w.syscall = true
			all = append(all, w)
		}
	}
	return all
}

// hooks are the ways to fail an LSM hook.
func hooks(name string, value int32, g guard, note string) []way {
	w := way{value: value, guard: g, note: note}
	module, modify := w, w
	module.backend, module.function, module.attach = LSM, target{name: "bpf_lsm_" + name, config: "CONFIG_BPF_LSM"}, name
	modify.backend, modify.function, modify.attach = FmodRet, target{name: "security_" + name, config: "CONFIG_SECURITY"}, "security_"+name
	return []way{module, modify}
}

// successor is what took the place of a system call that newer architectures
// do not have.
func successor(name string) string {
	for _, s := range []string{name + "at", name + "at2", "new" + name + "at", "f" + name + "at", "clone"} {
		if _, here := syscallNumbers[s]; here {
			return s
		}
	}
	return "openat"
}

// Check says how a rule would be carried out by the running kernel, from its
// type information, symbols and configuration. It loads nothing and needs no
// privileges. An error in a predicate is a *policy.SyntaxError.
func Check(rule policy.Rule) (Resolution, error) {
	if rule.Kernel == nil {
		return Resolution{}, fmt.Errorf("rule %q has no kernel fault", rule.Name)
	}
	k := rule.Kernel
	if err := checkSyntax(rule); err != nil {
		return Resolution{}, err
	}
	spec, err := kernelTypes()
	if err != nil {
		return Resolution{}, errNoTypes(err)
	}
	h := readSettings()
	all, err := ways(k, h, spec)
	if err != nil {
		return Resolution{}, err
	}
	i := slices.IndexFunc(all, func(w way) bool { return w.no == "" && h.missing(w) == "" })
	if i < 0 {
		if err := checkTypes(spec, rule, all); err != nil {
			return Resolution{}, err
		}
		return Resolution{}, noWay(k.Hook, all, func(w way) string { return w.because(h.missing(w)) })
	}
	w := all[i]
	f, err := newFilters(spec, rule, w)
	if err != nil {
		return Resolution{}, err
	}
	return Resolution{Hook: k.Hook.String(), Backend: w.backend, Functions: []string{w.function.name}, Note: w.note, Chain: f.method()}, nil
}

func (w way) because(other string) string {
	if w.no != "" {
		return w.no
	}
	return other
}

// noWay says for each way why it is not there.
func noWay(hook policy.Hook, all []way, why func(way) string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "this kernel cannot fail %s", hook)
	for i, w := range all {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%s%s: %s", sep, w.name(), why(w))
	}
	return &NoBackendError{b.String()}
}

// NoBackendError says that the running kernel has no backend for a rule, with
// what is missing for each.
type NoBackendError struct{ text string }

func (e *NoBackendError) Error() string { return e.text }

func (e *NoBackendError) Is(target error) bool { return target == ErrUnsupported }

func errNoTypes(err error) error {
	return fmt.Errorf("%w: its type information (%s, CONFIG_DEBUG_INFO_BTF): %w", ErrUnsupported, vmlinuxBTF, err)
}
