package plugin

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/faultgraft/faultgraft/policy/limits"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "dial-control-socket" {
		os.Exit(dialAsStranger(os.Args[2]))
	}
	if err := onlyKernelTests(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	goleak.VerifyTestMain(m)
}

// onlyKernelTests leaves out, in the emulated machine, what does not need its
// kernel: it runs in tier unit, much faster, and beside the files that it reads.
func onlyKernelTests() error {
	flag.Parse()
	run := flag.Lookup("test.run")
	if os.Getenv("FAULTGRAFT_VM") != "1" || run.Value.String() != "." {
		return nil
	}
	return run.Value.Set("^TestAgentHoldsKernelFaults$")
}

// node is a Grafter in memory: it keeps the promises of keeper.Client that the
// loop relies on (one graft a path, grafts end with their rules).
type node struct {
	mu      sync.Mutex
	grafts  []keeper.Graft
	made    int
	changed int
	lists   int
	refuse  error                                     // what Inject says
	broken  error                                     // what List says, beside what it returns
	onGraft func(t keeper.Target, req keeper.Request) // called outside the lock
	given   map[string]time.Duration                  // for how long who asked last would have waited, by method
}

// waited notes how long a call may take.
func (n *node) waited(ctx context.Context, method string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.given == nil {
		n.given = map[string]time.Duration{}
	}
	end, _ := ctx.Deadline()
	n.given[method] = time.Until(end)
}

func (n *node) Inject(ctx context.Context, t keeper.Target, req keeper.Request) (keeper.Graft, error) {
	n.waited(ctx, "Inject")
	if n.onGraft != nil {
		n.onGraft(t, req)
	}
	if err := ctx.Err(); err != nil {
		return keeper.Graft{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse != nil {
		return keeper.Graft{}, n.refuse
	}
	for _, g := range n.live() {
		if g.Target.PID == t.PID && g.Path == req.Path {
			return keeper.Graft{}, fmt.Errorf("%s is grafted already", req.Path)
		}
	}
	n.made++
	g := keeper.Graft{ID: fmt.Sprintf("g%d", n.made), Target: t, Path: req.Path, State: keeper.StateActive, Origin: req.Origin, Since: time.Now()}
	for _, r := range req.Rules {
		if r.Trigger.TTL <= 0 || !r.Trigger.Seeded {
			return keeper.Graft{}, fmt.Errorf("rule %s: ttl %v, seeded %v", r.Name, r.Trigger.TTL, r.Trigger.Seeded)
		}
		g.Rules = append(g.Rules, keeper.RuleStatus{Name: r.Name, Policy: r.Policy, Run: r.Run, Text: r.Text, Expires: time.Now().Add(r.Trigger.TTL)})
	}
	n.grafts = append(n.grafts, g)
	g.Rules = slices.Clone(g.Rules)
	return g, nil
}

// live drops the grafts whose rules have all ended, as keepers do.
func (n *node) live() []keeper.Graft {
	var live []keeper.Graft
	for _, g := range n.grafts {
		left := 0
		for i := range g.Rules {
			if g.Rules[i].Expired = time.Now().After(g.Rules[i].Expires); !g.Rules[i].Expired {
				left++
			}
		}
		if left > 0 {
			live = append(live, g)
		}
	}
	n.grafts = live
	out := slices.Clone(live)
	for i := range out {
		out[i].Rules = slices.Clone(out[i].Rules)
	}
	return out
}

func (n *node) List(context.Context) ([]keeper.Graft, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lists++
	return n.live(), n.broken
}

func (n *node) Update(ctx context.Context, id string, c keeper.Change) (keeper.Graft, error) {
	n.waited(ctx, "Update")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.live()
	for i, g := range n.grafts {
		if g.ID != id {
			continue
		}
		have := slices.DeleteFunc(slices.Clone(g.Rules), func(r keeper.RuleStatus) bool { return r.Expired })
		var next []keeper.RuleStatus
		for _, r := range c.Rules {
			k := slices.IndexFunc(have, func(h keeper.RuleStatus) bool { return keyOfStatus(h) == keyOf(r) })
			if k >= 0 {
				next = append(next, have[k])
				continue
			}
			next = append(next, keeper.RuleStatus{Name: r.Name, Policy: r.Policy, Run: r.Run, Text: r.Text, Expires: time.Now().Add(r.Trigger.TTL)})
			g.Added = append(g.Added, r.FullName())
		}
		n.grafts[i].Rules, g.Rules = next, slices.Clone(next)
		n.changed++
		return g, nil
	}
	return keeper.Graft{}, fmt.Errorf("%w: %s", keeper.ErrNoGraft, id)
}

func (n *node) Ungraft(ctx context.Context, id string) (keeper.Graft, error) {
	n.waited(ctx, "Ungraft")
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, g := range n.grafts {
		if g.ID == id {
			n.grafts = append(n.grafts[:i:i], n.grafts[i+1:]...)
			return g, nil
		}
	}
	return keeper.Graft{}, fmt.Errorf("%w: %s", keeper.ErrNoGraft, id)
}

func (n *node) StopAll(context.Context, string) ([]keeper.Graft, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	off := n.live()
	n.grafts = nil
	return off, n.broken
}

func (n *node) all() []keeper.Graft {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.live()
}

func (n *node) count() (made int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.made
}

// registry is containerd's answer to look-ups.
type registry struct {
	mu  sync.Mutex
	all map[Key]Container
	err error
}

func (r *registry) put(c Container) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[c.Key] = c
}

func (r *registry) Lookup(_ context.Context, k Key) (Container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return Container{}, r.err
	}
	c, ok := r.all[k]
	if !ok {
		return Container{}, errGone
	}
	return c, nil
}

