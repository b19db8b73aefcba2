package policy

import (
	"math"
	"slices"
	"syscall"
	"testing"
	"time"
)

// draws gives the waits of the first n operations of a rule, sorted.
func draws(l Latency, seed uint64, n int) []time.Duration {
	c := NewCounter(Trigger{Seed: seed}, start)
	waits := make([]time.Duration, n)
	for i := range waits {
		waits[i] = l.Draw(c.Source(uint64(i + 1)))
	}
	slices.Sort(waits)
	return waits
}

// TestLatencyQuantiles is F5: median and 99th percentile of 100,000 draws are
// within 5 % of what the distribution has.
func TestLatencyQuantiles(t *testing.T) {
	const n = 100_000
	ms := func(f float64) time.Duration { return time.Duration(f * float64(time.Millisecond)) }
	tests := []struct {
		name     string
		l        Latency
		p50, p99 time.Duration
	}{
		{"fixed", Latency{Base: ms(20)}, ms(20), ms(20)},
		{"uniform", Latency{Kind: Uniform, Base: ms(10), Spread: ms(40)}, ms(30), ms(49.6)},
		{"normal", Latency{Kind: Normal, Base: ms(20), Spread: ms(5)}, ms(20), ms(20 + 5*2.326348)},
		{"exp", Latency{Kind: Exp, Base: ms(20)}, ms(20 * math.Ln2), ms(20 * math.Log(100))},
		{"pareto", Latency{Kind: Pareto, Base: ms(10), Shape: 1.5}, ms(10 * math.Pow(2, 1/1.5)), ms(10 * math.Pow(100, 1/1.5))},
		{"pareto, steep", Latency{Kind: Pareto, Base: ms(10), Shape: 5}, ms(10 * math.Pow(2, 0.2)), ms(10 * math.Pow(100, 0.2))},
	}
	for _, tt := range tests {
		for _, seed := range []uint64{0, 1, 7, math.MaxUint64} {
			waits := draws(tt.l, seed, n)
			for _, q := range []struct {
				name      string
				got, want time.Duration
			}{{"p50", waits[n/2], tt.p50}, {"p99", waits[n*99/100], tt.p99}} {
				if math.Abs(float64(q.got-q.want)) > 0.05*float64(q.want) {
					t.Errorf("%s, seed %d: %s is %v, want %v", tt.name, seed, q.name, q.got, q.want)
				}
			}
		}
	}
}

// TestLatencyBounds shows that no wait is negative or longer than the cap,
// whatever the numbers of the rule are.
func TestLatencyBounds(t *testing.T) {
	const n = 10_000
	for _, l := range []Latency{
		{Base: math.MaxInt64}, {Base: -1}, {Base: time.Second, Cap: time.Millisecond},
		{Kind: Uniform, Base: math.MaxInt64 / 2, Spread: math.MaxInt64},
		{Kind: Uniform, Base: time.Millisecond, Spread: time.Second, Cap: 10 * time.Millisecond},
		{Kind: Normal, Base: time.Millisecond, Spread: time.Second},
		{Kind: Normal, Base: time.Millisecond, Spread: time.Second, Cap: time.Second},
		{Kind: Normal, Base: math.MaxInt64, Spread: math.MaxInt64},
		{Kind: Exp, Base: math.MaxInt64},
		{Kind: Exp, Base: time.Second, Cap: 2 * time.Second},
		{Kind: Pareto, Base: time.Hour, Shape: 0.01},
		{Kind: Pareto, Base: time.Second, Shape: 0.5, Cap: time.Minute},
		{Kind: Pareto, Base: time.Second},
	} {
		waits := draws(l, 7, n)
		if waits[0] < 0 || l.Cap > 0 && waits[n-1] > l.Cap {
			t.Errorf("%+v: waits from %v to %v", l, waits[0], waits[n-1])
		}
		if l.Cap > 0 && l.Kind != Normal && waits[n-1] != l.Cap {
			t.Errorf("%+v: nothing comes up to the cap: the longest wait is %v", l, waits[n-1])
		}
	}
}

