package policies

import (
	"container/heap"
	"slices"

	"github.com/faultgraft/faultgraft/policy/selection"
)

// Observe takes what the agent knows of a container: all of it, each time. It
// reports whether what its policies ask of it may have changed; Options.Changed
// is told of others that are chosen or dropped for it. The maps of c must not
// be changed afterwards.
func (s *Store) Observe(c selection.Container) (changed bool) {
	defer s.deliver()
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, n, known := s.containers.get(Key{c.Namespace, c.ID}); known && old.Identity() != c.Identity() {
		changed = s.leaveAll(n) // its place in the order is another one
	}
	n, news := s.containers.put(c, &s.limits)
	if !news {
		return changed
	}
	if s.match(n) {
		changed = true
	}
	if s.unsaved {
		s.saveOrTell()
	}
	return changed
}

// Forget drops a container that is gone.
func (s *Store) Forget(k Key) {
	defer s.deliver()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, n, known := s.containers.get(k); known {
		s.leaveAll(n)
		s.containers.drop(n)
	}
}

// LimitsChanged asks for the node's limits again. Policies that they do not allow any more are stopped.
func (s *Store) LimitsChanged() {
	defer s.deliver()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.o.Limits != nil {
		s.limits = s.o.Limits()
	}
	for _, x := range s.order {
		if x.Phase == Ended || x.Phase == Stopped {
			continue
		}
		if _, err := compileFaults(&x.Policy, &s.limits); err != nil {
			s.halt(x, "the node's limits have changed: "+err.Error())
			continue
		}
		if most := x.ttl(&s.limits); x.Phase == Running && x.TTL > most {
			x.TTL, x.saved, s.unsaved = most, nil, true
			s.touch(x)
			s.kick()
		}
	}
	for n, c := range s.containers.list {
		if c == nil {
			continue
		}
		if c.judge(&s.limits); s.match(slot(n)) {
			s.out.keys = append(s.out.keys, c.key())
		}
	}
	if s.unsaved {
		s.saveOrTell()
	}
}

// match brings one container's place in all policies up to date; true: its rules may have changed.
func (s *Store) match(n slot) (changed bool) {
	c := s.containers.list[n]
	s.epoch++
	for x := range s.index.candidates(&c.Container) {
		if x.seen != s.epoch {
			x.seen = s.epoch
			changed = s.matchOne(x, n) || changed
		}
	}
	for _, name := range c.Policies {
		if x := s.policies[name]; x != nil && x.seen != s.epoch {
			x.seen = s.epoch
			changed = s.matchOne(x, n) || changed
		}
	}
	for _, x := range s.order {
		if x.seen != s.epoch && x.choice.matches(n) {
			changed = s.place(x, n, false) || changed
		}
	}
	return changed
}

// matchOne does so in one policy.
func (s *Store) matchOne(x *live, n slot) (changed bool) {
	c := s.containers.list[n]
	return s.place(x, n, s.matches(x, c))
}

func (s *Store) matches(x *live, c *container) bool {
	if !c.eligible || x.selector == nil {
		return false
	}
	if slices.Contains(c.Policies, x.name()) {
		return true
	}
	ok, until := x.selector.Matches(&c.Container, s.clock.Now())
	s.containers.wake(until, x.name(), c.key())
	return ok
}

// place puts a container into the choice of a policy, or takes it out.
func (s *Store) place(x *live, n slot, in bool) (changed bool) {
	if x.choice.matches(n) == in {
		return false
	}
	acts, was := x.acts(&s.clock), x.choice.has(n)
	others := func(m slot) {
		if acts {
			s.out.keys = append(s.out.keys, s.containers.list[m].key())
		}
	}
	if in {
		x.choice.add(&s.containers, n, others)
		s.tryActivate(x)
	} else {
		x.choice.remove(&s.containers, n, others)
	}
	return was != x.choice.has(n)
}

// leaveAll takes a container out of all choices.
func (s *Store) leaveAll(n slot) (changed bool) {
	for _, x := range s.order {
		if x.choice.matches(n) {
			changed = s.place(x, n, false) || changed
		}
	}
	return changed
}

// fill makes the choice of a policy that is new.
func (s *Store) fill(x *live) {
	x.choice = newChoice(&x.Policy.Spec, x.Seed)
	var matching []slot
	for n, c := range s.containers.list {
		if c != nil && s.matches(x, c) {
			matching = append(matching, slot(n))
		}
	}
	x.choice.fill(&s.containers, matching)
}

// grow looks at containers whose age has come.
func (s *Store) grow() {
	now := s.clock.Now()
	for len(s.containers.ages) > 0 && !s.containers.ages[0].at.After(now) {
		a := heap.Pop(&s.containers.ages).(age)
		x := s.policies[a.policy]
		c, n, known := s.containers.get(a.key)
		if x != nil && known && s.matchOne(x, n) {
			s.out.keys = append(s.out.keys, c.key())
		}
	}
}
