package policy

import (
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Counter is the run-time state of one rule's trigger. It may be used from any
// number of goroutines; it takes no lock.
type Counter struct {
	trigger Trigger
	start   time.Time
	stream  uint64 // where the draws of this seed begin
	always  bool   // the draw cannot fail: which operations fire follows from their numbers alone
	*Counts
}

// Counts are all of a Counter that changes. They may lie in memory that other processes map: a counter that is made
// of the counts of another, with its trigger and start, goes on where that one was.
type Counts struct {
	passed  atomic.Uint64 // bytes of the operations that afterBytes let pass, and of the one that crossed it
	matched atomic.Uint64
	fired   atomic.Uint64
}

// NewCounter makes the state of a trigger that became active at start.
func NewCounter(t Trigger, start time.Time) *Counter { return CounterOf(t, start, &Counts{}) }

// CounterOf makes the state of a trigger that became active at start and has counted this much.
func CounterOf(t Trigger, start time.Time, counts *Counts) *Counter {
	return &Counter{trigger: t, start: start, stream: mix(t.Seed), always: t.P >= 1, Counts: counts}
}

// Set makes the counts those of another.
func (c *Counts) Set(from *Counts) {
	c.passed.Store(from.passed.Load())
	c.matched.Store(from.matched.Load())
	c.fired.Store(from.fired.Load())
}

// Fire counts one matching operation that transfers so many bytes and says
// whether the rule fires on it. n is the operation's number under the rule,
// from 1. An operation that the rule is not about is not counted at all, and n
// is 0: one that comes in the delay, in the rest between two pulses, after the
// time to live, or before afterBytes have passed.
//
// With p = 1 whether an operation fires depends on its number only, so that
// after, every and times are exact by number however many threads race. With
// p < 1 the draw depends on seed and number only; when several threads race
// for the last of `times`, who comes first gets it, never more than times.
func (c *Counter) Fire(now time.Time, bytes int64) (n uint64, fire bool) {
	if !c.Awake(now) || !c.pass(bytes) {
		return 0, false
	}
	n = c.matched.Add(1)
	t := &c.trigger
	if n <= t.After {
		return n, false
	}
	turn := n - t.After - 1 // how many operations were past `after` before this one
	if t.Every > 1 {
		if turn%t.Every != 0 {
			return n, false
		}
		turn /= t.Every
	}
	if c.always {
		if t.Times != 0 && turn >= t.Times {
			return n, false
		}
		c.fired.Add(1)
		return n, true
	}
	if !(c.draw(n) < t.P) { // written so that NaN never fires
		return n, false
	}
	return n, c.take()
}

// take counts one firing, unless the rule has had all of them.
func (c *Counter) take() bool {
	for {
		f := c.fired.Load()
		if c.trigger.Times != 0 && f >= c.trigger.Times {
			return false
		}
		if c.fired.CompareAndSwap(f, f+1) {
			return true
		}
	}
}

// pass counts the bytes of an operation and reports whether more than
// afterBytes have come with it. Operations that race come in the order in which
// they are counted.
func (c *Counter) pass(bytes int64) bool {
	limit := c.trigger.AfterBytes
	if limit == 0 {
		return true
	}
	for {
		before := c.passed.Load()
		if before > limit {
			return true
		}
		// Stops one past the limit, which is below 1<<63: it cannot overflow.
		after := min(before+uint64(max(bytes, 0)), limit+1)
		if c.passed.CompareAndSwap(before, after) {
			return after > limit
		}
	}
}

// Awake reports whether the rule matches anything at this time: its delay is
// over, it is not in the rest between two pulses, and it has not expired. A
// rule that is not awake and not expired will be: what a cache or a passthrough
// file keeps from it now, it misses then.
func (c *Counter) Awake(now time.Time) bool {
	t := &c.trigger
	age := now.Sub(c.start)
	if age >= t.TTL {
		return false
	}
	age = max(age, 0) - t.Delay
	if age < 0 || t.Active <= 0 {
		return age >= 0
	}
	return uint64(age)%(uint64(t.Active)+uint64(max(t.Idle, 0))) < uint64(t.Active)
}

// Expired reports whether the time to live has ended. A trigger without one is
// expired from the start: there is no fault without an end.
func (c *Counter) Expired(now time.Time) bool {
	return now.Sub(c.start) >= c.trigger.TTL
}

// Expires is when the time to live ends.
func (c *Counter) Expires() time.Time { return c.start.Add(c.trigger.TTL) }

// Spent reports whether the rule has fired as often as it may (`times`).
func (c *Counter) Spent() bool {
	return c.trigger.Times != 0 && c.fired.Load() >= c.trigger.Times
}

// Matched is the number of matching operations counted so far.
func (c *Counts) Matched() uint64 { return c.matched.Load() }

// Fired is the number of them on which the rule fired.
func (c *Counts) Fired() uint64 { return c.fired.Load() }

// draw gives the number in [0,1) that belongs to operation n. It is a function
// of the seed and n (splitmix64, Steele, Lea and Flood 2014, in its counter
// form), so that a replay draws the same.
func (c *Counter) draw(n uint64) float64 {
	const gamma = 0x9e3779b97f4a7c15
	const mantissa = 53
	return math.Ldexp(float64(mix(c.stream+n*gamma)>>(64-mantissa)), -mantissa)
}

// Source gives the random numbers that belong to operation n, beside the one
// that says whether it fires: the same seed, n and order of use give the same
// numbers. It is for what an action draws (an errno, a latency, places).
func (c *Counter) Source(n uint64) *Source {
	return &Source{state: mix(c.stream ^ mix(n))}
}

// Source is a stream of random numbers (splitmix64). It must not be shared.
type Source struct{ state uint64 }

var _ rand.Source = (*Source)(nil)

// Uint64 gives the next number; with it a Source can feed math/rand/v2.
func (s *Source) Uint64() uint64 {
	s.state += 0x9e3779b97f4a7c15
	return mix(s.state)
}

// mix is the finalizer of splitmix64.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
