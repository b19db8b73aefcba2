package kernel

import (
	"math"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"golang.org/x/sys/unix"
)

// targetState is the value that the map of a program holds for one cgroup: what its
// fault's trigger says, and what has happened. The programs read and count in
// it, so its fields have fixed places; all are 8 bytes.
type targetState struct {
	// Begin is when the delay is over, End when the ttl is, both by bpf_ktime_get_boot_ns.
	Begin, End int64
	// Period is active + idle, 0 without pulses.
	Period, Active uint64
	After, Every   uint64
	Times          uint64 // 0 is without limit
	// Threshold is what the draw, a number of 53 bits, must be below.
	Threshold uint64
	// Stream is where the draws of the seed begin.
	Stream uint64
	// Always is 1 if the draw cannot fail: which operations fire follows from their numbers then.
	Always uint64
	// Handle names the fault in the records of injections.
	Handle uint64

	Evaluated, Matched, Injected, Dropped uint64
	// Taken counts those that asked for one of Times; the first so many get it.
	Taken uint64
	// Runtime are the mount namespaces of the target's runtime.
	Runtime runtimeNamespaces
}

// Where the fields are.
const (
	atBegin = 8 * iota
	atEnd
	atPeriod
	atActive
	atAfter
	atEvery
	atTimes
	atThreshold
	atStream
	atAlways
	atHandle
	atEvaluated
	atMatched
	atInjected
	atDropped
	atTaken
	atRuntime
	_
	_
	targetSize
)

// The draw of operation n is mix(stream + n*gamma), see package policy's
// Counter: the same seed and order give the same faults there and here.
const (
	gamma    = 0x9e3779b97f4a7c15
	mix1     = 0xbf58476d1ce4e5b9
	mix2     = 0x94d049bb133111eb
	mantissa = 53
)

// wrap gives an instruction's constant the same 64 bits.
func wrap(u uint64) int64 { return int64(u) }

func mix(z uint64) uint64 {
	z = (z ^ z>>30) * mix1
	z = (z ^ z>>27) * mix2
	return z ^ z>>31
}

// newTarget gives the settings of a trigger whose clock has run for age at now,
// a time of bootTime.
func newTarget(t policy.Trigger, age time.Duration, now int64, handle uint64) targetState {
	t = t.Aged(age)
	v := targetState{
		Begin: now + int64(t.Delay), End: later(now, t.TTL),
		After: t.After, Every: max(t.Every, 1), Times: t.Times,
		Threshold: threshold(t.P), Stream: mix(t.Seed), Handle: handle,
	}
	if t.P >= 1 {
		v.Always = 1
	}
	if t.Delay > 0 {
		v.Begin = later(now, t.Delay)
	}
	if t.Active > 0 {
		v.Active, v.Period = uint64(t.Active), uint64(t.Active)+uint64(max(t.Idle, 0))
	}
	return v
}

func later(now int64, d time.Duration) int64 {
	if int64(d) > math.MaxInt64-now {
		return math.MaxInt64
	}
	return now + int64(d)
}

// threshold is the smallest number of 53 bits that a draw for p must not reach:
// k/2^53 < p is k < p*2^53, which floating point computes exactly.
func threshold(p float64) uint64 {
	switch {
	case p >= 1:
		return 1 << mantissa
	case p > 0:
		return uint64(math.Ceil(math.Ldexp(p, mantissa)))
	}
	return 0 // also NaN
}

// bootTime is the clock of bpf_ktime_get_boot_ns, CLOCK_BOOTTIME: it goes on
// while the machine is suspended, so that a ttl ends when its author expects it.
func bootTime() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, err
	}
	return ts.Nano(), nil
}

func (v *targetState) counters() Counters {
	return Counters{Evaluated: v.Evaluated, Matched: v.Matched, Injected: v.Injected, Dropped: v.Dropped}
}
