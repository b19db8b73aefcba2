package plugin

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/limits"
	"github.com/faultgraft/faultgraft/policy/selection"
)

// policySide is how the loop and the policies of the node know of each other:
// the loop says what containers there are, asks what they must have, and says
// what came of it.
type policySide struct {
	store *policies.Store
	hits  *hitReader
	// known is closed when the containers that were there when the agent started have been
	// seen. Before that nothing is known of shares: half of the containers seen so far is not half of the containers.
	known     chan struct{}
	knownOnce sync.Once
}

// notKnown is why a policy does nothing yet.
const notKnown = "the agent has just started and does not know all containers yet; try again in a few seconds"

// knownAfter is when policies act in any case, also if containerd does not answer.
const knownAfter = time.Minute

func (p *policySide) ready() bool {
	select {
	case <-p.known:
		return true
	default:
		return false
	}
}

// containersKnown lets policies act.
func (r *reconciler) containersKnown() {
	r.policies.knownOnce.Do(func() {
		close(r.policies.known)
		atStart.Pass("known")
		r.lookAtAll()
	})
}

// holdBack reports whether a container is left as it is until all containers are
// known: policies had put rules there before the agent started. One that has none gets none yet.
func (r *reconciler) holdBack(c *Container, a *asked) bool {
	if r.policies == nil || r.policies.ready() {
		return false
	}
	a.rules, a.runs = nil, nil
	if a.required {
		a.reasons = append(a.reasons, notKnown)
	}
	return c.PID != 0 && slices.ContainsFunc(r.memory.rules(c.Key, c.PID, c.StartTime), func(m appliedRule) bool { return m.Policy != "" })
}

// openPolicies makes the store of the state directory the loop's.
func (r *reconciler) openPolicies(o policies.Options) error {
	hits := &hitReader{ledger: r.ledger}
	o.Changed = func(keys []policies.Key) {
		for _, k := range keys {
			r.queue.add(Key(k), false)
		}
	}
	if r.ledger != nil {
		o.Hits = hits.of
	}
	o.Limits = func() limits.Limits { return r.settings.Load().limits }
	o.Event = r.policyEvent
	o.Log = r.log
	store, err := policies.Open(r.stateDir, o)
	if err != nil {
		return err
	}
	r.policies = &policySide{store: store, hits: hits, known: make(chan struct{})}
	return nil
}

// policyEvent writes what happens to a policy to the node's event log.
func (r *reconciler) policyEvent(e policies.Event) {
	l, err := keeper.OpenEventLog(r.stateDir)
	if err == nil {
		err = l.Write(keeper.Event{Time: e.Time, Type: keeper.EventPolicy, Policy: e.Policy, Run: e.Run, Action: string(e.Type), Who: e.By, By: keeper.OriginPolicy, Message: e.Reason})
		if cerr := l.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		r.log.Error("the event log cannot be written", "policy", e.Policy, "event", e.Type, "err", err)
	}
	r.log.Info("policy "+string(e.Type), "policy", e.Policy, "run", e.Run, "who", e.By, "reason", e.Reason)
}

// hitReader counts the faults of policies. Many policies are asked about at once:
// keepers are asked at most twice a second.
type hitReader struct {
	ledger *faultLedger
	mu     sync.Mutex
	at     time.Time
	counts map[string]uint64
	err    error
}

func (h *hitReader) of(name string) (uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.counts == nil || time.Since(h.at) > 500*time.Millisecond {
		ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
		_, h.err = h.ledger.collect(ctx)
		cancel()
		h.counts = h.ledger.byPolicy()
		h.at = time.Now()
	}
	return h.counts[name], h.err
}

// bootedAt is when this machine was started, by the wall clock of now.
var bootedAt = sync.OnceValue(func() time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Time{} // it needs nothing, and does not fail on Linux
	}
	return time.Now().Add(-time.Duration(ts.Nano()))
})

// userHZ is the unit of the times in /proc/PID/stat, the same on all architectures that we run on (proc(5), USER_HZ).
const userHZ = 100

