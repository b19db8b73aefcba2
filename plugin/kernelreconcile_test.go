package plugin

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// kernelBench is a bench on a kernel that carries every fault.
func kernelBench(t *testing.T, k *fakeKernel, n *node, dir string, change func(*reconciler)) *bench {
	t.Helper()
	return newBench(t, n, dir, func(r *reconciler) {
		r.faults = newFakeFaults(t, k)
		if change != nil {
			change(r)
		}
	})
}

func wantLive(t *testing.T, k *fakeKernel, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := k.live(); !slices.Equal(got, want) {
		t.Errorf("in force: %v, want %v", got, want)
	}
}

func at(name string) string { return fmt.Sprintf("%s@%d", name, os.Getpid()) }

func TestKernelLabelArmsOnceBesideGrafts(t *testing.T) {
	k, n := &fakeKernel{}, &node{}
	b := kernelBench(t, k, n, t.TempDir(), nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule, "oom.faultgraft.io": slabRule})
	b.reg.put(c)
	for range 3 {
		if got := b.settle(t, c.Key); got.State != StateActive {
			t.Fatalf("state %s (%s), problems %v", got.State, got.Reason, got.Problems)
		}
	}
	wantLive(t, k, at("oom"))
	if k.made != 1 || n.count() != 1 {
		t.Errorf("%d faults armed, %d grafts made; want one each", k.made, n.count())
	}
	faults := b.kernelFaults()
	if len(faults) != 1 || faults[0].Origin != keeper.OriginLabel || faults[0].Target.ID != "a" || faults[0].Kernel.Hook != "slab" || faults[0].Rules[0].Text != slabRule {
		t.Errorf("%+v", faults)
	}
	// A label that is added, changed or taken away changes that fault only.
	b.reg.put(labelled("a", map[string]string{"oom.faultgraft.io": slabRule, "more.faultgraft.io": "kernel hook=slab error=ENOMEM every=2 ttl=1m"}))
	b.settle(t, c.Key)
	wantLive(t, k, at("oom"), at("more"))
	if k.made != 2 || len(n.all()) != 0 {
		t.Errorf("%d faults armed, want 2; grafts %+v, want none", k.made, n.all())
	}
	b.reg.put(labelled("a", nil))
	if got := b.settle(t, c.Key); got.State != StateNone {
		t.Errorf("labels gone: state %s (%s)", got.State, got.Reason)
	}
	wantLive(t, k)
}

func TestKernelFaultEndsWithItsTask(t *testing.T) {
	k := &fakeKernel{}
	b := kernelBench(t, k, &node{}, t.TempDir(), nil)
	c := labelled("a", map[string]string{"oom.faultgraft.io": slabRule})
	b.reg.put(c)
	b.settle(t, c.Key)
	b.reg.put(Container{Key: c.Key, Name: c.Name, Labels: c.Labels, Source: c.Source})
	b.ended(c.Key, c.PID)
	if got := b.wait(t, c.Key); got.State != StatePending {
		t.Errorf("stopped: state %s (%s)", got.State, got.Reason)
	}
	wantLive(t, k)
	// Restarted: a new process in a new cgroup.
	c.PID = os.Getppid()
	b.reg.put(c)
	if got := b.settle(t, c.Key); got.State != StateActive {
		t.Errorf("restarted: state %s (%s)", got.State, got.Reason)
	}
	wantLive(t, k, fmt.Sprintf("oom@%d", os.Getppid()))
	b.remove(c.Key)
	wantLive(t, k)
}

// The restart was seen only when it was over.
func TestKernelFaultFollowsARestartedTask(t *testing.T) {
	k := &fakeKernel{}
	b := kernelBench(t, k, &node{}, t.TempDir(), nil)
	c := labelled("a", map[string]string{"oom.faultgraft.io": slabRule})
	b.reg.put(c)
	b.settle(t, c.Key)
	c.PID = os.Getppid()
	b.reg.put(c)
	b.settle(t, c.Key)
	wantLive(t, k, fmt.Sprintf("oom@%d", os.Getppid()))
}

