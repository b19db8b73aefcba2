package policies

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy/limits"
)

// FileName is the store's file in the state directory.
const FileName = "policies.json"

// Options say how a Store works. The zero value is a node without limits of its
// own, that tells nobody.
type Options struct {
	// Limits are the node's, asked for at Open and at LimitsChanged.
	Limits func() limits.Limits
	// Changed says that the rules of these containers may have changed. It must not block, and may call the Store.
	Changed func(keys []Key)
	// Hits says how many faults a policy has injected so far. It may begin again from
	// 0. Nil: nobody counts, and policies with guard.maxHits are refused.
	Hits func(policy string) (uint64, error)
	// Event is told what happens to policies, in order. It must not block, and may call the Store.
	Event func(Event)
	// Clock is the time; nil means the machine's.
	Clock *Clock
	// Random draws seeds; nil means at random.
	Random func() uint64
	Log    *slog.Logger
}

// Store has the policies of a node. It may be used from any number of goroutines.
type Store struct {
	path  string
	o     Options
	clock Clock
	log   *slog.Logger
	// wake makes Run look at what is due.
	wake chan struct{}

	mu         sync.Mutex
	limits     limits.Limits
	policies   map[string]*live
	order      []*live // by name
	index      index
	containers containers
	// runs and firstRun: see fileHead.
	runs     map[string]uint64
	firstRun uint64
	// unsaved: what the file says is not what is the case.
	unsaved bool
	out     outbox
	// epoch counts matches of one container with all policies.
	epoch uint64
	// interval, in tests, is the time between two probes in place of the policy's.
	interval time.Duration
	// watches are those whose probes run.
	watches map[*watch]bool
}

// Open reads the policies from the file in dir, which must exist, and continues
// their runs: the time in which no agent ran has passed. A file that cannot be
// understood is set aside; that is an event, not an error.
func Open(dir string, o Options) (*Store, error) {
	s := &Store{
		path: filepath.Join(dir, FileName), o: o, log: o.Log, wake: make(chan struct{}, 1),
		policies: map[string]*live{}, runs: map[string]uint64{},
		containers: containers{slots: map[Key]slot{}}, index: newIndex(), watches: map[*watch]bool{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.o.Random == nil {
		s.o.Random = rand.Uint64
	}
	if o.Clock != nil {
		s.clock = *o.Clock
	} else {
		var err error
		if s.clock, err = SystemClock(); err != nil {
			return nil, err
		}
	}
	if o.Limits != nil {
		s.limits = o.Limits()
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.deliver()
	return s, nil
}

func (s *Store) load() error {
	b, err := os.ReadFile(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the policies of this node: %w", err)
	}
	form, perr := parseFile(b)
	if perr != nil {
		return s.lost(perr)
	}
	if form.Runs != nil {
		s.runs = form.Runs
	}
	s.firstRun = form.FirstRun
	for _, r := range form.Policies {
		x, err := compile(r.Policy, &s.limits)
		if err != nil && r.Phase != Ended {
			// It stays known by name, and does nothing: a guard's reason must outlive the change.
			s.log.Error("a policy cannot go on", "policy", r.name(), "err", err)
			r.Phase, r.Reason, r.Since = Stopped, "it cannot go on: "+err.Error(), s.clock.Now().UTC()
			r.Watch.stop(&s.clock)
			s.unsaved = true
		}
		if err != nil {
			x = broken()
		}
		x.record = r
		s.resumeClock(x, form.Written)
		x.choice = newChoice(&x.Policy.Spec, x.Seed)
		s.insert(x)
	}
	if s.unsaved {
		s.saveOrTell()
	}
	return nil
}

// lost sets a file aside that cannot be understood. Policies count their runs
// from the time of day on then, so that no run has the number of an earlier one.
func (s *Store) lost(why error) error {
	aside := fmt.Sprintf("%s.corrupt-%d", s.path, s.clock.Now().Unix())
	if err := os.Rename(s.path, aside); err != nil {
		return fmt.Errorf("the policies of this node, %s: %w; and it cannot be set aside: %w", s.path, why, err)
	}
	s.firstRun = uint64(max(0, s.clock.Now().Unix()))
	reason := fmt.Sprintf("%s: %v; set aside as %s: apply the policies again", s.path, why, aside)
	s.log.Error("the policies of this node are lost", "err", reason)
	s.event(nil, EventLost, reason)
	return s.save()
}

// resumeClock lets a policy that was read from the file go on from where it is now.
func (s *Store) resumeClock(x *live, written time.Time) {
	x.TTL = min(x.TTL, s.limits.MaxTTL(limits.Policies))
	switch {
	case !x.Watch.adopt(&s.clock, written):
		s.endRun(x, Ended, "nobody knows how much of its time is left: the machine was started anew and its clock set back")
	case x.Phase == Running && x.rest(&s.clock) <= 0:
		s.finish(x)
	case x.Phase == Pending && x.schedule != nil:
		s.setPhase(x, Waiting, "")
	}
	if x.schedule != nil {
		x.next = x.schedule.Next(s.clock.Now())
	}
}

// insert puts a policy in, in place of one of that name.
func (s *Store) insert(x *live) {
	s.take(x.name())
	s.policies[x.name()] = x
	at, _ := slices.BinarySearchFunc(s.order, x.name(), func(e *live, name string) int { return strings.Compare(e.name(), name) })
	s.order = slices.Insert(s.order, at, x)
	s.index.add(x)
}

// take takes a policy out, if it is there.
func (s *Store) take(name string) {
	x := s.policies[name]
	if x == nil {
		return
	}
	delete(s.policies, name)
	s.order = slices.DeleteFunc(s.order, func(e *live) bool { return e == x })
	s.index.remove(x)
}

// save writes the file; s.mu is held.
func (s *Store) save() error {
	head, err := json.Marshal(fileHead{Version: fileVersion, Written: s.clock.Now().UTC(), Runs: s.runs, FirstRun: s.firstRun})
	if err != nil {
		return fmt.Errorf("save the policies of this node: %w", err)
	}
	// Put together by hand: encoding/json would go through all of what it made before again.
	b := append(bytes.TrimSuffix(head, []byte("}")), `,"policies":[`...)
	for i, x := range s.order {
		if x.saved == nil {
			if x.saved, err = json.Marshal(&x.record); err != nil {
				return fmt.Errorf("save policy %s: %w", x.name(), err)
			}
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, '\n'), x.saved...)
	}
	b = append(b, "]}\n"...)
	if err := keeper.ReplaceFile(s.path, b); err != nil {
		return err
	}
	atPolicies.Pass("saved")
	s.unsaved = false
	return nil
}

// saveOrTell saves what has happened by itself; Run tries again if it cannot be.
func (s *Store) saveOrTell() {
	if err := s.save(); err != nil {
		s.unsaved = true
		s.log.Error("cannot save the policies of this node; will try again", "err", err)
	}
}

func (s *Store) kick() {
	select {
	case s.wake <- struct{}{}:
	default: // it will look
	}
}
