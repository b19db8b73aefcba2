package policies

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

// Status is a policy and what has become of it.
type Status struct {
	Name   string `json:"name"`
	Phase  Phase  `json:"phase"`
	Reason string `json:"reason,omitempty"`
	// Since is when phase and reason last changed.
	Since time.Time `json:"since"`
	// Run is the number of the run, 0 before the first; TTL is how long it lives, and Left what is left of that, in whole seconds.
	Run  uint64               `json:"run"`
	TTL  faultpolicy.Duration `json:"ttl,omitempty"`
	Left faultpolicy.Duration `json:"left,omitempty"`
	// Next is when the schedule is due.
	Next    time.Time `json:"next,omitzero"`
	Seed    uint64    `json:"seed"`
	By      string    `json:"by,omitempty"`
	Applied time.Time `json:"applied"`
	// Matching and Selected count containers now.
	Matching int `json:"matching"`
	Selected int `json:"selected"`
	// Hits are the faults injected since it was applied, or resumed after it was stopped.
	Hits uint64 `json:"hits"`
	// States counts the targets by state.
	States map[TargetState]int `json:"states"`
	// Targets are the selected containers and those that were; in what Get gives only.
	Targets []TargetStatus          `json:"targets,omitempty"`
	Policy  faultpolicy.FaultPolicy `json:"policy"`
}

// TargetState is where a container of a policy is in its life.
type TargetState string

// The states of a target.
const (
	TargetPending   TargetState = "pending"   // it is chosen, and nothing was done yet
	TargetGrafting  TargetState = "grafting"  // the faults are being put in place
	TargetActive    TargetState = "active"    // they are in place
	TargetPaused    TargetState = "paused"    // they were taken off until the policy is resumed
	TargetReverting TargetState = "reverting" // they are being taken off
	TargetReverted  TargetState = "reverted"  // the container is as it was before
	TargetFailed    TargetState = "failed"    // they could not be put in place, or not be taken off
)

// TargetStatus is what became of a policy in one container.
type TargetStatus struct {
	Target
	Policy string      `json:"policy"`
	Run    uint64      `json:"run,omitempty"`
	State  TargetState `json:"state"`
	Reason string      `json:"reason,omitempty"`
	// Since is when state and reason last changed.
	Since time.Time `json:"since"`
	// PauseMS is how long the container's processes stood still for it in the last graft or ungraft, milliseconds.
	PauseMS float64 `json:"pauseMs,omitempty"`
	// Hits are the faults injected in it in this run.
	Hits uint64 `json:"hits,omitempty"`
}

// Report takes what became of a policy in a container. Target, Policy and, if it
// is zero, Since are filled in.
func (s *Store) Report(k Key, policy string, st TargetStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, _, known := s.containers.get(k)
	if !known {
		return
	}
	if s.policies[policy] == nil && st.State == TargetReverted { // nobody will ask
		delete(c.reported, policy)
		return
	}
	s.report(c, policy, st)
}

func (s *Store) report(c *container, policy string, st TargetStatus) {
	st.Target, st.Policy = c.target(), policy
	if st.Since.IsZero() {
		st.Since = s.clock.Now().UTC()
		if old := c.reported[policy]; old.State == st.State && old.Reason == st.Reason && old.Run == st.Run {
			st.Since = old.Since
		}
	}
	if c.reported == nil {
		c.reported = map[string]TargetStatus{}
	}
	c.reported[policy] = st
}

// List gives all policies by name, without their targets; each as it is when its turn comes.
func (s *Store) List() []Status {
	hits := s.allHits()
	s.mu.Lock()
	order := slices.Clone(s.order)
	s.mu.Unlock()
	all := make([]Status, 0, len(order))
	for _, x := range order { // the lock is free in between: the start of a container may wait for it
		s.mu.Lock()
		if x = s.policies[x.name()]; x != nil {
			all = append(all, s.status(x, hits, false))
		}
		s.mu.Unlock()
	}
	return all
}