// started is when the container's task was started; zero: it has none.
func (c *Container) started() time.Time {
	if c.PID == 0 || c.StartTime == 0 {
		return time.Time{}
	}
	return bootedAt().Add(time.Duration(c.StartTime) * (time.Second / userHZ))
}

// selected is the container as selectors look at it. One that says
// enable=false counts as protected: no policy may choose it.
func (c *Container) selected(disabled bool, named []string) selection.Container {
	return selection.Container{
		Namespace: c.Namespace, ID: c.ID, Name: c.Name, Pod: c.Pod, PodNamespace: c.PodNamespace, Image: c.Image,
		Labels: c.meta.labels, Annotations: c.meta.annotations, PodLabels: c.meta.podLabels, PodAnnotations: c.meta.podAnnotations,
		Started: c.started(), Protected: c.Protected != "" || disabled, Policies: named,
	}
}

// asked is what policies ask of a container.
type asked struct {
	rules []policy.Rule
	// runs are the runs of the policies that the rules are from.
	runs map[string]uint64
	// required: it must not start without them.
	required bool
	// reasons say what is asked for and yet not among the rules.
	reasons []string
}

// ask tells the store of a container, and gives what policies ask of it now.
// c.StartTime and c.Protected are filled in.
func (r *reconciler) ask(c *Container, result policy.Result) asked {
	if r.policies == nil {
		return asked{}
	}
	r.policies.store.Observe(c.selected(result.Disabled, result.Policies))
	if c.PID == 0 {
		return asked{}
	}
	applied := r.memory.rules(c.Key, c.PID, c.StartTime)
	since := func(policy string, run uint64, rule string) time.Time {
		for _, a := range applied {
			if a.Policy == policy && a.Run == run && a.Name == rule {
				return a.Since
			}
		}
		return time.Time{}
	}
	a := asked{runs: map[string]uint64{}}
	a.rules, a.required, a.reasons = r.policies.store.Rules(policies.Key(c.Key), since)
	for _, rule := range a.rules {
		a.runs[rule.Policy] = rule.Run
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec := r.records[c.Key]; rec != nil {
		rec.c.Required = a.required // known before anything is done: that may take longer than the start can wait
	}
	return a
}

// wanted reports whether a policy asks for anything in a container that was just
// seen. It is called while the start waits.
func (r *reconciler) wanted(c Container) bool {
	if r.policies == nil {
		return false
	}
	r.examine(&c)
	var labels policy.Result
	if hasRules(c.Labels) {
		labels = allowedRules(&c, &r.settings.Load().limits, nil)
		if len(labels.Policies) > 0 && !c.annotated["policy"+domain] && !c.annotated["policy"+domain+"/pod"] {
			return false // an image may have brought the label along: the loop looks at that first
		}
	}
	a := r.ask(&c, labels)
	return len(a.rules) > 0 || a.required
}

// unknownPolicies are those of policy.faultgraft.io that the node does not know, as problems of the label.
func (r *reconciler) unknownPolicies(c *Container, names []string) (problems []*policy.SyntaxError) {
	for _, n := range names {
		if r.policies != nil && r.policies.store.Known(n) {
			continue
		}
		problems = append(problems, &policy.SyntaxError{
			Kind: "label", Source: "policy" + domain, Text: n, Message: fmt.Sprintf("this node knows no policy %q", n),
			Fix: "apply it with faultgraft apply, or name one that `faultgraft ps` shows",
		})
	}
	return problems
}

// begin reports which policies are about to be put in place in a container, and which to be taken off.
func (r *reconciler) begin(c *Container, a asked) {
	if r.policies == nil || c.PID == 0 {
		return
	}
	done := map[ruleKey]bool{}
	leaving := map[string]uint64{}
	for _, m := range r.memory.rules(c.Key, c.PID, c.StartTime) {
		done[m.key()] = m.Done || m.Kernel
		if m.Policy != "" && a.runs[m.Policy] != m.Run {
			leaving[m.Policy] = m.Run
		}
	}
	for p, run := range leaving {
		r.tell(c, p, policies.TargetStatus{Run: run, State: policies.TargetReverting})
	}
	for _, rule := range a.rules {
		if !done[keyOf(rule)] {
			r.tell(c, rule.Policy, policies.TargetStatus{Run: rule.Run, State: policies.TargetGrafting})
		}
	}
}

func (r *reconciler) tell(c *Container, name string, st policies.TargetStatus) {
	st.PauseMS = cmp.Or(c.pausedMs, c.PauseMs) // of the last time
	r.policies.store.Report(policies.Key(c.Key), name, st)
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.records[c.Key]
	if rec == nil {
		return
	}
	if st.State == policies.TargetReverted || st.State == policies.TargetPaused {
		delete(rec.told, name)
		return
	}
	if rec.told == nil {
		rec.told = map[string]uint64{}
	}
	rec.told[name] = st.Run
}

// report says what came of policies in a container.
func (r *reconciler) report(c *Container, a asked, out outcome) {
	if r.policies == nil {
		return
	}
	r.mu.Lock()
	var before map[string]uint64
	if rec := r.records[c.Key]; rec != nil {
		before = map[string]uint64{}
		for p, run := range rec.told {
			before[p] = run
		}
	}
	r.mu.Unlock()
	for p, run := range a.runs {
		st := c.outcomeOf(p, a.rules, out)
		st.Run = run
		r.tell(c, p, st)
	}
	for p, run := range before {
		if _, still := a.runs[p]; still {
			continue
		}
		st := policies.TargetStatus{Run: run, State: policies.TargetReverted, Hits: c.hits[p]}
		switch phase, reason := r.policies.store.Phase(p); {
		case out.state == StateFailed:
			st.State, st.Reason = policies.TargetFailed, out.reason
		case c.PID == 0:
			st.Reason = "its task has ended"
		case phase == policies.Paused:
			st.State = policies.TargetPaused
		default:
			st.Reason = strings.TrimSuffix(fmt.Sprintf("the policy is %s: %s", phase, reason), ": ")
		}
		r.tell(c, p, st)
	}
}

// outcomeOf is what came of one policy whose rules the container is to have.
func (c *Container) outcomeOf(name string, rules []policy.Rule, out outcome) policies.TargetStatus {
	inPlace, over, all := 0, 0, 0
	for _, rule := range rules {
		if rule.Policy != name {
			continue
		}
		all++
		switch k := keyOf(rule); {
		case slices.Contains(c.inPlace, k):
			inPlace++
		case slices.Contains(c.over, k):
			over++
		}
	}
	switch {
	case inPlace == all:
		return policies.TargetStatus{State: policies.TargetActive}
	case out.state == StatePending:
		return policies.TargetStatus{State: policies.TargetPending, Reason: out.reason}
	case out.state == StateFailed:
		return policies.TargetStatus{State: policies.TargetFailed, Reason: out.reason}
	case len(c.refusals) > 0:
		return policies.TargetStatus{State: policies.TargetFailed, Reason: strings.Join(c.refusals, "; ")}
	case over == all:
		return policies.TargetStatus{State: policies.TargetReverted, Reason: "its faults are over for this task: they were recovered, or their own ttl has ended", Hits: c.hits[name]}
	case inPlace+over == all:
		return policies.TargetStatus{State: policies.TargetActive, Reason: fmt.Sprintf("%d of its %d faults are over for this task", over, all)}
	}
	return policies.TargetStatus{State: policies.TargetFailed, Reason: out.reason}
}

// count adds the faults of rules that are no more to those of their policies.
func (c *Container) count(rules []keeper.RuleStatus) {
	for _, rule := range rules {
		if rule.Policy == "" {
			continue
		}
		if c.hits == nil {
			c.hits = map[string]uint64{}
		}
		c.hits[rule.Policy] += rule.Fired
	}
}
