package fusefs

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// ruleSlot is what a rule has counted. The rule itself is known to whoever sets it.
type ruleSlot struct {
	slot
	rule       [sha256.Size]byte // of the rule as JSON
	start      int64             // ns of CLOCK_MONOTONIC
	counts     policy.Counts
	used       atomic.Int64 // see budget
	bytes, ops atomic.Int64 // see bucket
}

// keptRule is a rule's slot. Requests that are under way count in it after the rule's end: it is not used for another
// rule before nobody has it any more.
type keptRule struct {
	slot  *ruleSlot
	table *stateTable // so that it stays mapped
}

func (k *keptRule) end() { k.slot.commit.Store(0) }

// keptRules are the rules' slots of a layer; guarded by Layer.setting.
type keptRules struct {
	table *stateTable
	left  []*keptRule // those of the process before, until the first SetRules
}

// rule gives a rule its slot, and says when it began: a rule that is equal to one of the process before goes on.
func (t *keptRules) rule(r policy.Rule, start time.Time) (*keptRule, time.Time) {
	b, err := json.Marshal(r)
	if err != nil { // no rule that was written can be so; it counts, but is not kept
		return &keptRule{slot: &ruleSlot{}}, start
	}
	sum := sha256.Sum256(b)
	if i := slices.IndexFunc(t.left, func(k *keptRule) bool { return k.slot.rule == sum }); i >= 0 {
		k := t.left[i]
		t.left = slices.Delete(t.left, i, i+1)
		return k, time.Now().Add(-time.Duration(Monotonic() - k.slot.start))
	}
	k := t.table.keptRule()
	k.slot.rule, k.slot.start = sum, Monotonic()-int64(time.Since(start))
	t.table.commit(&k.slot.slot, slotRule)
	return k, start
}

// settle ends the rules of the process before that are not in force any more.
func (t *keptRules) settle() {
	for _, k := range t.left {
		k.end()
	}
	t.left = nil
}

// keptRule makes room for a rule, without counting it yet.
func (t *stateTable) keptRule() *keptRule {
	size := int(unsafe.Sizeof(ruleSlot{}))
	s := (*ruleSlot)(t.take(size))
	if s == nil {
		return &keptRule{slot: &ruleSlot{}}
	}
	s.clear()
	k := &keptRule{slot: s, table: t}
	runtime.AddCleanup(k, func(s *ruleSlot) { t.giveBack(&s.slot, size) }, s)
	return k
}

func (s *ruleSlot) clear() {
	s.counts.Set(&policy.Counts{})
	s.used.Store(0)
	s.bytes.Store(0)
	s.ops.Store(0)
}

// again makes room for a rule of another table.
func (t *stateTable) ruleOf(from *ruleSlot) *keptRule {
	k := t.keptRule()
	k.slot.rule, k.slot.start = from.rule, from.start
	k.slot.counts.Set(&from.counts)
	k.slot.used.Store(from.used.Load())
	k.slot.bytes.Store(from.bytes.Load())
	k.slot.ops.Store(from.ops.Load())
	t.commit(&k.slot.slot, slotRule)
	return k
}

// Monotonic is CLOCK_MONOTONIC (ns), which all processes of a machine have in common, and time.Time has within one.
func Monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail: the clock is there, and the pointer is good
	return ts.Nano()
}

// faultSlot counts faults of one kind; the kind as JSON follows.
type faultSlot struct {
	slot
	n     atomic.Uint64
	delay atomic.Int64
	size  uint64
}

const faultHead = int(unsafe.Sizeof(faultSlot{}))

func (s *faultSlot) kind() []byte {
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(s), faultHead)), s.size)
}

// faultKind is what of a FaultCount is kept: the number of the operation, not its name.
type faultKind struct {
	Policy, Rule string
	Op           uint8
	Action       Action
	Errno        string
}

func (t *stateTable) fault(c *FaultCount) *faultSlot {
	if t == nil {
		return nil
	}
	b, err := json.Marshal(faultKind{c.Policy, c.Rule, uint8(c.Op), c.Action, c.Errno})
	if err != nil {
		return nil // five plain values: it cannot be
	}
	s := (*faultSlot)(t.take(faultHead + len(b)))
	if s == nil {
		return nil
	}
	s.size = uint64(len(b))
	copy(s.kind(), b)
	s.count(c.N, c.Delay)
	t.commit(&s.slot, slotFault)
	return s
}

func (s *faultSlot) count(n uint64, delay time.Duration) {
	if s != nil {
		s.n.Store(n)
		s.delay.Store(int64(delay))
	}
}

func (s *faultSlot) faults() (FaultCount, error) {
	var k faultKind
	if err := json.Unmarshal(s.kind(), &k); err != nil {
		return FaultCount{}, fmt.Errorf("state of a fault layer: counts of a fault: %w", err)
	}
	return FaultCount{
		Policy: k.Policy, Rule: k.Rule, Op: policy.Op(k.Op), Action: k.Action, Errno: k.Errno, N: s.n.Load(), Delay: time.Duration(s.delay.Load()),
	}, nil
}
