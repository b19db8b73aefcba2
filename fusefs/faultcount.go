package fusefs

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// FaultCount is how often a rule of a layer did one thing to one kind of operation.
type FaultCount struct {
	Policy string // that the rule comes from, if it does
	Rule   string
	Op     policy.Op
	Action Action
	// Errno is the name of what the operations were answered with, empty if they were not failed.
	Errno string
	// N is the number of operations, Delay how long they were made to wait in all.
	N     uint64
	Delay time.Duration
}

// faultTally counts what a layer did. It is apart from the rules' own counters: it
// outlives them, so that what it says never goes down as long as the layer lives.
type faultTally struct {
	mu   sync.Mutex
	rows map[FaultCount]*faultRow // by all but N and Delay
	kept *stateTable
}

type faultRow struct {
	FaultCount
	kept *faultSlot
}

func (t *faultTally) add(e *Event) {
	key := FaultCount{Policy: e.Policy, Rule: e.Rule, Op: e.Op, Action: e.Action}
	if e.Errno != 0 {
		key.Errno = policy.ErrnoName(e.Errno)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	row := t.rows[key]
	if row == nil {
		if t.rows == nil {
			t.rows = map[FaultCount]*faultRow{}
		}
		row = &faultRow{FaultCount: key, kept: t.kept.fault(&key)}
		t.rows[key] = row
	}
	row.N++
	row.Delay += e.Latency
	row.kept.count(row.N, row.Delay)
}

// restore takes in what a process before has counted.
func (t *faultTally) restore(c FaultCount) {
	key := c
	key.N, key.Delay = 0, 0
	if t.rows == nil {
		t.rows = map[FaultCount]*faultRow{}
	}
	t.rows[key] = &faultRow{FaultCount: c, kept: t.kept.fault(&c)}
}

// Faults tells what the layer's rules have done, those that are gone included. A
// fault is counted before the operation is answered: who has seen one finds it here.
func (l *Layer) Faults() []FaultCount {
	l.counted.mu.Lock()
	defer l.counted.mu.Unlock()
	out := make([]FaultCount, 0, len(l.counted.rows))
	for _, row := range l.counted.rows {
		out = append(out, row.FaultCount)
	}
	slices.SortFunc(out, func(a, b FaultCount) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Op, b.Op), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Errno, b.Errno))
	})
	return out
}
