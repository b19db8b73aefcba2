package fusefs

import (
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// RuleStatus is the state of one rule of a layer.
type RuleStatus struct {
	Name    string    `json:"name"`
	Policy  string    `json:"policy,omitempty"` // that the rule comes from, and which run of it
	Run     uint64    `json:"run,omitempty"`
	Text    string    `json:"text"`
	Matched uint64    `json:"matched"` // operations that the rule was asked about and matched
	Fired   uint64    `json:"fired"`
	Expired bool      `json:"expired"`
	Expires time.Time `json:"expires"`
}

// liveRule is a rule with its state.
type liveRule struct {
	policy.Rule
	id      uint64       // see ruleID
	acts    policy.OpSet // what decide asks it about
	sees    policy.OpSet // what has to reach the layer because of it
	counter *policy.Counter
	bucket  *bucket // of a throttle
	space   *budget // of nospace and quota
	hung    hangTable
	over    chan struct{} // closed when the rule was removed or its time to live is over
	once    sync.Once
	timer   *time.Timer
	kept    *keptRule
}

func newLiveRule(r policy.Rule, start time.Time, k *keptRule) *liveRule {
	v := idleRule(r, start, k)
	v.timer = time.AfterFunc(time.Until(v.counter.Expires()), v.expire) // may run before it is assigned
	return v
}

// idleRule is a rule that is only asked what it could act on; nobody has to end it.
func idleRule(r policy.Rule, start time.Time, k *keptRule) *liveRule {
	v := &liveRule{Rule: r, id: ruleID(&r), acts: actsOn(r.IO), counter: policy.CounterOf(r.Trigger, start, &k.slot.counts), over: make(chan struct{}), kept: k}
	v.sees = v.acts
	if r.IO.Space != nil {
		v.sees = r.IO.Ops | takes
		v.space = &budget{limit: r.IO.Space.Bytes, used: &k.slot.used}
	}
	if r.IO.Throttle != nil {
		v.bucket = newBucket(r.IO.Throttle, start, k.slot)
	}
	return v
}

// expire wakes whoever waits on behalf of the rule.
func (r *liveRule) expire() { r.once.Do(func() { close(r.over) }) }

// end is for a rule that was removed.
func (r *liveRule) end() {
	r.timer.Stop()
	r.expire()
	r.kept.end()
}

// ruleSet is what is in force. It is never changed, only replaced.
type ruleSet struct {
	rules []*liveRule
	ops   policy.OpSet // what any of them sees
	// spaces are those of nospace and quota.
	spaces []*liveRule
}

func (s *ruleSet) end() {
	for _, r := range s.rules {
		r.end()
	}
}

// could reports whether a rule that is alive may act on one of ops at one of
// paths, whatever its trigger, its filters of callers and requests, its delay
// and its pulses say.
func (s *ruleSet) could(ops policy.OpSet, paths []string) bool {
	if s.ops&ops == 0 {
		return false
	}
	now := time.Now()
	for _, r := range s.rules {
		if r.sees&ops == 0 || r.counter.Expired(now) {
			continue
		}
		if _, ok := match(r, r.IO.Ops, paths); ok {
			return true
		}
	}
	return false
}

// SetRules replaces the layer's rules at once; start is when the new ones
// became active. A rule that is equal to a current one keeps its counters and
// its start. Who waits because of a rule that is gone goes on at once, and what
// the kernel has cached and a new rule could act on is dropped, before SetRules
// returns; if the kernel does not let go of it within two seconds, that is
// logged and goes on in the background.
func (l *Layer) SetRules(rules []policy.Rule, start time.Time) error {
	for i := range rules {
		if err := checkRule(&rules[i]); err != nil {
			return fmt.Errorf("fault layer of %q: rule %q: %w", l.o.Prefix, rules[i].FullName(), err)
		}
	}
	l.setting.Lock()
	defer l.setting.Unlock()
	if l.state.Load() == stateClosed {
		return fmt.Errorf("fault layer of %q: its mount is gone", l.o.Prefix)
	}
	old := l.rules.Load()
	left := slices.Clone(old.rules)
	next := &ruleSet{}
	fresh := &ruleSet{}
	for _, r := range rules {
		i := slices.IndexFunc(left, func(o *liveRule) bool { return reflect.DeepEqual(o.Rule, r) })
		var v *liveRule
		if i >= 0 {
			v = left[i]
			left = slices.Delete(left, i, i+1)
		} else {
			k, began := l.keptRules.rule(r, start)
			v = newLiveRule(r, began, k)
			fresh.add(v)
		}
		next.add(v)
	}
	l.rules.Store(next)
	for _, r := range left {
		r.end()
	}
	l.keptRules.settle()
	if l.state.Load() == stateClosed { // the mount went while we were at it: nobody else ends these
		next.end()
		return nil
	}
	l.coming.Store(&ruleSet{})
	if next.ops&cacheable != 0 {
		l.retire()
	}
	l.moves.tell() // rules for which somebody waits may have gone
	l.dropCaches(fresh)
	return nil
}

func (s *ruleSet) add(r *liveRule) {
	s.rules = append(s.rules, r)
	s.ops |= r.sees
	if r.space != nil {
		s.spaces = append(s.spaces, r)
	}
}

// Rules tells the state of the rules, in their order.
func (l *Layer) Rules() []RuleStatus {
	now := time.Now()
	set := l.rules.Load()
	out := make([]RuleStatus, 0, len(set.rules))
	for _, r := range set.rules {
		out = append(out, RuleStatus{
			Name: r.Name, Policy: r.Policy, Run: r.Run, Text: r.Text, Matched: r.counter.Matched(), Fired: r.counter.Fired(),
			Expired: r.counter.Expired(now), Expires: r.counter.Expires(),
		})
	}
	return out
}
