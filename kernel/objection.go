package kernel

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// objection says why a way is certainly not there, from what can be read.
func (h *host) objection(w way, spec *btf.Spec) string {
	proto, ok := function(spec, w.function.name)
	if !ok && w.backend == Override && h.injectable[w.function.name] != "" {
		return "" // a kprobe needs no type
	}
	if !ok {
		if w.function.config != "" {
			return h.because(h.noFunction(w.function), nil, h.needs(w))
		}
		return h.because("no function "+w.function.name+" in the kernel's type information", nil, h.needs(w))
	}
	switch w.backend {
	case LSM:
		if t, ok := btf.UnderlyingType(proto.Return).(*btf.Int); !ok || t.Encoding == btf.Bool {
			return "the hook answers no errno"
		}
		switch {
		case h.lsmErr != nil:
			return fmt.Sprintf("cannot tell whether the bpf module is active: %v; mount securityfs on %s", h.lsmErr, securityfs)
		case !slices.Contains(h.lsms, "bpf"):
			return fmt.Sprintf("bpf is not an active security module (active: %s): add it to lsm= on the kernel's command line", strings.Join(h.lsms, ","))
		}
	case Override:
		if h.injectable != nil && h.injectable[w.function.name] == "" {
			return h.because(w.function.name+" is not on the error-injection list", nil, h.needs(w))
		}
	}
	return ""
}

func (h *host) noFunction(t target) string {
	return fmt.Sprintf("no function %s (needs %s%s)", t.name, t.config, t.since)
}

// needs are the settings of the kernel that a way cannot be without.
func (h *host) needs(w way) []string {
	var n []string
	switch w.backend {
	case LSM:
		n = []string{"CONFIG_DEBUG_INFO_BTF", "CONFIG_BPF_LSM"}
	case Override:
		n = append(slices.Clone(injection), "CONFIG_KPROBE_EVENTS", "CONFIG_BPF_KPROBE_OVERRIDE")
	case FmodRet:
		n = []string{"CONFIG_DEBUG_INFO_BTF"}
		if !strings.HasPrefix(w.function.name, "security_") {
			n = append(n, injection...)
		}
	}
	if w.function.config != "" && w.function.config != n[len(n)-1] {
		n = append(n, w.function.config)
	}
	return n
}

// missing says which settings a way lacks, if the configuration is known.
func (h *host) missing(w way) string {
	if h.config == nil {
		return ""
	}
	w.function.config = "" // it is there
	if m := h.config.missing(h.needs(w)); len(m) > 0 {
		return "missing " + strings.Join(m, ", ")
	}
	return ""
}
