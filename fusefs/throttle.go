package fusefs

import (
	"sync/atomic"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// bucket bounds a rate: bytes and operations a second. Every operation draws
// its turn with one atomic addition for each bound and then sleeps until it,
// so that turns come in the order of arrival, no goroutine hands out tokens, and
// nothing runs while nobody comes. It is the generic cell rate algorithm (ITU-T
// I.371): a level of which time drains one nanosecond each nanosecond; what is
// above the burst has to wait.
type bucket struct {
	bytes, ops level
}

// level is one bound.
type level struct {
	cost  float64       // ns for each unit; 0: no bound
	burst int64         // ns
	full  *atomic.Int64 // when the level is drained, ns since zero
	zero  time.Time
}

// defaultBurst is how much time's worth may pass at once when the rule does not say.
const defaultBurst = 100 * time.Millisecond

// newBucket makes a bucket of which the levels are in a rule's slot.
func newBucket(t *policy.Throttle, start time.Time, s *ruleSlot) *bucket {
	b := &bucket{}
	b.bytes.full, b.ops.full = &s.bytes, &s.ops
	b.bytes.init(float64(t.BytesPerSec), float64(t.BurstBytes), start)
	b.ops.init(t.OpsPerSec, t.BurstOps, start)
	if t.BurstOps == 0 {
		b.ops.burst = max(b.ops.burst, b.ops.price(1)) // one operation never waits for itself
	}
	return b
}

func (v *level) init(rate, burst float64, start time.Time) {
	if rate <= 0 {
		return
	}
	v.cost, v.zero, v.burst = float64(time.Second)/rate, start, int64(defaultBurst)
	if burst > 0 {
		v.burst = v.price(burst)
	}
}

// take draws a turn for an operation of so many bytes and says how long it has to wait for it.
func (b *bucket) take(now time.Time, bytes int64) time.Duration {
	return max(b.bytes.take(now, float64(bytes)), b.ops.take(now, 1))
}

// putBack gives the turn of an operation back that did not wait for it: those who come later wait less.
func (b *bucket) putBack(bytes int64) {
	b.bytes.full.Add(-b.bytes.price(float64(bytes)))
	b.ops.full.Add(-b.ops.price(1))
}

// price is the time that so many units are worth.
func (v *level) price(units float64) int64 { return int64(min(units*v.cost, float64(longest))) }

// longest is as good as for ever, and small enough that a few of them can be added.
const longest = 50 * 365 * 24 * time.Hour

func (v *level) take(now time.Time, units float64) time.Duration {
	if v.cost == 0 {
		return 0
	}
	at := int64(now.Sub(v.zero))
	for {
		was := v.full.Load()
		next := min(max(was, at), int64(longest)) + v.price(units)
		if v.full.CompareAndSwap(was, next) {
			return time.Duration(max(next-at-v.burst, 0))
		}
	}
}
