package policies

import (
	"errors"
	"fmt"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

// ErrNotFound: no policy has that name.
var ErrNotFound = errors.New("no such policy")

// Result is what applying a policy did, or would do.
type Result struct {
	Name string `json:"name"`
	// Action is what became of the policy.
	Action Action `json:"action"`
	// DryRun: the policy is one that does nothing, or nothing was applied.
	DryRun bool   `json:"dryRun,omitempty"`
	Phase  Phase  `json:"phase"`
	Run    uint64 `json:"run,omitempty"`
	Seed   uint64 `json:"seed"`
	// Matching and Selected count containers now; Targets are the selected ones.
	Matching int      `json:"matching"`
	Selected int      `json:"selected"`
	Targets  []Target `json:"targets"`
	// Rules are what each of them gets, at the beginning of a run.
	Rules []policy.Rule `json:"rules"`
}

// Action is what applying did to a policy.
type Action string

// The actions. Configured begins a new run, but where only metadata or `paused`
// are new; Unchanged lets the run go on. A policy that has ended or was stopped
// is Configured by applying it again.
const (
	Created    Action = "created"
	Configured Action = "configured"
	Unchanged  Action = "unchanged"
)

// Target is a container that a policy chose.
type Target struct {
	Key
	Name         string `json:"name"`
	Pod          string `json:"pod,omitempty"`
	PodNamespace string `json:"podNamespace,omitempty"`
}

// Apply makes a policy one of the node's, or changes it; by is who asks. What is
// wrong with it, or not allowed on this node, is an error, and nothing has changed then.
func (s *Store) Apply(p faultpolicy.FaultPolicy, by string) (Result, error) {
	return s.apply(p, by, false)
}

// Preview says what Apply would do.
func (s *Store) Preview(p faultpolicy.FaultPolicy) (Result, error) {
	return s.apply(p, "", true)
}

func (s *Store) apply(p faultpolicy.FaultPolicy, by string, preview bool) (Result, error) {
	hits := s.readHits(p.Metadata.Name)
	defer s.deliver()
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := compile(p, &s.limits)
	if err != nil {
		return Result{}, err
	}
	if x.Policy.Spec.Guard.MaxHits > 0 && s.o.Hits == nil {
		return Result{}, fmt.Errorf("policy %s: guard.maxHits: this agent does not count faults", x.name())
	}
	old := s.policies[x.name()]
	action := Created
	if old != nil {
		if action, err = compare(old, x); err != nil {
			return Result{}, err
		}
	}
	s.inherit(x, old)
	s.fill(x)
	if x.choice.n == 0 && x.Policy.Spec.WhenNothingMatches == faultpolicy.Fail && action != Unchanged {
		return Result{}, fmt.Errorf("policy %s: no container on this node matches its selector (whenNothingMatches: fail); nothing was kept", x.name())
	}
	if preview {
		if action == Unchanged {
			x = old
		}
		r := s.result(x, action)
		r.DryRun = true
		return r, nil
	}
	if action == Unchanged {
		return s.result(old, action), nil
	}
	events, keys := s.out.mark()
	now := s.clock.Now().UTC()
	x.By, x.Applied, x.Hits = by, now, hitCount{Last: hits}
	s.insert(x)
	s.event(x, EventApplied, string(action))
	s.by(by)
	s.startOrGoOn(x, old)
	if err := s.save(); err != nil {
		s.take(x.name())
		if old != nil {
			s.insert(old)
		}
		s.out.reset(events, keys)
		return Result{}, fmt.Errorf("policy %s was not applied: %w", x.name(), err)
	}
	s.kick()
	return s.result(x, action), nil
}

// compare says what applying x over old does.
func compare(old, x *live) (Action, error) {
	same, err := sameAsk(old.Policy, x.Policy)
	if err != nil {
		return "", err
	}
	over := old.Phase == Ended || old.Phase == Stopped
	if same && !over && old.Policy.Spec.Paused == x.Policy.Spec.Paused && sameMetadata(old.Policy.Metadata, x.Policy.Metadata) {
		return Unchanged, nil
	}
	return Configured, nil
}

// inherit gives a policy what it has from the one of that name.
func (s *Store) inherit(x, old *live) {
	seed := x.Policy.Spec.Seed
	switch {
	case seed != nil:
		x.Seed = *seed
	case old != nil && old.Policy.Spec.Seed == nil:
		x.Seed = old.Seed
	default:
		x.Seed = s.o.Random()
	}
	if old != nil {
		x.Run = old.Run
	} else {
		x.Run = s.lastRun(x.name())
	}
}

// startOrGoOn begins a policy that was put in, or lets the run of the one that it replaces go on.
func (s *Store) startOrGoOn(x, old *live) {
	over := old == nil || old.Phase == Ended || old.Phase == Stopped
	if !over {
		if same, err := sameAsk(old.Policy, x.Policy); err == nil && same {
			asked := x.Policy.Spec.Paused != old.Policy.Spec.Paused
			policy, applied, by := x.Policy, x.Applied, x.By
			x.record = old.record
			x.Policy, x.Applied, x.By, x.saved = policy, applied, by, nil
			x.next, x.due, x.watch = old.next, old.due, old.watch
			switch {
			case asked && x.Policy.Spec.Paused && x.Phase != Paused:
				s.pause(x)
			case asked && !x.Policy.Spec.Paused && x.Phase == Paused:
				s.resume(x)
			}
			return
		}
	}
	if old != nil && old.Phase == Running {
		s.touch(old)
	}
	if x.Policy.Spec.Paused {
		s.setPhase(x, Paused, "it was applied as paused")
		return
	}
	s.begin(x)
}

// Delete takes a policy's faults off and forgets it.
func (s *Store) Delete(name, by string) error {
	return s.edit(name, func(x *live) error {
		s.take(name)
		s.rememberRun(x)
		s.event(x, EventDeleted, "")
		s.by(by)
		if x.Phase == Running {
			s.touch(x)
		}
		if err := s.save(); err != nil {
			s.insert(x)
			return err
		}
		return nil
	})
}

// Pause takes a policy's faults off; its time stands until Resume.
func (s *Store) Pause(name, by string) error {
	return s.edit(name, func(x *live) error {
		switch x.Phase {
		case Paused:
			return nil
		case Ended, Stopped:
			return fmt.Errorf("policy %s is %s, there is nothing to pause", name, describePhase(x))
		case Pending, Running, Waiting:
		}
		s.pause(x)
		s.event(x, EventPaused, "")
		s.by(by)
		return s.save()
	})
}

func (s *Store) pause(x *live) { s.endRun(x, Paused, "") }

// Resume lets a paused policy go on with the time that was left, and begins one
// that was stopped anew. It is a new run.
func (s *Store) Resume(name, by string) error {
	hits := s.readHits(name)
	return s.edit(name, func(x *live) error {
		switch x.Phase {
		case Paused:
		case Stopped:
			again, err := compile(x.Policy, &s.limits) // the limits may be others
			if err != nil {
				return err
			}
			x.selector, x.schedule, x.faults, x.Hits = again.selector, again.schedule, again.faults, hitCount{Last: hits}
			s.index.remove(x)
			s.index.add(x)
			s.fill(x)
		case Ended:
			return fmt.Errorf("policy %s has ended; apply it again to begin anew", name)
		case Pending, Running, Waiting:
			return fmt.Errorf("policy %s is %s, not paused", name, describePhase(x))
		}
		s.event(x, EventResumed, "")
		s.by(by)
		s.resume(x)
		return s.save()
	})
}

// resume goes on with a run that has begun, through its stop conditions.
func (s *Store) resume(x *live) {
	if x.TTL == 0 || x.Watch.Before == 0 || x.Watch.Before >= x.TTL {
		s.begin(x)
		return
	}
	x.due = true
	s.setPhase(x, Pending, "")
	s.tryActivate(x)
}

// edit changes a policy, or nothing.
func (s *Store) edit(name string, f func(x *live) error) error {
	defer s.deliver()
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.policies[name]
	if x == nil {
		return fmt.Errorf("%w: %s; `faultgraft ps` lists those that there are", ErrNotFound, name)
	}
	events, keys := s.out.mark()
	old := *x
	if err := f(x); err != nil {
		*x = old
		s.out.reset(events, keys)
		return err
	}
	s.kick()
	return nil
}

func describePhase(x *live) string {
	if x.Reason != "" {
		return fmt.Sprintf("%s (%s)", x.Phase, x.Reason)
	}
	return string(x.Phase)
}

// result describes a policy; s.mu is held.
func (s *Store) result(x *live, a Action) Result {
	r := Result{
		Name: x.name(), Action: a, DryRun: x.Policy.Spec.DryRun, Phase: x.Phase, Run: x.Run, Seed: x.Seed,
		Matching: x.choice.n, Selected: x.choice.len(), Targets: []Target{}, Rules: []policy.Rule{},
	}
	for n := range x.choice.all().all() {
		r.Targets = append(r.Targets, s.containers.list[n].target())
	}
	for _, f := range x.faults {
		f.rule.Policy = x.name()
		r.Rules = append(r.Rules, f.rule)
	}
	return r
}

func (c *container) target() Target {
	return Target{Key: c.key(), Name: c.Name, Pod: c.Pod, PodNamespace: c.PodNamespace}
}
