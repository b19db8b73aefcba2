package policies

import (
	"fmt"
	"time"
)

// The steps of a policy's life. The lock is held in all of them; the caller saves.

func (s *Store) setPhase(x *live, p Phase, reason string) {
	x.Phase, x.Reason, x.Since, x.saved = p, reason, s.clock.Now().UTC(), nil
	s.unsaved = true
}

// begin is where a policy starts that was applied, or resumed without a run to go on with.
func (s *Store) begin(x *live) {
	x.due, x.Watch = false, stopwatch{}
	if x.schedule == nil {
		s.setPhase(x, Pending, "")
		s.tryActivate(x)
		return
	}
	x.next = x.schedule.Next(s.clock.Now())
	s.setPhase(x, Waiting, "")
}

// tryActivate begins a run if it is time: it is due by the schedule, or, without
// one, a container is chosen; and the stop conditions are green.
func (s *Store) tryActivate(x *live) {
	if x.Phase != Pending || !x.due && (x.schedule != nil || x.choice.len() == 0) {
		return
	}
	if len(x.Policy.Spec.Guard.StopConditions) > 0 && !x.Policy.Spec.DryRun && !x.watch.green() {
		if x.watch == nil {
			x.Reason = "the stop conditions are being checked"
			s.kick()
		}
		return
	}
	s.activate(x)
}

// activate begins a run, of a policy that was paused with the time that is spent already.
func (s *Store) activate(x *live) {
	x.due = false
	if x.Watch.Before == 0 {
		x.TTL = x.ttl(&s.limits)
	}
	x.Run++
	x.Watch.start(&s.clock)
	s.setPhase(x, Running, "")
	s.event(x, EventActivated, fmt.Sprintf("%d of %d matching containers are chosen, for %v", x.choice.len(), x.choice.n, x.rest(&s.clock).Round(time.Millisecond)))
	s.touch(x)
	s.kick()
}

// endRun takes a policy's faults off.
func (s *Store) endRun(x *live, p Phase, reason string) {
	acted := x.Phase == Running
	x.due = false
	x.watch = nil // the next run has probes of its own: these may have given their last answer
	x.Watch.stop(&s.clock)
	s.setPhase(x, p, reason)
	if acted {
		s.touch(x)
	}
	s.kick()
}

// finish ends a run whose time is up.
func (s *Store) finish(x *live) {
	reason := fmt.Sprintf("its time is up (%v)", x.TTL)
	if x.schedule != nil {
		s.endRun(x, Waiting, "")
		x.next = x.schedule.Next(s.clock.Now())
	} else {
		s.endRun(x, Ended, reason)
	}
	s.event(x, EventEnded, reason)
}

// halt ends a policy for a guard's reason, until a person begins it anew.
func (s *Store) halt(x *live, reason string) {
	s.endRun(x, Stopped, reason)
	s.event(x, EventStopped, reason)
	s.log.Warn("a policy was stopped", "policy", x.name(), "run", x.Run, "reason", reason)
}

// lastRun is the number before that of a policy's first run.
func (s *Store) lastRun(name string) uint64 {
	if n, ok := s.runs[name]; ok {
		return n
	}
	return s.firstRun
}

// rememberRun keeps a deleted policy's last run.
func (s *Store) rememberRun(x *live) {
	if x.Run == 0 {
		return
	}
	s.runs[x.name()] = x.Run
	if len(s.runs) <= maxDeleted {
		return
	}
	for name, n := range s.runs { // one number for all: higher than any
		s.firstRun = max(s.firstRun, n)
		delete(s.runs, name)
	}
}
