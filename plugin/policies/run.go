package policies

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// longestSleep bounds how late Run notices that somebody has set the wall clock, or
	// that the machine was suspended: a timer goes by CLOCK_MONOTONIC, which then stands.
	longestSleep = 30 * time.Second
	// hitsEvery is how often the faults of policies with guard.maxHits are counted.
	hitsEvery = time.Second
	// saveEvery is how often a file that could not be written is tried again, and counts of faults are saved.
	saveEvery = 5 * time.Second
)

// Run is the clock of the store: it begins and ends runs, lets containers grow
// older, counts faults and runs the probes of stop conditions, until ctx ends.
// Nothing is taken off then: the next agent continues.
func (s *Store) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var probes sync.WaitGroup
	defer probes.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			s.rest()
			return
		case <-s.wake:
		case <-timer.C:
		}
		timer.Reset(s.tick(ctx, &probes))
	}
}

// rest saves what may be new and lets go of the probes, which ctx ends.
func (s *Store) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsaved {
		s.saveOrTell()
	}
	for w := range s.watches {
		if x := s.policies[w.policy]; x != nil && x.watch == w {
			x.watch = nil
		}
	}
	clear(s.watches)
}

// tick does what is due, and says when to look again.
func (s *Store) tick(ctx context.Context, probes *sync.WaitGroup) time.Duration {
	hits := s.guardedHits()
	defer s.deliver()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grow()
	for _, x := range s.order {
		s.due(x, hits)
	}
	s.tend(ctx, probes)
	if s.unsaved {
		s.saveOrTell()
	}
	return s.nextDue()
}

// due does what is due for one policy.
func (s *Store) due(x *live, hits map[string]uint64) {
	if x.Phase == Running && x.rest(&s.clock) <= 0 {
		s.finish(x)
	}
	if n, ok := hits[x.name()]; ok && x.Phase == Running {
		if x.Hits.see(n) {
			x.saved, s.unsaved = nil, true
		}
		if most := x.Policy.Spec.Guard.MaxHits; x.Hits.Total >= most {
			s.halt(x, fmt.Sprintf("guard.maxHits: %d faults were injected, %d are allowed", x.Hits.Total, most))
		}
	}
	if x.schedule == nil || x.Phase != Waiting && x.Phase != Running && x.Phase != Pending {
		return
	}
	now := s.clock.Now()
	following := x.schedule.Next(now)
	if x.next.IsZero() || x.next.After(now) {
		if x.next.IsZero() || following.Before(x.next) { // the clock was set back
			x.next = following
		}
		return
	}
	at := x.next
	x.next = following
	s.fire(x, at)
}

// fire is a time of the schedule.
func (s *Store) fire(x *live, at time.Time) {
	if x.Phase == Running || x.due {
		if x.Policy.Spec.Timing.Concurrency != "replace" {
			s.event(x, EventSkipped, fmt.Sprintf("it was due at %s while run %d goes on (concurrency: forbid)", at.Format(time.RFC3339), x.Run))
			return
		}
		s.endRun(x, Pending, "")
		s.event(x, EventEnded, "the next run is due (concurrency: replace)")
	}
	x.Watch, x.due = stopwatch{}, true
	s.setPhase(x, Pending, "")
	s.tryActivate(x)
}

// nextDue says how long nothing is due.
func (s *Store) nextDue() time.Duration {
	now, wait := s.clock.Now(), longestSleep
	for _, x := range s.order {
		if x.Phase == Running {
			wait = min(wait, x.rest(&s.clock))
			if x.Policy.Spec.Guard.MaxHits > 0 {
				wait = min(wait, hitsEvery)
			}
		}
		if x.schedule != nil && !x.next.IsZero() && (x.Phase == Waiting || x.Phase == Running || x.Phase == Pending) {
			wait = min(wait, x.next.Sub(now))
		}
	}
	if len(s.containers.ages) > 0 {
		wait = min(wait, s.containers.ages[0].at.Sub(now))
	}
	if s.unsaved {
		wait = min(wait, saveEvery)
	}
	return max(wait, time.Millisecond)
}

// guardedHits counts the faults of those policies for which that matters now.
func (s *Store) guardedHits() map[string]uint64 {
	if s.o.Hits == nil {
		return nil
	}
	s.mu.Lock()
	var names []string
	for _, x := range s.order {
		if x.Phase == Running && x.Policy.Spec.Guard.MaxHits > 0 {
			names = append(names, x.name())
		}
	}
	s.mu.Unlock()
	hits := make(map[string]uint64, len(names))
	for _, name := range names {
		hits[name] = s.readHits(name)
	}
	return hits
}
