package plugin

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

const (
	// ledgerPeriod is how often the counts of ended grafts are taken in when nobody asks for metrics.
	ledgerPeriod = time.Minute
	// lostAfter is how long a graft is waited for that is in no keeper's list and left no
	// count: its server was killed together with its keeper. What was last seen of it counts then.
	lostAfter = 10 * time.Minute
	// foldedFor is how long the id of a counted graft is known, so that nothing counts twice.
	foldedFor = time.Hour
	// containerFor is how long a container is told of after its last fault ended.
	containerFor = 15 * time.Minute
	// maxFaultSeries and maxContainerSeries bound what the metrics of faults tell apart. Rule names come
	// from whoever may label a container: what comes after that many is told as policy and rule "other".
	maxFaultSeries     = 2000
	maxContainerSeries = 5000
)

// other stands for names that are not told apart any more.
const other = "other"

// faultKey tells faults apart.
type faultKey struct {
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule"`
	// Kind is io or kernel.
	Kind   string `json:"kind"`
	Op     string `json:"op"`
	Action string `json:"action,omitempty"`
	Errno  string `json:"errno,omitempty"`
}

// containerRule tells the rules of containers apart.
type containerRule struct {
	Key
	Name   string `json:"name,omitempty"`
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule"`
}

// tally is a number of operations and how long they were made to wait in all.
type tally struct {
	N     uint64        `json:"n"`
	Delay time.Duration `json:"delayNs,omitempty"`
}

func (t *tally) add(o tally) { t.N, t.Delay = t.N+o.N, t.Delay+o.Delay }

// faultLedger is the node's count of faults. What lives is read where it is
// counted, by the id of the graft or kernel fault; when that is over, its last
// count is added to what is over, once. Nothing in it goes down, also not over a
// restart of the agent, but for containers, which it forgets some time after their end.
type faultLedger struct {
	grafts Grafter
	kernel func() []KernelFault
	path   string
	log    *slog.Logger
	now    func() time.Time

	mu         sync.Mutex
	over       map[faultKey]tally
	told       map[faultKey]bool // what has a series of its own
	containers map[containerRule]*containerCount
	live       map[string]*liveCounts
	folded     map[string]time.Time
	takeovers  uint64         // servers of layers that died and were replaced, since the agent started; by layer
	replaced   map[string]int // how many of them are counted, by graft
}

type containerCount struct {
	over uint64
	last time.Time
}

// liveCounts is what was last seen of one graft or kernel fault.
type liveCounts struct {
	target  keeper.Target
	kind    string
	rows    []keeper.FaultCount
	missing time.Time // since when it is in no list
}

// endedGrafts is where grafts leave what they did; keeper.Client is one.
type endedGrafts interface {
	Ended() ([]keeper.EndedGraft, error)
	Counted(graft string) error
}

// run takes in what has ended, until ctx ends.
func (l *faultLedger) run(ctx context.Context) {
	tick := time.NewTicker(ledgerPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			cctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
			if _, err := l.collect(cctx); err != nil && ctx.Err() == nil {
				l.log.Warn("count faults", "err", err)
			}
			cancel()
		}
	}
}

func (l *faultLedger) takeoverCount() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.takeovers
}

// collect brings the counts up to date and returns the grafts that it listed for
// that. What could not be asked counts as it was last seen, and is in the error.
func (l *faultLedger) collect(ctx context.Context) ([]keeper.Graft, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// First the lists, then what has ended: what leaves the one is in the other by then.
	grafts, err := l.grafts.List(ctx)
	there := map[string]bool{}
	for _, g := range grafts {
		there[g.ID] = true
		l.see(g.ID, g.Target, "io", g.Faults)
		if n := g.Takeovers - l.replaced[g.ID]; n > 0 {
			l.takeovers, l.replaced[g.ID] = l.takeovers+uint64(n), g.Takeovers
		}
	}
	for _, f := range l.kernel() {
		there[f.ID] = true
		l.see(f.ID, f.Target, "kernel", kernelCounts(f))
	}
	for id := range l.replaced {
		if !there[id] && err == nil {
			delete(l.replaced, id)
		}
	}
	changed := false
	var ended []keeper.EndedGraft
	source, ok := l.grafts.(endedGrafts)
	if ok {
		var eerr error
		ended, eerr = source.Ended()
		err = errors.Join(err, eerr)
	}
	for _, e := range ended {
		changed = l.fold(e.Graft, e.Target, "io", e.Faults) || changed
	}
	now := l.now()
	for id, c := range l.live {
		switch {
		case there[id]:
			c.missing = time.Time{}
		case c.missing.IsZero():
			c.missing = now
		case now.Sub(c.missing) > lostAfter:
			changed = l.fold(id, c.target, c.kind, c.rows) || changed
		}
	}
	for id, t := range l.folded {
		if now.Sub(t) > foldedFor {
			delete(l.folded, id)
		}
	}
	for c, n := range l.containers {
		if now.Sub(n.last) > containerFor {
			delete(l.containers, c)
		}
	}
	if !changed {
		return grafts, l.forget(source, ended, err)
	}
	serr := l.save()
	if serr != nil { // their files stay, for the next time
		return grafts, errors.Join(err, serr)
	}
	atCount.Pass("saved")
	return grafts, l.forget(source, ended, err)
}

