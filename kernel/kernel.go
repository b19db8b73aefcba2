// Package kernel makes functions of the kernel fail, for the processes of a
// cgroup, by eBPF programs that it assembles from the running kernel's types.
//
// A fault has a hook point (what is to fail) and a backend (the way in which
// eBPF makes it fail). An [Injector] arms faults; [Check] says beforehand how a
// rule would be carried out, and [Probe] what the kernel can do at all. A real
// attempt to load decides whether a backend is there; the kernel's
// configuration only explains a no. Package predicate compiles conditions over
// a function's parameters, package chain call chains.
package kernel

// The hook points of kernel faults.
const (
	HookSlab     = "slab"     // slab allocations: should_failslab
	HookPage     = "page"     // page allocations: should_fail_alloc_page
	HookBio      = "bio"      // block requests: should_fail_bio
	HookFunction = "function" // any function on the kernel's error-injection list
	HookSyscall  = "syscall"  // a system call
	HookLSM      = "lsm"      // a hook of the Linux security modules
)

// The backends, in the order in which they are preferred.
const (
	// FmodRet is a tracing program of kind BPF_MODIFY_RETURN (Linux 5.7). The
	// kernel allows it on functions of the error-injection list and on security_*.
	FmodRet = "fmod_ret"
	// Override is a kprobe that calls bpf_override_return, see bpf-helpers(7).
	Override = "override"
	// LSM is a program of type BPF_PROG_TYPE_LSM (Linux 5.7), see
	// Documentation/bpf/prog_lsm.rst.
	LSM = "lsm"
)

// Backend is what is known about one backend at one hook point.
type Backend struct {
	Hook string `json:"hook"`
	Name string `json:"backend"`
	OK   bool   `json:"ok"`
	// Target is the kernel function the backend was tried on. Where a hook point
	// stands for many functions, it is an example of them. Empty if there is none.
	Target string `json:"target,omitempty"`
	// Reason says why the backend cannot be used; it is empty when OK.
	Reason string `json:"reason"`
}

// Probe tries each backend at each hook point of the running kernel. It loads
// programs and closes them at once; it attaches nothing and mounts nothing.
// Without CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN) no backend is OK.
func Probe() []Backend {
	return backends(readHost())
}

func backends(h *host) []Backend {
	all := make([]Backend, 0, len(probes))
	for _, p := range probes {
		all = append(all, p.run(h))
	}
	return all
}
