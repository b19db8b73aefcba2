package kernel

import (
	"math"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// The numbers that the program computes with are those of policy.Counter: for
// each operation the two say the same.
func TestTargetIsPolicysTrigger(t *testing.T) {
	start := time.Unix(1000, 0)
	for _, trigger := range []policy.Trigger{
		{P: 1}, {P: 0}, {P: 0.5, Seed: 7}, {P: 0.01, Seed: 1}, {P: 1, After: 3, Every: 4, Times: 5},
		{P: 0.3, Seed: 9, After: 10, Every: 3, Times: 20}, {P: math.NaN()}, {P: 1, Every: 1, Times: 1},
		{P: math.Nextafter(1, 0), Seed: 3}, {P: math.SmallestNonzeroFloat64, Seed: 3},
	} {
		trigger.TTL = time.Hour
		counter := policy.NewCounter(trigger, start)
		v := newTarget(trigger, 0, 0, 1)
		for n := range 2000 {
			_, want := counter.Fire(start, 0)
			if got := v.fire(); got != want {
				t.Fatalf("%+v: operation %d: %t, want %t", trigger, n+1, got, want)
			}
		}
	}
}

// fire is trigger() in Go.
func (v *targetState) fire() bool {
	v.Matched++
	n := v.Matched
	if n <= v.After {
		return false
	}
	turn := n - v.After - 1
	if v.Every > 1 {
		if turn%v.Every != 0 {
			return false
		}
		turn /= v.Every
	}
	if v.Always == 1 {
		return v.Times == 0 || turn < v.Times
	}
	if mix(v.Stream+n*gamma)>>(64-mantissa) >= v.Threshold {
		return false
	}
	if v.Times != 0 {
		v.Taken++
		return v.Taken <= v.Times
	}
	return true
}

func TestTargetClock(t *testing.T) {
	const now = int64(5 * time.Minute)
	trigger := policy.Trigger{P: 1, TTL: time.Minute, Delay: 10 * time.Second, Active: 2 * time.Second, Idle: 3 * time.Second}
	v := newTarget(trigger, 0, now, 1)
	if v.Begin != now+int64(10*time.Second) || v.End != now+int64(time.Minute) || v.Period != uint64(5*time.Second) || v.Active != uint64(2*time.Second) {
		t.Errorf("new: %+v", v)
	}
	// 21 seconds old: 49 are left, and the pulses began 11 ago, which is 1 into the third.
	v = newTarget(trigger, 21*time.Second, now, 1)
	if v.End != now+int64(39*time.Second) || (now-v.Begin)%int64(5*time.Second) != int64(time.Second) {
		t.Errorf("aged: %+v", v)
	}
	if v = newTarget(policy.Trigger{P: 1, TTL: math.MaxInt64}, 0, now, 1); v.End != math.MaxInt64 || v.Begin != now {
		t.Errorf("endless: %+v", v)
	}
}