// forget removes the counts of ended grafts, which are in the file by now.
func (l *faultLedger) forget(source endedGrafts, ended []keeper.EndedGraft, err error) error {
	for _, e := range ended {
		err = errors.Join(err, source.Counted(e.Graft))
		atCount.Pass("forgotten")
	}
	return err
}

// see takes note of what lives; l.mu is held.
func (l *faultLedger) see(id string, t keeper.Target, kind string, rows []keeper.FaultCount) {
	if _, done := l.folded[id]; done || len(rows) == 0 {
		return
	}
	c := l.live[id]
	if c == nil {
		c = &liveCounts{kind: kind}
		l.live[id] = c
	}
	c.target, c.rows = t, rows
	for _, r := range rows {
		l.container(containerRule{Key{t.Namespace, t.ID}, t.Name, r.Policy, r.Rule}).last = l.now()
	}
}

// fold adds what is over; l.mu is held.
func (l *faultLedger) fold(id string, t keeper.Target, kind string, rows []keeper.FaultCount) bool {
	if _, done := l.folded[id]; done {
		return false
	}
	l.folded[id] = l.now()
	delete(l.live, id)
	for _, r := range rows {
		k := l.bounded(keyOfFault(kind, r))
		n := l.over[k]
		n.add(tally{r.Count, r.DelayNs})
		l.over[k] = n
		c := l.container(containerRule{Key{t.Namespace, t.ID}, t.Name, r.Policy, r.Rule})
		c.over, c.last = c.over+r.Count, l.now()
	}
	return true
}

// kernelEnded adds a kernel fault that is over.
func (l *faultLedger) kernelEnded(f KernelFault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.fold(f.ID, f.Target, "kernel", kernelCounts(f)) {
		return
	}
	if err := l.save(); err != nil {
		l.log.Error("keep the counts of a kernel fault", "fault", f.ID, "err", err)
	}
}

// kernelCounts gives the counters of a kernel fault the form of a graft's.
func kernelCounts(f KernelFault) []keeper.FaultCount {
	r, n := f.Rules[0], f.Kernel.Counters
	if n.Injected == 0 {
		return nil
	}
	return []keeper.FaultCount{{Policy: r.Policy, Rule: r.Name, Op: f.Kernel.Hook, Action: "error", Errno: f.Kernel.Errno, Count: n.Injected}}
}

func keyOfFault(kind string, r keeper.FaultCount) faultKey {
	return faultKey{r.Policy, r.Rule, kind, r.Op, r.Action, r.Errno}
}

// bounded gives the key under which something is told; l.mu is held.
func (l *faultLedger) bounded(k faultKey) faultKey {
	switch {
	case l.told[k]:
	case len(l.told) < maxFaultSeries:
		l.told[k] = true
	default:
		k.Policy, k.Rule = other, other
		if k.Kind == "kernel" {
			k.Op = other
		}
	}
	return k
}

// container finds what is counted of a container's rule; l.mu is held.
func (l *faultLedger) container(k containerRule) *containerCount {
	c := l.containers[k]
	if c == nil && len(l.containers) >= maxContainerSeries {
		k = containerRule{Key{other, other}, other, other, other}
		c = l.containers[k]
	}
	if c == nil {
		c = &containerCount{}
		l.containers[k] = c
	}
	return c
}

// totals are the counts as they were last seen: of the node, and by container.
func (l *faultLedger) totals() (map[faultKey]tally, map[containerRule]uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	faults := make(map[faultKey]tally, len(l.over))
	for k, n := range l.over {
		faults[k] = n
	}
	seen := map[*containerCount]uint64{}
	for _, id := range l.liveIDs() {
		c := l.live[id]
		for _, r := range c.rows {
			k := l.bounded(keyOfFault(c.kind, r))
			n := faults[k]
			n.add(tally{r.Count, r.DelayNs})
			faults[k] = n
			known := l.container(containerRule{Key{c.target.Namespace, c.target.ID}, c.target.Name, r.Policy, r.Rule})
			seen[known] += r.Count
		}
	}
	containers := make(map[containerRule]uint64, len(l.containers))
	for k, c := range l.containers {
		containers[k] = c.over + seen[c]
	}
	return faults, containers
}

// liveIDs are in an order that stays the same, so that what is told as "other" does; l.mu is held.
func (l *faultLedger) liveIDs() []string {
	ids := make([]string, 0, len(l.live))
	for id := range l.live {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// byPolicy are the faults that policies have injected, as they were last seen.
func (l *faultLedger) byPolicy() map[string]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := map[string]uint64{}
	for k, t := range l.over {
		n[k.Policy] += t.N
	}
	for _, c := range l.live {
		for _, r := range c.rows {
			n[r.Policy] += r.Count
		}
	}
	return n
}
