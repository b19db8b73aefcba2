package plugin

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/policy"
)

// fakeKernel stands for a kernel that carries every fault, which this machine's
// may not: it keeps the promises of kernel.Injector that the loop relies on. What
// a fault does is shown in a virtual machine, by test/kernel.
type fakeKernel struct {
	mu      sync.Mutex
	armed   []*fakeArmed
	made    int
	pinned  []kernel.Pinned
	refuse  map[string]error // what Arm says, by the name of the rule
	cgroups map[int]kernel.Cgroup
	removed map[uint64]bool
	events  func(kernel.Event)
}

type fakeArmed struct {
	k      *fakeKernel
	fault  kernel.Fault
	since  time.Time
	counts kernel.Counters
}

func (k *fakeKernel) side() kernelSide {
	return kernelSide{
		open: func(onEvent func(kernel.Event)) (injector, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.events = onEvent
			return k, nil
		},
		check:     func(policy.Rule) error { return nil },
		outliving: func() ([]kernel.Pinned, error) { return k.pinned, nil },
		cgroup: func(pid int) (kernel.Cgroup, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			if c, ok := k.cgroups[pid]; ok {
				return c, nil
			}
			return kernel.Cgroup{ID: uint64(pid), Level: 1, Path: fmt.Sprint("/c", pid)}, nil
		},
		gone: func(c kernel.Cgroup) bool {
			k.mu.Lock()
			defer k.mu.Unlock()
			return k.removed[c.ID]
		},
	}
}

func (k *fakeKernel) Arm(_ context.Context, f kernel.Fault) (armedFault, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.refuse[f.Rule.Name]; err != nil {
		return nil, err
	}
	if !f.Rule.Trigger.Seeded {
		return nil, fmt.Errorf("rule %s has no seed", f.Rule.Name)
	}
	a := &fakeArmed{k: k, fault: f, since: time.Now().Add(-f.Age)}
	k.made++
	k.armed = append(k.armed, a)
	return a, nil
}

func (k *fakeKernel) Adopt(p kernel.Pinned) (armedFault, error) {
	if p.Foreign != nil {
		return nil, p.Foreign
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	a := &fakeArmed{k: k, fault: kernel.Fault{ID: p.ID, Rule: p.Rule, Cgroup: p.Cgroup, Outlive: true}, since: p.Started, counts: p.Counters}
	k.armed = append(k.armed, a)
	return a, nil
}

func (k *fakeKernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.armed = slices.DeleteFunc(k.armed, func(a *fakeArmed) bool { return !a.fault.Outlive })
	return nil
}

// live describes what is in force: rule, cgroup.
func (k *fakeKernel) live() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := []string{}
	for _, a := range k.armed {
		out = append(out, fmt.Sprintf("%s@%d", a.fault.Rule.Name, a.fault.Cgroup.ID))
	}
	slices.Sort(out)
	return out
}

func (a *fakeArmed) Fault() kernel.Fault                { return a.fault }
func (a *fakeArmed) Backend() string                    { return kernel.FmodRet }
func (a *fakeArmed) Functions() []string                { return []string{"should_failslab"} }
func (a *fakeArmed) Note() string                       { return "" }
func (a *fakeArmed) Ends() time.Time                    { return a.since.Add(a.fault.Rule.Trigger.TTL) }
func (a *fakeArmed) TakenOut() bool                     { return false }
func (a *fakeArmed) Counters() (kernel.Counters, error) { return a.counts, nil }

func (a *fakeArmed) Disarm() error {
	a.k.mu.Lock()
	defer a.k.mu.Unlock()
	a.k.armed = slices.DeleteFunc(a.k.armed, func(o *fakeArmed) bool { return o == a })
	return nil
}

// slabRule is a kernel rule as labels have it. The parser of package policy is
// asked first, so that this follows the language.
const slabRule = "kernel hook=slab error=ENOMEM times=10 ttl=5m"

func newFakeFaults(t *testing.T, k *fakeKernel) *kernelFaults {
	t.Helper()
	dir, err := os.MkdirTemp("", "faultgraft-kernel-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return newKernelFaults(k.side(), dir, logTo(t))
}
