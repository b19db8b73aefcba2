package policies

import (
	"fmt"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// Rules gives the rules that policies ask of a container now, by the names of
// the policies, in the order of their faults. Each has Policy and Run. Its Text stays the same
// over time, its Trigger is what is left of it now and must not be aged again:
// of the run, for all containers alike, and of the fault itself, since the
// container's task got it. since says when that was, from the caller's memory
// (zero: it has not got it yet); nil: it has got none yet.
//
// required: a policy asks that the container does not start without its rules.
// reasons say what is asked for and yet not among the rules, one line each.
func (s *Store) Rules(k Key, since func(policy string, run uint64, rule string) time.Time) (rules []policy.Rule, required bool, reasons []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, n, known := s.containers.get(k)
	if !known {
		return nil, false, nil
	}
	for _, x := range s.order {
		if !x.choice.has(n) || x.Policy.Spec.DryRun {
			continue
		}
		if x.Phase == Pending && x.Policy.Spec.Required {
			required = true
			reasons = append(reasons, fmt.Sprintf("policy %s is required, but %s", x.name(), describePhase(x)))
		}
		if !x.acts(&s.clock) {
			continue
		}
		required = required || x.Policy.Spec.Required
		own := x.rules(&s.clock, s.containers.hashes[n], since)
		if len(rules)+len(own) > policy.MaxRules {
			why := fmt.Sprintf("the container would have more than %d rules; those of this policy are not applied", policy.MaxRules)
			reasons = append(reasons, "policy "+x.name()+": "+why)
			s.report(c, x.name(), TargetStatus{Run: x.Run, State: TargetFailed, Reason: why})
			continue
		}
		rules = append(rules, own...)
	}
	return rules, required, reasons
}

// Has reports whether any policy has chosen the container, acting or not: cheap,
// for the hooks of containers that nobody asks for faults in.
func (s *Store) Has(k Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, n, known := s.containers.get(k)
	if !known {
		return false
	}
	for _, x := range s.order {
		if x.choice.has(n) {
			return true
		}
	}
	return false
}