func TestKernelFaultOverRestartOfTheAgent(t *testing.T) {
	k, dir := &fakeKernel{}, t.TempDir()
	now := time.Now()
	clock := func(r *reconciler) { r.now = func() time.Time { return now } }
	c := labelled("a", map[string]string{"oom.faultgraft.io": slabRule, "gone.faultgraft.io": "kernel hook=slab error=ENOMEM times=1 ttl=5m"})
	first := kernelBench(t, k, &node{}, dir, clock)
	first.reg.put(c)
	first.settle(t, c.Key)
	for _, f := range first.kernelFaults() {
		if f.Rules[0].Name == "gone" { // a person ends one of the two
			if _, err := first.faults.disarm(f.ID, endAsked); err != nil {
				t.Fatal(err)
			}
		}
	}
	first.wait(t, c.Key)
	wantLive(t, k, at("oom"))
	if err := first.faults.close(); err != nil {
		t.Fatal(err)
	}
	wantLive(t, k)

	now = now.Add(2 * time.Minute)
	second := kernelBench(t, k, &node{}, dir, clock)
	second.reg.put(c)
	second.settle(t, c.Key)
	wantLive(t, k, at("oom"))
	if age := k.armed[0].fault.Age; age != 2*time.Minute {
		t.Errorf("its clock: %v, want 2m", age)
	}
	if err := second.faults.close(); err != nil {
		t.Fatal(err)
	}
	now = now.Add(3 * time.Minute)
	third := kernelBench(t, k, &node{}, dir, clock)
	third.reg.put(c)
	if got := third.settle(t, c.Key); got.State != StateNone || got.Reason != reasonOver {
		t.Errorf("state %s (%s)", got.State, got.Reason)
	}
	wantLive(t, k)
}

func TestKernelFaultWhoseTimeIsUp(t *testing.T) {
	k := &fakeKernel{}
	b := kernelBench(t, k, &node{}, t.TempDir(), nil)
	c := labelled("a", map[string]string{"oom.faultgraft.io": "kernel hook=slab error=ENOMEM times=1 ttl=50ms"})
	b.reg.put(c)
	b.settle(t, c.Key)
	until(t, "over", func() bool { return b.get(c.Key).State == StateNone && len(k.live()) == 0 })
	b.settle(t, c.Key)
	if got := b.get(c.Key); got.Reason != reasonOver || k.made != 1 {
		t.Errorf("state %s (%s), %d armed", got.State, got.Reason, k.made)
	}
}

func TestKernelFaultOfARemovedCgroup(t *testing.T) {
	k := &fakeKernel{removed: map[uint64]bool{}}
	b := kernelBench(t, k, &node{}, t.TempDir(), nil)
	if _, err := b.injectKernel(t.Context(), KernelRequest{Target: keeper.Target{ID: "pid", PID: os.Getpid()}, Rules: []policy.Rule{policyRule(t, slabRule)}}, "test"); err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	k.removed[uint64(os.Getpid())] = true
	k.mu.Unlock()
	for _, f := range b.faults.where(func(*liveFault) bool { return true }) {
		b.faults.look(f)
	}
	wantLive(t, k)
}

func TestKernelFaultsOfAnExcludedContainer(t *testing.T) {
	k := &fakeKernel{}
	b := kernelBench(t, k, &node{}, t.TempDir(), nil)
	c := labelled("a", map[string]string{"oom.faultgraft.io": slabRule})
	b.reg.put(c)
	got := b.settle(t, c.Key)
	if _, err := b.injectKernel(t.Context(), KernelRequest{Target: got.Target(), Rules: []policy.Rule{policyRule(t, slabRule)}}, "test"); err != nil {
		t.Fatal(err)
	}
	wantLive(t, k, at("oom"), at("u"))
	b.reg.put(labelled("a", map[string]string{"oom.faultgraft.io": slabRule, "enable.faultgraft.io": "false"}))
	if got := b.settle(t, c.Key); got.State != StateExcluded {
		t.Errorf("state %s (%s)", got.State, got.Reason)
	}
	wantLive(t, k)
}

