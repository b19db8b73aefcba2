package policies

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/limits"
	"github.com/faultgraft/faultgraft/policy/schedule"
	"github.com/faultgraft/faultgraft/policy/selection"
)

// live is a policy of the node.
type live struct {
	record
	saved    json.RawMessage // of the record as it is in the file; nil: to be written anew
	selector *selection.Selector
	schedule *schedule.Schedule
	faults   []fault
	choice   *choice
	// next is when the schedule is due.
	next time.Time
	// due: a run of the schedule waits for its stop conditions to be green.
	due   bool
	watch *watch
	// seen is the epoch in which a container was last matched with it.
	seen uint64
}

// broken is a policy that this agent cannot make act.
func broken() *live { return &live{} }

// fault is a rule of a policy, and when its container may have it.
type fault struct {
	rule policy.Rule // as for a container that gets it at the beginning of a run
	// own is its trigger without the policy's timing: it counts from when a container gets the
	// rule. Its TTL is 0 if the fault has none.
	own policy.Trigger
}

// compile checks a policy against the limits and makes what acts. The record is
// not filled in, but for the policy.
func compile(p faultpolicy.FaultPolicy, l *limits.Limits) (*live, error) {
	p, err := clone(p)
	if err != nil {
		return nil, err
	}
	p.SetDefaults()
	if err := p.Check(); err != nil {
		return nil, err
	}
	x := &live{record: record{Policy: p}}
	spec := &x.Policy.Spec
	if x.selector, err = selection.CompileSelector(spec.Selector); err != nil {
		return nil, fmt.Errorf("policy %s: selector: %w", x.name(), err)
	}
	if spec.Timing.Schedule != "" {
		if spec.Timing.TTL == 0 {
			return nil, fmt.Errorf("policy %s: a schedule needs timing.ttl, the time that each run takes", x.name())
		}
		if x.schedule, err = schedule.Parse(spec.Timing.Schedule, spec.Timing.TimeZone); err != nil {
			return nil, fmt.Errorf("policy %s: %w", x.name(), err)
		}
	}
	if x.faults, err = compileFaults(&x.Policy, l); err != nil {
		return nil, err
	}
	return x, nil
}

// clone makes a copy that shares nothing with what the caller has.
func clone(p faultpolicy.FaultPolicy) (c faultpolicy.FaultPolicy, err error) {
	b, err := json.Marshal(p)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	return c, err
}

func compileFaults(p *faultpolicy.FaultPolicy, l *limits.Limits) ([]fault, error) {
	defaults := l.Defaults(limits.Policies)
	if ttl := time.Duration(p.Spec.Timing.TTL); ttl > 0 {
		if err := l.AllowsTTL(limits.Policies, "policy "+p.Metadata.Name, ttl); err != nil {
			return nil, err
		}
	}
	rules, err := p.Rules(defaults)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", p.Metadata.Name, err)
	}
	for i := range rules {
		if err := l.AllowsRule(limits.Policies, &rules[i]); err != nil {
			return nil, fmt.Errorf("policy %s: %w", p.Metadata.Name, err)
		}
	}
	// The same faults without the policy's timing, so that the rest is their own. A ttl
	// that nobody would write stands for none.
	const none = time.Duration(1<<62 + 1)
	bare := *p
	bare.Spec.Timing = faultpolicy.Timing{}
	own, err := bare.Rules(policy.Defaults{TTL: none, MaxTTL: none})
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", p.Metadata.Name, err)
	}
	if len(own) != len(rules) {
		return nil, errors.New("policies: a policy's rules depend on its timing")
	}
	faults := make([]fault, 0, len(rules))
	for i, r := range rules {
		t := own[i].Trigger
		if t.TTL == none {
			t.TTL = 0
		}
		faults = append(faults, fault{rule: r, own: t})
	}
	return faults, nil
}

// sameAsk reports whether two policies ask for the same, but for being paused
// and for what names and describes them.
func sameAsk(a, b faultpolicy.FaultPolicy) (bool, error) {
	a.Metadata, b.Metadata = faultpolicy.Metadata{}, faultpolicy.Metadata{}
	a.Spec.Paused, b.Spec.Paused = false, false
	ja, err := json.Marshal(a)
	if err != nil {
		return false, err
	}
	jb, err := json.Marshal(b)
	return string(ja) == string(jb), err
}

func sameMetadata(a, b faultpolicy.Metadata) bool {
	return a.Name == b.Name && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations)
}

// ttl is how long a run of the policy lives.
func (x *live) ttl(l *limits.Limits) time.Duration {
	if t := time.Duration(x.Policy.Spec.Timing.TTL); t > 0 {
		return min(t, l.MaxTTL(limits.Policies))
	}
	return l.Defaults(limits.Policies).TTL
}

// rest is what is left of a run.
func (x *live) rest(c *Clock) time.Duration { return x.TTL - x.Watch.age(c) }

// acts reports whether chosen containers are to have the faults now.
func (x *live) acts(c *Clock) bool {
	return x.Phase == Running && !x.Policy.Spec.DryRun && x.rest(c) > 0
}

// rules gives the rules of the policy for a container that got them first at
// since, as they are now; those that are over for it are left out.
func (x *live) rules(c *Clock, identity uint64, since func(string, uint64, string) time.Time) []policy.Rule {
	age := x.Watch.age(c)
	rest := x.TTL - age
	timing := &x.Policy.Spec.Timing
	out := make([]policy.Rule, 0, len(x.faults))
	for i := range x.faults {
		f := &x.faults[i]
		r := f.rule
		r.Policy, r.Run = x.name(), x.Run
		var had time.Duration
		if since != nil {
			if t := since(r.Policy, r.Run, r.Name); !t.IsZero() {
				had = max(0, c.Now().Sub(t))
			}
		}
		t := f.own
		ownTTL := t.TTL
		if ownTTL == 0 {
			t.TTL = rest + had
		}
		if t.Delay == 0 && t.Active == 0 && t.Idle == 0 {
			ttl := t.TTL - had
			t.Delay, t.Active, t.Idle = time.Duration(timing.Delay), time.Duration(timing.Active), time.Duration(timing.Idle)
			t = t.Aged(age)
			t.TTL = ttl
		} else {
			t = t.Aged(had)
		}
		t.TTL = min(t.TTL, rest)
		if t.TTL <= 0 {
			continue
		}
		r.Trigger = t
		r.EnsureSeed(func() uint64 { return selection.Rank(x.Seed+uint64(i), identity) })
		out = append(out, r)
	}
	return slices.Clip(out)
}