// Get gives one policy with its targets.
func (s *Store) Get(name string) (Status, error) {
	hits := map[string]uint64{name: s.readHits(name)}
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.policies[name]
	if x == nil {
		return Status{}, fmt.Errorf("%w: %s; `faultgraft ps` lists those that there are", ErrNotFound, name)
	}
	return s.status(x, hits, true), nil
}

// Targets gives what became of all policies in one container, by name.
func (s *Store) Targets(k Key) []TargetStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, n, known := s.containers.get(k)
	if !known {
		return nil
	}
	var all []TargetStatus
	for _, x := range s.order {
		if st, ok := s.targetStatus(x, c, n); ok {
			all = append(all, st)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.reported)) {
		if s.policies[name] == nil { // deleted, and not reverted yet
			all = append(all, c.reported[name])
		}
	}
	slices.SortStableFunc(all, func(a, b TargetStatus) int { return strings.Compare(a.Policy, b.Policy) })
	return all
}

func (s *Store) status(x *live, hits map[string]uint64, targets bool) Status {
	count := x.Hits
	count.see(hits[x.name()])
	st := Status{
		Name: x.name(), Phase: x.Phase, Reason: x.Reason, Since: x.Since, Run: x.Run, Seed: x.Seed, By: x.By, Applied: x.Applied,
		Matching: x.choice.n, Selected: x.choice.len(), Hits: count.Total, States: map[TargetState]int{}, Policy: x.Policy,
	}
	if x.Phase == Running || x.Phase == Paused && x.TTL > 0 {
		left := max(0, x.rest(&s.clock)).Round(time.Second)
		st.TTL, st.Left = faultpolicy.Duration(x.TTL), faultpolicy.Duration(left)
	}
	if x.Phase == Waiting || x.Phase == Running {
		st.Next = x.next
	}
	for n, c := range s.containers.list {
		if c == nil {
			continue
		}
		one, ok := s.targetStatus(x, c, slot(n))
		if !ok {
			continue
		}
		st.States[one.State]++
		if targets {
			st.Targets = append(st.Targets, one)
		}
	}
	slices.SortFunc(st.Targets, func(a, b TargetStatus) int {
		return strings.Compare(a.Namespace+"/"+a.Pod+"/"+a.Name+"/"+a.ID, b.Namespace+"/"+b.Pod+"/"+b.Name+"/"+b.ID)
	})
	return st
}

// targetStatus is what was reported of a container, or pending if it is chosen and nothing was.
func (s *Store) targetStatus(x *live, c *container, n slot) (TargetStatus, bool) {
	st, reported := c.reported[x.name()]
	chosen := x.choice.has(n)
	switch {
	case reported && (st.Run == x.Run || st.Run == 0 || !chosen):
		return st, true
	case !chosen:
		return st, false
	}
	st = TargetStatus{Target: c.target(), Policy: x.name(), Run: x.Run, State: TargetPending, Since: x.Since}
	if x.Policy.Spec.DryRun {
		st.Reason = "dry run: nothing is done"
	}
	if x.Phase == Paused {
		st.State = TargetPaused
	}
	return st, true
}

// readHits asks how many faults a policy has injected; s.mu must not be held.
func (s *Store) readHits(name string) uint64 {
	if s.o.Hits == nil {
		return 0
	}
	n, err := s.o.Hits(name)
	if err != nil {
		s.log.Warn("cannot count the faults of a policy", "policy", name, "err", err)
		s.mu.Lock()
		defer s.mu.Unlock()
		if x := s.policies[name]; x != nil {
			return x.Hits.Last
		}
	}
	return n
}

func (s *Store) allHits() map[string]uint64 {
	if s.o.Hits == nil {
		return nil
	}
	s.mu.Lock()
	names := slices.Collect(maps.Keys(s.policies))
	s.mu.Unlock()
	hits := make(map[string]uint64, len(names))
	for _, name := range names {
		hits[name] = s.readHits(name)
	}
	return hits
}

// Known reports whether there is a policy of that name.
func (s *Store) Known(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policies[name] != nil
}

// Phase is a policy's, with its reason; "deleted" if there is none of that name.
func (s *Store) Phase(name string) (Phase, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.policies[name]
	if x == nil {
		return "deleted", ""
	}
	return x.Phase, x.Reason
}
