package policy

import (
	"math"
	"math/bits"
	"syscall"
	"time"
)

// Draw gives how long an operation waits. It takes one number from src, none
// if the latency is fixed, and turns it into the quantile of the distribution:
// the same number always gives the same wait. The result is never negative and
// never above Cap.
func (l *Latency) Draw(src *Source) time.Duration {
	if l.Kind == Fixed {
		return l.limit(l.Base)
	}
	return l.quantile(src.fraction())
}

// quantile is the wait below which this share of all waits are; share is
// between 0 and 1, both excluded.
func (l *Latency) quantile(share float64) time.Duration {
	base, spread := float64(l.Base), float64(l.Spread)
	wait := base
	switch l.Kind {
	case Uniform:
		wait = base + spread*share
	case Normal:
		wait = base + spread*math.Sqrt2*math.Erfinv(2*share-1)
	case Exp:
		wait = -base * math.Log1p(-share)
	case Pareto:
		wait = base * math.Pow(1-share, -1/l.Shape)
	}
	if !(wait < math.MaxInt64) { // a far tail of Pareto, also when it is infinite
		return l.limit(math.MaxInt64)
	}
	return l.limit(time.Duration(wait))
}

func (l *Latency) limit(d time.Duration) time.Duration {
	if l.Cap > 0 {
		d = min(d, l.Cap)
	}
	return max(d, 0)
}

// fraction gives a number between 0 and 1, both excluded, so that every
// quantile of it is finite.
func (s *Source) fraction() float64 {
	const mantissa = 52
	return (float64(s.Uint64()>>(64-mantissa)) + 0.5) / (1 << mantissa)
}

// PickErrno draws one of the errors, each as often as its weight says. It takes
// one number from src, none if there is nothing to choose; without errors it is 0.
func PickErrno(errors []WeightedErrno, src *Source) syscall.Errno {
	if len(errors) == 1 {
		return errors[0].Errno
	}
	var sum uint64
	for _, e := range errors {
		sum += uint64(e.Weight)
	}
	if sum == 0 {
		return 0
	}
	turn, _ := bits.Mul64(src.Uint64(), sum) // from 0 to sum-1
	for _, e := range errors {
		if turn < uint64(e.Weight) {
			return e.Errno
		}
		turn -= uint64(e.Weight)
	}
	return 0
}
