package plugin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// endings is a Grafter whose grafts leave their counts, as those of keepers do.
type endings struct {
	*node
	left []keeper.EndedGraft
}

func (e *endings) Ended() ([]keeper.EndedGraft, error) { return e.left, nil }

func (e *endings) Counted(graft string) error {
	var still []keeper.EndedGraft
	for _, l := range e.left {
		if l.Graft != graft {
			still = append(still, l)
		}
	}
	e.left = still
	return nil
}

func newLedger(t *testing.T, e *endings, dir string, now func() time.Time) *faultLedger {
	t.Helper()
	l, warning, err := loadLedger(dir, e, func() []KernelFault { return nil }, logTo(t), now)
	if err != nil || warning != nil {
		t.Fatal(err, warning)
	}
	return l
}

func fault(rule string, n uint64) []keeper.FaultCount {
	return []keeper.FaultCount{{Rule: rule, Op: "read", Action: "error", Errno: "EIO", Count: n}}
}

// sum is what a scrape would tell of all rules.
func (l *faultLedger) sum(t *testing.T) (n uint64) {
	t.Helper()
	if _, err := l.collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	faults, containers := l.totals()
	var all uint64
	for _, f := range faults {
		n += f.N
	}
	for _, c := range containers {
		all += c
	}
	if all != n {
		t.Errorf("%d faults on the node, %d in its containers", n, all)
	}
	return n
}

// A graft counts once: while it is listed, while its list hangs, when it has ended
// and is still listed, and when the agent was killed before it could remove what the graft had left.
func TestLedgerCountsOnce(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	e := &endings{node: &node{}}
	l := newLedger(t, e, dir, func() time.Time { return now })
	live := keeper.Graft{
		ID: "g1", Target: keeper.Target{ID: "c1", Namespace: "default"}, Faults: fault("a", 3),
		Rules: []keeper.RuleStatus{{Name: "a", Expires: now.Add(time.Hour)}},
	}
	is := func(what string, want uint64) {
		t.Helper()
		if got := l.sum(t); got != want {
			t.Errorf("%s: %d faults, want %d", what, got, want)
		}
	}
	e.grafts = []keeper.Graft{live}
	is("live", 3)
	e.grafts = nil
	is("in no list for a moment", 3)
	e.grafts = []keeper.Graft{live}
	left := keeper.EndedGraft{Graft: "g1", Target: live.Target, Faults: fault("a", 5)}
	e.left = []keeper.EndedGraft{left}
	is("ended, and listed", 5)
	is("ended, and listed still", 5)
	if len(e.left) != 0 {
		t.Error("what was counted is still there")
	}
	e.grafts, e.left = nil, []keeper.EndedGraft{left}
	l = newLedger(t, e, dir, func() time.Time { return now })
	is("what was left is there again after a restart", 5)

	// One whose processes were all killed: what was last seen counts.
	e.grafts = []keeper.Graft{{ID: "g2", Target: live.Target, Faults: fault("a", 2), Rules: live.Rules}}
	is("another", 7)
	e.grafts = nil
	is("lost", 7)
	now = now.Add(lostAfter + time.Second)
	is("given up", 7)
	l = newLedger(t, e, dir, func() time.Time { return now })
	is("given up, after a restart", 7)
}

// Names come from labels: there are only so many series, and none is lost or goes down.
func TestLedgerIsBounded(t *testing.T) {
	now := time.Now()
	e := &endings{node: &node{}}
	dir := t.TempDir()
	l := newLedger(t, e, dir, func() time.Time { return now })
	const grafts = maxContainerSeries + 100
	for i := range grafts {
		e.left = append(e.left, keeper.EndedGraft{Graft: fmt.Sprintf("g%d", i), Target: keeper.Target{ID: fmt.Sprintf("c%d", i)}, Faults: fault(fmt.Sprintf("r%d", i), 1)})
	}
	if n := l.sum(t); n != grafts {
		t.Errorf("%d faults of %d", n, grafts)
	}
	faults, containers := l.totals()
	if len(faults) > maxFaultSeries+1 || len(containers) > maxContainerSeries+1 {
		t.Errorf("%d and %d series", len(faults), len(containers))
	}
	now = now.Add(2 * containerFor)
	if _, err := l.collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, containers = l.totals(); len(containers) != 0 {
		t.Errorf("%d containers are still told of", len(containers))
	}
}

func TestLedgerSetsACorruptFileAside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, countersFile)
	if err := os.WriteFile(path, []byte(`{"version":1,"faults":[`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, warning, err := loadLedger(dir, &node{}, nil, logTo(t), time.Now)
	if err != nil || warning == nil {
		t.Errorf("%v, %v", warning, err)
	}
	if _, err := os.Stat(path + ".corrupt"); err != nil {
		t.Error(err)
	}
}

func FuzzLedger(f *testing.F) {
	f.Add([]byte(`{"version":1,"faults":[{"rule":"r","kind":"io","op":"read","n":3}],"containers":[],"folded":{}}`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = parseLedger(b) // it may refuse it; it must not crash
	})
}
