package policies

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/limits"
	"github.com/faultgraft/faultgraft/policy/selection"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// node is a machine with a clock that tests move, and a store on it.
type node struct {
	t   testing.TB
	dir string
	s   *Store

	mu      sync.Mutex
	now     time.Time
	boot    time.Duration
	bootID  string
	hits    map[string]uint64
	limits  limits.Limits
	changed []Key
	events  []Event
}

func newNode(t testing.TB) *node {
	n := &node{t: t, dir: t.TempDir(), now: start, boot: time.Hour, bootID: "first", hits: map[string]uint64{}}
	n.open()
	return n
}

// open starts an agent, in place of the one before.
func (n *node) open() {
	n.t.Helper()
	var err error
	if n.s, err = Open(n.dir, n.options()); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) options() Options {
	locked := func(f func()) { n.mu.Lock(); defer n.mu.Unlock(); f() }
	return Options{
		Limits:  func() (l limits.Limits) { locked(func() { l = n.limits }); return l },
		Changed: func(keys []Key) { locked(func() { n.changed = append(n.changed, keys...) }) },
		Event:   func(e Event) { locked(func() { n.events = append(n.events, e) }) },
		Hits:    func(p string) (h uint64, err error) { locked(func() { h = n.hits[p] }); return h, nil },
		Random:  func() uint64 { return 7 },
		Clock: &Clock{
			Now:    func() (t time.Time) { locked(func() { t = n.now }); return t },
			Boot:   func() (d time.Duration) { locked(func() { d = n.boot }); return d },
			BootID: n.bootID,
		},
	}
}

// pass lets time pass, and the store do what is due.
func (n *node) pass(d time.Duration) {
	n.mu.Lock()
	n.now, n.boot = n.now.Add(d), n.boot+d
	n.mu.Unlock()
	n.tick()
}

// tick is what Run does, but for the probes.
func (n *node) tick() {
	n.t.Helper()
	var none sync.WaitGroup
	ctx, cancel := contextEnded()
	defer cancel()
	n.s.tick(ctx, &none)
	none.Wait()
}

func (n *node) apply(p faultpolicy.FaultPolicy) Result {
	n.t.Helper()
	r, err := n.s.Apply(p, "root")
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) phase(name string, want Phase) Status {
	n.t.Helper()
	st, err := n.s.Get(name)
	if err != nil {
		n.t.Fatal(err)
	}
	if st.Phase != want {
		n.t.Fatalf("policy %s is %s (%s), want %s", name, st.Phase, st.Reason, want)
	}
	return st
}

// take gives the keys that Changed was told, sorted, and forgets them.
func (n *node) take() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, k := range n.changed {
		out = append(out, k.ID)
	}
	n.changed = nil
	slices.Sort(out)
	return out
}

// types gives the types of the events, and forgets them.
func (n *node) types() []EventType {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []EventType
	for _, e := range n.events {
		out = append(out, e.Type)
	}
	n.events = nil
	return out
}

// has lists the rules of a container as POLICY.RUN/RULE REST.
func (n *node) has(id string) []string {
	n.t.Helper()
	rules, _, _ := n.s.Rules(Key{"default", id}, nil)
	var out []string
	for _, r := range rules {
		out = append(out, fmt.Sprintf("%s.%d/%s %v", r.Policy, r.Run, r.Name, r.Trigger.TTL))
	}
	return out
}

func (n *node) wantRules(id string, want ...string) {
	n.t.Helper()
	if got := n.has(id); !slices.Equal(got, want) {
		n.t.Errorf("container %s has the rules %q, want %q", id, got, want)
	}
}

// chosen lists the containers that have rules.
func (n *node) chosen() []string {
	var out []string
	for _, c := range n.s.containers.list {
		if c != nil && len(n.has(c.ID)) > 0 {
			out = append(out, c.ID)
		}
	}
	slices.Sort(out)
	return out
}

func (n *node) run(ids ...string) {
	for _, id := range ids {
		n.s.Observe(n.container(id))
	}
}

func (n *node) container(id string) selection.Container {
	n.mu.Lock()
	defer n.mu.Unlock()
	return selection.Container{Namespace: "default", ID: id, Name: id, Image: "docker.io/library/busybox:1", Labels: map[string]string{"app": "pg"}, Started: n.now}
}

// pg is a policy for containers with app=pg, of ten minutes.
func pg(change ...func(*faultpolicy.Spec)) faultpolicy.FaultPolicy {
	p := faultpolicy.FaultPolicy{
		APIVersion: faultpolicy.APIVersion, Kind: faultpolicy.Kind, Metadata: faultpolicy.Metadata{Name: "pg"},
		Spec: faultpolicy.Spec{
			Selector: faultpolicy.Selector{MatchLabels: map[string]string{"app": "pg"}},
			Timing:   faultpolicy.Timing{TTL: faultpolicy.Duration(10 * time.Minute)},
			Faults:   []faultpolicy.Fault{{Name: "wal", Rule: "io error=EIO op=fsync path=/data/**"}},
		},
	}
	for _, c := range change {
		c(&p.Spec)
	}
	return p
}

func named(name string, p faultpolicy.FaultPolicy) faultpolicy.FaultPolicy {
	p.Metadata.Name = name
	return p
}
