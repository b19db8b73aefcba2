package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/google/go-cmp/cmp"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/limits"
)

// manifestOf is a policy for containers with the label app=pg; spec has more lines of the spec.
func manifestOf(name string, spec ...string) string {
	lines := append([]string{
		"apiVersion: faultgraft.io/v1alpha1", "kind: FaultPolicy", "metadata: {name: " + name + "}", "spec:",
		"  selector: {matchLabels: {app: pg}}",
	}, spec...)
	if !strings.Contains(strings.Join(spec, "\n"), "faults:") {
		lines = append(lines, `  faults: [{name: wal, io: {path: "/data/**", ops: [read], error: EIO}}]`)
	}
	return strings.Join(lines, "\n") + "\n"
}

func (b *bench) apply(t *testing.T, text string) policies.Result {
	t.Helper()
	all, err := b.readPolicies("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	results, err := b.applyAll(all, false, "test")
	if err != nil || len(results) != 1 {
		t.Fatalf("%+v, %v", results, err)
	}
	return results[0]
}

// target waits until a container is a target of a policy in that state.
func (b *bench) target(t *testing.T, policy string, k Key, state policies.TargetState) (found policies.TargetStatus) {
	t.Helper()
	var last []policies.TargetStatus
	until(t, fmt.Sprintf("%s in %s is %s", policy, k, state), func() bool {
		last = b.policies.store.Targets(policies.Key(k))
		for _, found = range last {
			if found.Policy == policy && found.State == state {
				return true
			}
		}
		return false
	})
	return found
}

// P3: a container that ran before the policy came is treated as the policy says,
// together with its labels; a policy that is paused, resumed, changed and deleted
// changes its own rules only.
func TestPolicyBesideLabels(t *testing.T) {
	k, n := &fakeKernel{}, &node{}
	b := kernelBench(t, k, n, t.TempDir(), nil)
	c := labelled("a", map[string]string{"app": "pg", "log.faultgraft.io": "io error=ENOSPC op=write path=/data/** ttl=5m"})
	other := labelled("b", map[string]string{"app": "web"})
	for _, c := range []Container{c, other} {
		b.reg.put(c)
		b.settle(t, c.Key)
	}
	rules := func(want ...string) {
		t.Helper()
		var got []string
		until(t, fmt.Sprintf("the rules are %v", want), func() bool {
			got = nil
			for _, g := range n.all() {
				for _, r := range g.Rules {
					got = append(got, fmt.Sprintf("%s%s#%d", g.Path+":", keeper.RuleStatus.FullName(r), r.Run))
				}
			}
			slices.Sort(got)
			return slices.Equal(got, want)
		})
	}
	rules("/data:log#0")
	text := manifestOf("pg-wal", `  faults:`, `  - {name: wal, io: {path: "/data/**", ops: [fsync], error: EIO}}`, `  - {name: oom, kernel: {hook: slab, error: ENOMEM}, trigger: {times: 10}}`)
	if r := b.apply(t, text); r.Action != policies.Created || r.Selected != 1 || r.Targets[0].ID != "a" {
		t.Fatalf("%+v", r)
	}
	rules("/data:log#0", "/data:pg-wal/wal#1") // in one graft
	wantLive(t, k, at("oom"))
	if len(n.all()) != 1 || n.count() != 1 {
		t.Errorf("%d grafts, %d made: the layer that is there gets the rule", len(n.all()), n.count())
	}
	if st := b.target(t, "pg-wal", c.Key, policies.TargetActive); st.Run != 1 || st.Reason != "" {
		t.Errorf("%+v", st)
	}
	// Once more, and over a look at the container: nothing changes.
	changed := n.changed
	if r := b.apply(t, text); r.Action != policies.Unchanged {
		t.Errorf("%+v", r)
	}
	b.settle(t, c.Key)
	rules("/data:log#0", "/data:pg-wal/wal#1")
	if n.changed != changed || k.made != 1 {
		t.Errorf("rules changed %d times, want %d; %d kernel faults armed", n.changed, changed, k.made)
	}
	if err := b.policies.store.Pause("pg-wal", "test"); err != nil {
		t.Fatal(err)
	}
	rules("/data:log#0")
	b.target(t, "pg-wal", c.Key, policies.TargetPaused)
	wantLive(t, k)
	if err := b.policies.store.Resume("pg-wal", "test"); err != nil {
		t.Fatal(err)
	}
	rules("/data:log#0", "/data:pg-wal/wal#2")
	b.target(t, "pg-wal", c.Key, policies.TargetActive)
	wantLive(t, k, at("oom"))
	if err := b.policies.store.Delete("pg-wal", "test"); err != nil {
		t.Fatal(err)
	}
	rules("/data:log#0")
	until(t, "the kernel fault is off", func() bool { return len(k.live()) == 0 })
	until(t, "nobody tells of the policy", func() bool { return len(b.policies.store.Targets(policies.Key(c.Key))) == 0 })
	if got := b.get(other.Key); got.State != StateNone {
		t.Errorf("a container that it did not select: %s (%s)", got.State, got.Reason)
	}
}

// A container asks for a policy by its name, as policy.faultgraft.io; a name that the node does not know is a problem.
func TestContainerNamesAPolicy(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	c := labelled("a", map[string]string{"policy.faultgraft.io": "pg-wal,other"})
	b.reg.put(c)
	if got := b.settle(t, c.Key); got.State != StateRefused || len(got.Problems) != 2 || !strings.Contains(got.Problems[0], `knows no policy "other"`) {
		t.Fatalf("%s (%s), problems %q", got.State, got.Reason, got.Problems)
	}
	b.apply(t, manifestOf("pg-wal"))
	b.target(t, "pg-wal", c.Key, policies.TargetActive)
	if got := b.wait(t, c.Key); got.State != StateActive || len(got.Problems) != 1 || len(n.all()) != 1 {
		t.Errorf("%s (%s), problems %q, grafts %v", got.State, got.Reason, got.Problems, n.all())
	}
}

// P10: where labels may ask for nothing, a container cannot name a policy either, not even to begin its run.
func TestNamedPolicyNeedsOptIn(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	set := *b.settings.Load()
	set.limits.Labels.Namespaces = []limits.Namespaces{"default"}
	b.settings.Store(&set)
	b.apply(t, manifestOf("pg-wal"))
	named := map[string]string{"policy.faultgraft.io": "pg-wal"}
	p := &nriPlugin{loop: func() *reconciler { return b.reconciler }, metrics: b.metrics, log: b.log, requestTimeout: func() time.Duration { return 0 }}
	in := func(namespace string) *api.PodSandbox {
		return &api.PodSandbox{Id: namespace, Name: "web", Namespace: namespace}
	}
	if err := p.StartContainer(t.Context(), in("prod"), ctr("not", os.Getpid(), named)); err != nil {
		t.Fatal(err)
	}
	if got := b.get(Key{criNamespace, "not"}); got.State != StateRefused || len(n.all()) != 0 {
		t.Errorf("%s (%s), grafts %v", got.State, got.Reason, n.all())
	}
	if st, err := b.policies.store.Get("pg-wal"); err != nil || st.Run != 0 || st.Matching != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := p.StartContainer(t.Context(), in("default"), ctr("may", os.Getpid(), named)); err != nil {
		t.Fatal(err)
	}
	if got := b.get(Key{criNamespace, "may"}); got.State != StateActive || len(n.all()) != 1 {
		t.Errorf("%s (%s), grafts %v", got.State, got.Reason, n.all())
	}
}

// enable=false beats policies too, and a policy in a protected container does nothing.
func TestPolicyDoesNotReachExcluded(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	off := labelled("a", map[string]string{"app": "pg", "enable.faultgraft.io": "false"})
	kube := labelled("b", map[string]string{"app": "pg"})
	kube.PodNamespace = "kube-system"
	for _, c := range []Container{off, kube} {
		b.reg.put(c)
		b.settle(t, c.Key)
	}
	if r := b.apply(t, manifestOf("pg-wal")); r.Selected != 0 || r.Matching != 0 {
		t.Errorf("%+v", r)
	}
	for _, c := range []Container{off, kube} {
		b.settle(t, c.Key)
	}
	if len(n.all()) != 0 {
		t.Errorf("%+v", n.all())
	}
}

// What a person took off is over for this run, and comes back with the next one.
func TestRecoveredPolicyRule(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	c := labelled("a", map[string]string{"app": "pg"})
	b.reg.put(c)
	b.settle(t, c.Key)
	b.apply(t, manifestOf("pg-wal"))
	b.target(t, "pg-wal", c.Key, policies.TargetActive)
	if _, err := n.Ungraft(t.Context(), n.all()[0].ID); err != nil {
		t.Fatal(err)
	}
	b.settle(t, c.Key)
	if st := b.target(t, "pg-wal", c.Key, policies.TargetReverted); !strings.Contains(st.Reason, "recovered") {
		t.Errorf("%+v", st)
	}
	b.apply(t, manifestOf("pg-wal", "  timing: {ttl: 2m}"))
	b.target(t, "pg-wal", c.Key, policies.TargetActive)
	if st := n.all()[0].Rules[0]; st.Run != 2 || time.Until(st.Expires) > 2*time.Minute {
		t.Errorf("%+v", st)
	}
}

// A restart of the agent: the policies, their runs and what they put in place are found again.
func TestPolicyOverRestartOfTheAgent(t *testing.T) {
	n, dir := &node{}, t.TempDir()
	c := labelled("a", map[string]string{"app": "pg"})
	first := newBench(t, n, dir, nil)
	first.reg.put(c)
	first.settle(t, c.Key)
	first.apply(t, manifestOf("pg-wal"))
	first.target(t, "pg-wal", c.Key, policies.TargetActive)
	second := newBench(t, n, dir, nil)
	second.reg.put(c)
	second.settle(t, c.Key)
	second.target(t, "pg-wal", c.Key, policies.TargetActive)
	if n.count() != 1 || n.changed != 0 || len(n.all()) != 1 {
		t.Errorf("%d grafts made, %d changes", n.count(), n.changed)
	}
	if err := second.policies.store.Delete("pg-wal", "test"); err != nil {
		t.Fatal(err)
	}
	until(t, "the graft is off", func() bool { return len(n.all()) == 0 })
}

// P8 with a policy: while the node is stopped its targets are pending and say why;
// after the release they are active again, for the rest of the run.
func TestStopReachesPolicies(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	c := labelled("a", map[string]string{"app": "pg"})
	b.reg.put(c)
	b.settle(t, c.Key)
	b.apply(t, manifestOf("pg-wal", "  timing: {ttl: 5m}"))
	b.target(t, "pg-wal", c.Key, policies.TargetActive)
	if _, err := b.stop(t.Context(), "incident", "test"); err != nil {
		t.Fatal(err)
	}
	if st := b.target(t, "pg-wal", c.Key, policies.TargetPending); !strings.Contains(st.Reason, "incident") || len(n.all()) != 0 {
		t.Errorf("%+v, grafts %v", st, n.all())
	}
	if _, err := b.release("test"); err != nil {
		t.Fatal(err)
	}
	b.target(t, "pg-wal", c.Key, policies.TargetActive)
	if left := time.Until(n.all()[0].Rules[0].Expires); left > 5*time.Minute {
		t.Errorf("it lives for another %v", left)
	}
}

// P7: a dry run says who would get what, and touches nothing; so does a policy with dryRun: true.
func TestPolicyDryRun(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	client := NewClient(serveBench(t, b, b.log))
	c := labelled("a", map[string]string{"app": "pg"})
	b.reg.put(c)
	b.settle(t, c.Key)
	for _, dry := range []bool{true, false} {
		r, err := client.ApplyPolicies(t.Context(), "f.yaml", []byte(manifestOf("pg-wal", "  dryRun: true")), dry)
		if err != nil || len(r) != 1 || !r[0].DryRun || len(r[0].Targets) != 1 || r[0].Targets[0].ID != "a" || len(r[0].Rules) != 1 || r[0].Rules[0].Text == "" {
			t.Fatalf("%+v, %v", r, err)
		}
		if all, err := client.Policies(t.Context()); err != nil || (len(all) == 0) != dry {
			t.Errorf("policies after it: %+v, %v", all, err)
		}
	}
	if got := b.settle(t, c.Key); got.State != StateNone || n.count() != 0 {
		t.Errorf("%s (%s), %d grafts", got.State, got.Reason, n.count())
	}
	if st, err := client.Policy(t.Context(), "pg-wal"); err != nil || len(st.Targets) != 1 || st.Targets[0].State != policies.TargetPending || !strings.Contains(st.Targets[0].Reason, "dry run") {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestPolicyRequests(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	client := NewClient(serveBench(t, b, b.log))
	c := labelled("a", map[string]string{"app": "pg"})
	b.reg.put(c)
	b.settle(t, c.Key)
	// All or none.
	bad := manifestOf("one") + "---\n" + manifestOf("two", "  mode: fixd")
	_, err := client.ApplyPolicies(t.Context(), "two.yaml", []byte(bad), false)
	if err == nil || !strings.Contains(err.Error(), "two.yaml:") || !strings.Contains(err.Error(), "fixd") {
		t.Errorf("a wrong mode: %v", err)
	}
	fail := manifestOf("one") + "---\n" + strings.Replace(manifestOf("two", "  whenNothingMatches: fail"), "app: pg", "app: nobody", 1)
	if _, err := client.ApplyPolicies(t.Context(), "two.yaml", []byte(fail), false); err == nil || !strings.Contains(err.Error(), "no container") {
		t.Errorf("nothing matches: %v", err)
	}
	if all, err := client.Policies(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("kept all the same: %+v, %v", all, err)
	}
	for _, do := range []func() error{
		func() error { _, err := client.Policy(t.Context(), "none"); return err },
		func() error { _, err := client.DeletePolicy(t.Context(), "none"); return err },
		func() error { _, err := client.PausePolicy(t.Context(), "none"); return err },
		func() error { _, err := client.ResumePolicy(t.Context(), "none"); return err },
	} {
		if err := do(); !errors.Is(err, ErrNoPolicy) {
			t.Errorf("a policy that is not there: %v", err)
		}
	}
	if _, err := client.ApplyPolicies(t.Context(), "f.yaml", []byte(manifestOf("pg-wal")), false); err != nil {
		t.Fatal(err)
	}
	b.target(t, "pg-wal", c.Key, policies.TargetActive)
	for _, body := range []string{"{}", " "} {
		if _, err := client.do(t.Context(), http.MethodPost, "/v1/policies/pg-wal/pause", strings.NewReader(body)); err == nil {
			t.Errorf("a body %q was taken", body)
		}
	}
	if _, err := client.do(t.Context(), http.MethodPost, "/v1/policies?dryRun=maybe", strings.NewReader(manifestOf("x"))); err == nil || !strings.Contains(err.Error(), "dryRun") {
		t.Errorf("dryRun=maybe: %v", err)
	}
	for _, step := range []struct {
		do    func() (policies.Status, error)
		phase policies.Phase
	}{
		{func() (policies.Status, error) { return client.PausePolicy(t.Context(), "pg-wal") }, policies.Paused},
		{func() (policies.Status, error) { return client.ResumePolicy(t.Context(), "pg-wal") }, policies.Running},
		{func() (policies.Status, error) { return client.DeletePolicy(t.Context(), "pg-wal") }, policies.Running},
	} {
		if st, err := step.do(); err != nil || st.Phase != step.phase || len(st.Targets) != 1 {
			t.Errorf("%+v, %v; want %s", st, err, step.phase)
		}
	}
	var who []string
	if err := keeper.ReadEvents(t.Context(), b.stateDir, false, func(e keeper.Event) error {
		if e.Type == keeper.EventPolicy && e.Who != "" {
			who = append(who, e.Action)
			if e.Policy != "pg-wal" || !strings.Contains(e.Who, fmt.Sprintf("uid 0, pid %d (", os.Getpid())) {
				t.Errorf("%+v", e)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"applied", "paused", "resumed", "deleted"}; !slices.Equal(who, want) {
		t.Errorf("a person did %v, want %v", who, want)
	}
}

// P5: a container that a required policy has chosen does not start when its faults
// are not in place; others do, and so does it when they are.
func TestRequiredPolicy(t *testing.T) {
	n := &node{}
	b := newBench(t, n, t.TempDir(), nil)
	p := &nriPlugin{loop: func() *reconciler { return b.reconciler }, metrics: b.metrics, log: b.log, requestTimeout: func() time.Duration { return 0 }}
	start := func(id string, annotations map[string]string) error {
		return p.StartContainer(t.Context(), pod(nil), ctr(id, os.Getpid(), annotations))
	}
	b.apply(t, strings.Replace(manifestOf("must", "  required: true"), "matchLabels: {app: pg}", "matchAnnotations: {app: pg}", 1))
	b.apply(t, strings.Replace(manifestOf("may"), "matchLabels: {app: pg}", "matchAnnotations: {app: web}", 1))
	if err := start("good", map[string]string{"app": "pg"}); err != nil {
		t.Fatalf("its faults are there: %v", err)
	}
	if len(n.all()) != 1 {
		t.Fatalf("%+v", n.all())
	}
	n.mu.Lock()
	n.grafts, n.refuse = nil, errTest
	n.mu.Unlock()
	if err := start("bad", map[string]string{"app": "pg"}); !errors.Is(err, ErrRequired) || !strings.Contains(err.Error(), errTest.Error()) {
		t.Errorf("its faults are not there: %v", err)
	}
	if got := b.get(Key{criNamespace, "bad"}); !got.Required {
		t.Errorf("%+v", got)
	}
	for id, annotations := range map[string]map[string]string{"optional": {"app": "web"}, "label": {"wal.faultgraft.io": dataRule}, "plain": nil} {
		if err := start(id, annotations); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	// A node that is stopped has no faults, and a policy that is paused asks for none.
	n.mu.Lock()
	n.refuse = nil
	n.mu.Unlock()
	if err := b.policies.store.Pause("must", "test"); err != nil {
		t.Fatal(err)
	}
	if err := start("paused", map[string]string{"app": "pg"}); err != nil {
		t.Errorf("the policy is paused: %v", err)
	}
	if err := b.policies.store.Resume("must", "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.stop(t.Context(), "incident", "test"); err != nil {
		t.Fatal(err)
	}
	if err := start("stopped", map[string]string{"app": "pg"}); !errors.Is(err, ErrRequired) || !strings.Contains(err.Error(), "incident") {
		t.Errorf("the node is stopped: %v", err)
	}
}

// A start does not wait longer than its budget, and fails then only if the policy is required.
func TestRequiredPolicyIsLate(t *testing.T) {
	hang := make(chan struct{})
	n := &node{onGraft: func(keeper.Target, keeper.Request) { <-hang }}
	b := newBench(t, n, t.TempDir(), nil)
	t.Cleanup(func() { close(hang) }) // before the bench's
	set := *b.settings.Load()
	set.startBudget = 50 * time.Millisecond
	b.settings.Store(&set)
	p := &nriPlugin{loop: func() *reconciler { return b.reconciler }, metrics: b.metrics, log: b.log, requestTimeout: func() time.Duration { return 0 }}
	b.apply(t, strings.Replace(manifestOf("must", "  required: true"), "matchLabels: {app: pg}", "matchAnnotations: {app: pg}", 1))
	b.apply(t, strings.Replace(manifestOf("may"), "matchLabels: {app: pg}", "matchAnnotations: {app: web}", 1))
	if err := p.StartContainer(t.Context(), pod(nil), ctr("must", os.Getpid(), map[string]string{"app": "pg"})); !errors.Is(err, ErrRequired) || !strings.Contains(err.Error(), "in time") {
		t.Errorf("required: %v", err)
	}
	if err := p.StartContainer(t.Context(), pod(nil), ctr("may", os.Getpid(), map[string]string{"app": "web"})); err != nil {
		t.Errorf("not required: %v", err)
	}
}

// After a restart of the agent half of the containers seen so far is not half of
// the containers: until all were seen, those that a policy has chosen keep what they
// have, and no other gets anything.
func TestPolicyWaitsForAllContainers(t *testing.T) {
	n, dir := &node{}, t.TempDir()
	var all []Container
	for i := range 8 {
		c := labelled(fmt.Sprint("c", i), map[string]string{"app": "pg"})
		c.PID = startIdle(t, 0)
		all = append(all, c)
	}
	text := manifestOf("half", "  mode: fixed-percent", "  value: 50", "  seed: 3")
	first := newBench(t, n, dir, nil)
	for _, c := range all {
		first.reg.put(c)
		first.settle(t, c.Key)
	}
	r := first.apply(t, text)
	for _, x := range r.Targets {
		first.target(t, "half", Key(x.Key), policies.TargetActive)
	}
	before := n.all()
	if len(before) != 4 {
		t.Fatalf("%+v", before)
	}
	second := newBench(t, n, dir, nil)
	second.policies.known, second.policies.knownOnce = make(chan struct{}), sync.Once{}
	same := func(when string) {
		t.Helper()
		now := n.all()
		if len(now) != len(before) || n.count() != 4 || n.changed != 0 {
			t.Fatalf("%s: %+v, was %+v; %d made", when, now, before, n.count())
		}
	}
	for _, c := range all {
		second.reg.put(c)
		second.settle(t, c.Key)
		same("after " + c.ID)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := second.waitKnown(short); err == nil || !strings.Contains(err.Error(), "does not know all containers yet") {
		t.Errorf("policies can be applied: %v", err)
	}
	second.containersKnown()
	for _, x := range r.Targets {
		second.target(t, "half", Key(x.Key), policies.TargetActive)
	}
	for _, c := range all {
		second.wait(t, c.Key)
	}
	same("when all are known")
}

// P1: a policy gives the same rule as a label, as text and field by field.
func TestPolicyAndLabelGiveTheSameRule(t *testing.T) {
	b := newBench(t, &node{}, t.TempDir(), nil)
	const text = "io error=EIO op=fsync+write path=/data/** p=5% times=10 ttl=5m"
	label := policy.ParseLabels(policy.Subject{Labels: map[string]string{"wal.faultgraft.io": text}}, policy.Defaults{})
	all, err := b.readPolicies("f", []byte(manifestOf("p", "  faults:", `  - {name: wal, rule: "`+text+`"}`,
		`  - {name: fields, io: {path: "/data/**", ops: [fsync, write], error: EIO}, trigger: {p: 0.05, times: 10, ttl: 5m}}`)))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := all[0].Rules(policy.Defaults{})
	if err != nil || len(rules) != 2 || len(label.Rules) != 1 {
		t.Fatalf("%+v, %v", rules, err)
	}
	for _, r := range rules {
		want := label.Rules[0]
		want.Name, want.Text, r.Text, r.Policy = r.Name, "", "", ""
		if diff := cmp.Diff(want, r); diff != "" {
			t.Errorf("%s: %s", r.Name, diff)
		}
	}
}