// bench is a reconciler on a node and a registry.
type bench struct {
	*reconciler
	node *node
	reg  *registry
	dir  string
}

// newBench makes one; the state directory can be that of an earlier one, as after a restart of the agent.
func newBench(t *testing.T, n *node, dir string, change func(*reconciler)) *bench {
	t.Helper()
	mem, warning, err := loadMemory(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	reg := &registry{all: map[Key]Container{}}
	r := &reconciler{
		grafter: n, lookup: reg, memory: mem, metrics: newMetrics(""), log: logTo(t), stateDir: dir,
		check: func(pid int) (uint64, error) {
			start, err := startTime(pid)
			if err != nil {
				return 0, err
			}
			return start, nil
		},
		now: time.Now, firstRetry: time.Millisecond, blind: warning != nil,
	}
	if change != nil {
		change(r)
	}
	if r.faults == nil {
		r.faults = newFakeFaults(t, &fakeKernel{})
	}
	r.faults.events.dir = dir // as in the agent: there is one state directory
	ctx, cancel := context.WithCancel(context.Background())
	if r.ledger, warning, err = loadLedger(dir, r.grafter, r.kernelFaults, r.log, func() time.Time { return r.now() }); err != nil || warning != nil {
		t.Fatal(err, warning)
	}
	r.open(ctx, settingsOf(Options{Limits: optedIn()}.withDefaults()))
	if err := r.openPolicies(policies.Options{}); err != nil {
		t.Fatal(err)
	}
	r.containersKnown()
	r.metrics.registry.MustRegister(liveCollector{r})
	t.Cleanup(func() {
		r.queue.close()
		cancel()
		r.queue.wait()
		if err := r.faults.close(); err != nil {
			t.Error(err)
		}
	})
	return &bench{r, n, reg, dir}
}

// optedIn lets labels ask for everything everywhere.
func optedIn() *limits.Limits {
	return &limits.Limits{Labels: limits.Scope{Namespaces: []limits.Namespaces{"*"}, Hooks: []limits.Hooks{"*"}, MaxTTL: limits.Duration(24 * time.Hour)}}
}

func logTo(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// settle pokes a container and waits for the run.
func (b *bench) settle(t *testing.T, k Key) Container {
	t.Helper()
	b.poke(k)
	return b.wait(t, k)
}

// wait runs the loop once more for a container and returns what it is then.
func (b *bench) wait(t *testing.T, k Key) Container {
	t.Helper()
	select {
	case <-b.queue.add(k, false):
	case <-time.After(30 * time.Second):
		t.Fatalf("%s: not reconciled within 10 s", k)
	}
	return b.get(k)
}

func (b *bench) get(k Key) Container {
	for _, c := range b.containers() {
		if c.Key == k {
			return c
		}
	}
	return Container{}
}

// until waits for a condition that background work brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

var errTest = errors.New("made to fail by the test")

type lookupFunc func(Key) (Container, error)

func (f lookupFunc) Lookup(_ context.Context, k Key) (Container, error) { return f(k) }