// What the kernel cannot do is refused at once; what fails is tried again; neither keeps the other rules from working.
func TestKernelRuleThatCannotBe(t *testing.T) {
	k := &fakeKernel{refuse: map[string]error{"oom": fmt.Errorf("missing CONFIG_FAILSLAB: %w", kernel.ErrUnsupported)}}
	b := kernelBench(t, k, &node{}, t.TempDir(), nil)
	c := labelled("a", map[string]string{"oom.faultgraft.io": slabRule})
	b.reg.put(c)
	got := b.settle(t, c.Key)
	if got.State != StateRefused || !strings.Contains(got.Reason, "CONFIG_FAILSLAB") || len(got.Problems) != 1 {
		t.Errorf("state %s (%s), problems %v", got.State, got.Reason, got.Problems)
	}
	b.reg.put(labelled("a", map[string]string{"oom.faultgraft.io": slabRule, "wal.faultgraft.io": dataRule}))
	if got = b.settle(t, c.Key); got.State != StateActive || len(got.Problems) != 1 {
		t.Errorf("beside a graft: state %s (%s), problems %v", got.State, got.Reason, got.Problems)
	}
	k.mu.Lock()
	k.refuse["oom"] = errTest
	k.mu.Unlock()
	b.poke(c.Key)
	until(t, "failed", func() bool { return b.get(c.Key).State == StateFailed })
	k.mu.Lock()
	delete(k.refuse, "oom")
	k.mu.Unlock()
	until(t, "tried again", func() bool { return b.get(c.Key).State == StateActive && len(k.live()) == 1 })
}

func TestKernelRequestIsAllOrNothing(t *testing.T) {
	k := &fakeKernel{refuse: map[string]error{"second": errTest}}
	b := kernelBench(t, k, &node{}, t.TempDir(), nil)
	good, bad := policyRule(t, slabRule), policyRule(t, slabRule)
	bad.Name = "second"
	_, err := b.injectKernel(t.Context(), KernelRequest{Target: keeper.Target{PID: os.Getpid()}, Rules: []policy.Rule{good, bad}}, "test")
	if !errors.Is(err, errTest) {
		t.Errorf("error %v", err)
	}
	wantLive(t, k)
	io := policyRule(t, dataRule)
	if _, err := b.injectKernel(t.Context(), KernelRequest{Target: keeper.Target{PID: os.Getpid()}, Rules: []policy.Rule{good, io}}, "test"); err == nil || !strings.Contains(err.Error(), "no kernel rule") {
		t.Errorf("an io rule: %v", err)
	}
	wantLive(t, k)
}

// What outlived an earlier agent is found; it stays when this one ends; what is over is ended.
func TestOutlivingKernelFaultIsAdopted(t *testing.T) {
	rule := policyRule(t, slabRule)
	rule.Name = "left"
	k := &fakeKernel{pinned: []kernel.Pinned{{
		ID: "k-00000001", Rule: rule, Cgroup: kernel.Cgroup{ID: 7, Level: 2, Path: "/default/abcdef"}, Started: time.Now(), Ends: time.Now().Add(time.Minute), Counters: kernel.Counters{Injected: 3},
	}}}
	b := kernelBench(t, k, &node{}, t.TempDir(), nil)
	if err := b.faults.adopt(); err != nil {
		t.Fatal(err)
	}
	b.reg.put(Container{Key: Key{"default", "abcdef"}, Name: "pg", Source: sourceContainerd})
	b.settle(t, Key{"default", "abcdef"})
	faults := b.kernelFaults()
	if len(faults) != 1 || faults[0].Target.Name != "pg" || !faults[0].Kernel.Outlive || faults[0].Rules[0].Fired != 3 {
		t.Fatalf("%+v", faults)
	}
	if err := b.faults.close(); err != nil {
		t.Fatal(err)
	}
	wantLive(t, k, "left@7")
}
