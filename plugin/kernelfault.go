package plugin

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// KernelFault is one kernel rule in force for one target. Its JSON has the
// fields of a graft where both have them, so that one list can hold both.
type KernelFault struct {
	ID     string        `json:"id"`
	Target keeper.Target `json:"target"`
	State  keeper.State  `json:"state"`
	Origin keeper.Origin `json:"origin,omitempty"`
	Since  time.Time     `json:"since"`
	// Rules is the one rule. Matched is how often it was about what happened, Fired how often it failed it.
	Rules  []keeper.RuleStatus `json:"rules"`
	Kernel KernelStatus        `json:"kernel"`
}

// KernelStatus is what only a kernel fault has.
type KernelStatus struct {
	// Hook is what fails, as rules write it, Errno what with; Backend the way, Functions the kernel functions that are failed.
	Hook      string   `json:"hook"`
	Errno     string   `json:"errno"`
	Backend   string   `json:"backend"`
	Functions []string `json:"functions"`
	// Note says what the backend covers where it stands for another hook point.
	Note string `json:"note,omitempty"`
	// Cgroup is where the fault holds, with all below.
	Cgroup   kernel.Cgroup   `json:"cgroup"`
	Counters kernel.Counters `json:"counters"`
	// Outlive: it stays in the kernel without the agent, until its ttl is over.
	Outlive bool `json:"outlive,omitempty"`
	// HeldBy is the state directory of the agent that holds it, if that is not this one's.
	HeldBy string `json:"heldBy,omitempty"`
}

// KernelRequest asks for kernel faults on one target: all of them, or none.
type KernelRequest struct {
	Target keeper.Target `json:"target"`
	// Rules are kernel rules.
	Rules []policy.Rule `json:"rules"`
	// Origin says who asked; empty is keeper.OriginUser.
	Origin keeper.Origin `json:"origin,omitempty"`
	// Outlive keeps the faults in the kernel when the agent ends, until their ttl is over.
	Outlive bool `json:"outlive,omitempty"`
}

// kernelFaultPrefix begins the id of a kernel fault; a graft's begins with g-.
const kernelFaultPrefix = "k-"

// IsKernelFault tells the id of a kernel fault from that of a graft.
func IsKernelFault(id string) bool { return strings.HasPrefix(id, kernelFaultPrefix) }

func newKernelFaultID() string {
	b := make([]byte, 4)
	if _, err := rand.Read(b); err != nil {
		panic(err) // crypto/rand never fails on Linux: it would have crashed itself
	}
	return kernelFaultPrefix + hex.EncodeToString(b)
}

// pinnedFault describes a fault that nobody holds: it has outlived who armed it.
func pinnedFault(p kernel.Pinned) KernelFault {
	f := KernelFault{ID: p.ID, Target: pinnedTarget(p.Cgroup), State: keeper.StateActive, Origin: keeper.OriginUser, Since: p.Started}
	f.Rules = []keeper.RuleStatus{ruleStatus(p.Rule, p.Counters, p.Ends)}
	f.Kernel = KernelStatus{
		Hook: hookOf(p.Rule), Errno: errnoOf(p.Rule), Backend: p.Backend, Functions: p.Functions, Cgroup: p.Cgroup, Counters: p.Counters, Outlive: true,
	}
	if p.Foreign != nil {
		f.Kernel.Note = "not counted: " + p.Foreign.Error()
	}
	return f
}

// pinnedTarget is all that is known of the target of a fault that was found in
// the kernel: its cgroup.
func pinnedTarget(c kernel.Cgroup) keeper.Target {
	return keeper.Target{ID: c.Path[strings.LastIndexByte(c.Path, '/')+1:], Name: "cgroup " + c.Path}
}

func hookOf(r policy.Rule) string {
	if r.Kernel == nil {
		return ""
	}
	return r.Kernel.Hook.String()
}

func errnoOf(r policy.Rule) string {
	if r.Kernel == nil {
		return ""
	}
	return r.Kernel.Error.String()
}

func ruleStatus(r policy.Rule, n kernel.Counters, ends time.Time) keeper.RuleStatus {
	return keeper.RuleStatus{
		Name: r.Name, Policy: r.Policy, Run: r.Run, Text: r.Text, Matched: n.Matched, Fired: n.Injected, Expires: ends, Expired: !time.Now().Before(ends),
	}
}
