package policies

import (
	"slices"
	"time"
)

// EventType is what happened to a policy.
type EventType string

// The types of events.
const (
	EventApplied    EventType = "applied"    // new, or changed
	EventDeleted    EventType = "deleted"    // by a person
	EventPaused     EventType = "paused"     // by a person
	EventResumed    EventType = "resumed"    // by a person
	EventActivated  EventType = "activated"  // a run began
	EventSkipped    EventType = "skipped"    // a run was due while the one before it went on (concurrency: forbid)
	EventEnded      EventType = "ended"      // the time of a run is up
	EventStopped    EventType = "stopped"    // a guard ended it, or the node's limits did
	EventConditions EventType = "conditions" // stop conditions are being checked before a run begins
	EventLost       EventType = "lost"       // the file with the policies could not be understood
)

// Event is something that happened to a policy.
type Event struct {
	Time   time.Time `json:"time"`
	Type   EventType `json:"type"`
	Policy string    `json:"policy,omitempty"`
	Run    uint64    `json:"run,omitempty"`
	// By is the person who did it; empty: the store, by itself.
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// outbox has what is to be told once the lock is free.
type outbox struct {
	events []Event
	keys   []Key
	// busy: somebody is telling, and goes on until nothing is left.
	busy bool
}

// mark and reset take back what was put in since.
func (o *outbox) mark() (int, int)       { return len(o.events), len(o.keys) }
func (o *outbox) reset(events, keys int) { o.events, o.keys = o.events[:events], o.keys[:keys] }
func (o *outbox) take() (e []Event, k []Key) {
	e, k, o.events, o.keys = o.events, o.keys, nil, nil
	return e, k
}

// event notes an event; x may be nil.
func (s *Store) event(x *live, t EventType, reason string) {
	e := Event{Time: s.clock.Now().UTC(), Type: t, Reason: reason}
	if x != nil {
		e.Policy, e.Run = x.name(), x.Run
	}
	s.out.events = append(s.out.events, e)
}

// by names who did what the last event says.
func (s *Store) by(who string) { s.out.events[len(s.out.events)-1].By = who }

// touch notes that the rules of all containers that a policy chose may have changed.
func (s *Store) touch(x *live) {
	if x.choice == nil || x.Policy.Spec.DryRun {
		return
	}
	for n := range x.choice.all().all() {
		s.out.keys = append(s.out.keys, s.containers.list[n].key())
	}
}

// deliver tells what is to be told. The lock must not be held. A caller that comes
// while another one tells leaves it to that one, so that the order is kept.
func (s *Store) deliver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out.busy {
		return
	}
	s.out.busy = true
	defer func() { s.out.busy = false }()
	for len(s.out.events)+len(s.out.keys) > 0 {
		events, keys := s.out.take()
		s.mu.Unlock()
		s.tell(events, keys)
		s.mu.Lock()
	}
}

func (s *Store) tell(events []Event, keys []Key) {
	if s.o.Event != nil {
		for _, e := range events {
			s.o.Event(e)
			atPolicies.Pass("logged")
		}
	}
	if s.o.Changed != nil && len(keys) > 0 {
		seen := make(map[Key]bool, len(keys))
		s.o.Changed(slices.DeleteFunc(keys, func(k Key) bool {
			again := seen[k]
			seen[k] = true
			return again
		}))
		atPolicies.Pass("told")
	}
}