// TestDrawsRepeatable is F3 for what actions draw: the values are written down
// so that a later version draws the same for a seed of today.
func TestDrawsRepeatable(t *testing.T) {
	c := NewCounter(Trigger{Seed: 7}, start)
	src := c.Source(3)
	if got, want := [3]uint64{src.Uint64(), src.Uint64(), src.Uint64()}, goldenSource; got != want {
		t.Errorf("seed 7, operation 3 draws %#x, it has always been %#x", got, want)
	}
	for _, g := range goldenWaits {
		for i, want := range g.waits {
			// The last bits of a logarithm may differ between processors (fused multiply-add).
			if got := g.l.Draw(c.Source(uint64(i + 1))); (got - want).Abs() > time.Nanosecond {
				t.Errorf("%+v: seed 7, operation %d waits %d, it has always been %d", g.l, i+1, got, want)
			}
		}
	}
	var got []syscall.Errno
	for n := range uint64(len(goldenErrnos)) {
		got = append(got, PickErrno([]WeightedErrno{{syscall.EIO, 3}, {syscall.ENOSPC, 1}}, c.Source(n+1)))
	}
	if !slices.Equal(got, goldenErrnos) {
		t.Errorf("seed 7 answers %d, it has always been %d", got, goldenErrnos)
	}
	if slices.Equal(draws(Latency{Kind: Exp, Base: time.Second}, 7, 10), draws(Latency{Kind: Exp, Base: time.Second}, 8, 10)) {
		t.Error("seeds 7 and 8 wait alike")
	}
}

var (
	goldenSource = [3]uint64{0x2949438ab1ee96dd, 0x68901edbdaeea294, 0x126eb04e772e4760}
	goldenWaits  = []struct {
		l     Latency
		waits [3]time.Duration
	}{
		{Latency{Kind: Uniform, Base: time.Second, Spread: time.Second}, [3]time.Duration{1213854069, 1350584038, 1161274167}},
		{Latency{Kind: Normal, Base: time.Second, Spread: time.Second / 4}, [3]time.Duration{801720097, 904063959, 752691330}},
		{Latency{Kind: Exp, Base: time.Second}, [3]time.Duration{240612841, 431681841, 175871404}},
		{Latency{Kind: Pareto, Base: time.Second, Shape: 1.5}, [3]time.Duration{1173990419, 1333474436, 1124397799}},
	}
	goldenErrnos = []syscall.Errno{5, 5, 5, 28, 5, 5, 28, 5}
)

// TestErrnoWeights shows that each errno comes as often as its weight says,
// within three standard deviations.
func TestErrnoWeights(t *testing.T) {
	const n = 100_000
	for _, errors := range [][]WeightedErrno{
		{{syscall.EIO, 1}},
		{{syscall.EIO, 3}, {syscall.ENOSPC, 1}},
		{{syscall.EIO, 1}, {syscall.ENOSPC, 1}, {syscall.EDQUOT, 98}},
		{{syscall.EIO, math.MaxUint32}, {syscall.ENOSPC, math.MaxUint32}},
		{{syscall.EIO, 0}, {syscall.ENOSPC, 5}, {syscall.EDQUOT, 0}},
	} {
		var sum float64
		for _, e := range errors {
			sum += float64(e.Weight)
		}
		c := NewCounter(Trigger{Seed: 5}, start)
		got := make(map[syscall.Errno]float64)
		for i := range uint64(n) {
			got[PickErrno(errors, c.Source(i+1))]++
		}
		total := 0.0
		for _, e := range errors {
			share := float64(e.Weight) / sum
			if mean, sigma := n*share, math.Sqrt(n*share*(1-share)); math.Abs(got[e.Errno]-mean) > 3*sigma {
				t.Errorf("%v: %v came %v times of %d, want %v ± %.0f", errors, e.Errno, got[e.Errno], n, mean, 3*sigma)
			}
			total += got[e.Errno]
		}
		if total != n {
			t.Errorf("%v: %v draws gave none of them", errors, n-total)
		}
	}
	if e := PickErrno(nil, NewCounter(Trigger{}, start).Source(1)); e != 0 {
		t.Errorf("no errors give %v", e)
	}
}
