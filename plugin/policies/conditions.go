package policies

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

// watch runs the probes of one policy's stop conditions, from before a run
// begins until it ends.
type watch struct {
	policy string
	cancel context.CancelFunc
	// good says of each condition whether its last probe was green.
	good []bool
}

// green reports whether all conditions are.
func (w *watch) green() bool {
	if w == nil {
		return false
	}
	for _, ok := range w.good {
		if !ok {
			return false
		}
	}
	return true
}

// watched reports whether a policy's stop conditions matter now.
func (x *live) watched() bool {
	if len(x.Policy.Spec.Guard.StopConditions) == 0 || x.Policy.Spec.DryRun {
		return false
	}
	return x.Phase == Running || x.Phase == Pending && (x.due || x.schedule == nil && x.choice.len() > 0)
}

// tend starts the probes that are needed, and ends the others.
func (s *Store) tend(ctx context.Context, probes *sync.WaitGroup) {
	for _, x := range s.order {
		switch wanted := x.watched(); {
		case wanted && x.watch == nil && ctx.Err() == nil:
			s.startWatch(ctx, probes, x)
		case !wanted:
			x.watch = nil
		}
	}
	for w := range s.watches {
		if x := s.policies[w.policy]; x == nil || x.watch != w {
			w.cancel()
			delete(s.watches, w)
		}
	}
}

func (s *Store) startWatch(ctx context.Context, probes *sync.WaitGroup, x *live) {
	conditions := x.Policy.Spec.Guard.StopConditions
	w := &watch{policy: x.name(), good: make([]bool, len(conditions))}
	ctx, w.cancel = context.WithCancel(ctx)
	x.watch = w
	s.watches[w] = true
	if x.Phase == Pending {
		s.event(x, EventConditions, "the stop conditions are being checked")
	}
	for i := range conditions {
		probes.Go(func() { s.probe(ctx, w, i, conditions[i]) })
	}
}

// probe looks at one condition again and again.
func (s *Store) probe(ctx context.Context, w *watch, i int, c faultpolicy.StopCondition) {
	every := time.NewTicker(cmp.Or(s.interval, time.Duration(c.Interval)))
	defer every.Stop()
	failures := 0
	for {
		err := runProbe(ctx, &c)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failures = 0
		} else {
			failures++
		}
		if failures > 0 && failures >= c.FailureThreshold {
			s.red(w, fmt.Sprintf("stop condition %s is red: %v", c.Name, err))
			return
		}
		s.good(w, i, err == nil)
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// good takes the outcome of a probe that turns nothing red.
func (s *Store) good(w *watch, i int, ok bool) {
	defer s.deliver()
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.good[i] == ok {
		return
	}
	w.good[i] = ok
	x := s.policies[w.policy]
	if x == nil || x.watch != w || !ok {
		return
	}
	if s.tryActivate(x); s.unsaved {
		s.saveOrTell()
	}
}

// red ends the policy.
func (s *Store) red(w *watch, reason string) {
	defer s.deliver()
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.policies[w.policy]
	if x == nil || x.watch != w {
		return
	}
	if x.Phase == Pending {
		reason += "; no fault was injected"
	}
	s.halt(x, reason)
	s.saveOrTell()
}
