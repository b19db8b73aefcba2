package policy

import (
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// firings gives the numbers of the operations, of the first n, that fire.
func firings(t Trigger, n int) []uint64 {
	if t.TTL == 0 {
		t.TTL = time.Minute
	}
	c := NewCounter(t, start)
	fired := []uint64{}
	for range n {
		if n, fire := c.Fire(start, 0); fire {
			fired = append(fired, n)
		}
	}
	return fired
}

func TestTriggerExact(t *testing.T) {
	tests := []struct {
		name string
		t    Trigger
		want []uint64
	}{
		{"always", Trigger{P: 1}, []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}},
		{"never", Trigger{P: 0}, []uint64{}},
		{"not a number", Trigger{P: math.NaN()}, []uint64{}},
		{"after", Trigger{P: 1, After: 10}, []uint64{11, 12}},
		{"after all", Trigger{P: 1, After: math.MaxUint64}, []uint64{}},
		{"every", Trigger{P: 1, Every: 5}, []uint64{1, 6, 11}},
		{"every one", Trigger{P: 1, Every: 1, After: 11}, []uint64{12}},
		{"every huge", Trigger{P: 1, Every: math.MaxUint64}, []uint64{1}},
		{"after and every", Trigger{P: 1, After: 3, Every: 4}, []uint64{4, 8, 12}},
		{"times", Trigger{P: 1, Times: 2}, []uint64{1, 2}},
		{"all three", Trigger{P: 1, After: 2, Every: 3, Times: 3}, []uint64{3, 6, 9}},
		{"nth", Trigger{P: 1, After: 6, Times: 1}, []uint64{7}},
	}
	for _, tt := range tests {
		if got := firings(tt.t, 12); !slices.Equal(got, tt.want) {
			t.Errorf("%s: fired at %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestTriggerProbability is F4: p=0 never, p=1 always, p=0.1 within three
// standard deviations; and the same for other shares and seeds.
func TestTriggerProbability(t *testing.T) {
	const n = 100_000
	for _, p := range []float64{0, 0.001, 0.1, 0.5, 0.9, 1} {
		for _, seed := range []uint64{0, 1, 2, 12345, math.MaxUint64} {
			got := float64(len(firings(Trigger{P: p, Seed: seed}, n)))
			mean, sigma := n*p, math.Sqrt(n*p*(1-p))
			if math.Abs(got-mean) > 3*sigma {
				t.Errorf("p=%v seed=%d: fired %v of %d, want %v ± %.0f", p, seed, got, n, mean, 3*sigma)
			}
		}
	}
}

// TestTriggerRepeatable is F3 as far as the trigger goes; the numbers are
// written down so that a later version draws the same for a seed of today.
func TestTriggerRepeatable(t *testing.T) {
	one := firings(Trigger{P: 0.1, Seed: 7}, 100)
	if want := []uint64{10, 20, 33, 60, 65, 68, 70, 76, 86, 99}; !slices.Equal(one, want) {
		t.Errorf("seed 7 fires at %v, it has always been %v", one, want)
	}
	if again := firings(Trigger{P: 0.1, Seed: 7}, 100); !slices.Equal(one, again) {
		t.Errorf("seed 7 fired at %v, then at %v", one, again)
	}
	if other := firings(Trigger{P: 0.1, Seed: 8}, 100); slices.Equal(one, other) {
		t.Error("seeds 7 and 8 fire alike")
	}
}

func TestTriggerTimesWithProbability(t *testing.T) {
	without := firings(Trigger{P: 0.2, Seed: 3}, 1000)
	got := firings(Trigger{P: 0.2, Seed: 3, Times: 10}, 1000)
	if !slices.Equal(got, without[:10]) {
		t.Errorf("times=10 fired at %v, want the first ten of %v", got, without[:20])
	}
}

// TestTriggerConcurrent shows that counts are exact, and with p=1 also the
// numbers of the operations that fire, with 64 goroutines at once.
func TestTriggerConcurrent(t *testing.T) {
	const goroutines, each = 64, 1000
	for _, trigger := range []Trigger{
		{P: 1, Times: 100, TTL: time.Minute},
		{P: 1, After: 777, Every: 7, Times: 1000, TTL: time.Minute},
		{P: 1, After: 31999, Times: 1, TTL: time.Minute},
		{P: 0.5, Seed: 1, Times: 100, TTL: time.Minute},
		{P: 0.01, Seed: 1, TTL: time.Minute},
	} {
		c := NewCounter(trigger, start)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var all, fired []uint64
		for range goroutines {
			wg.Go(func() {
				var mine, hits []uint64
				for range each {
					n, fire := c.Fire(start, 0)
					mine = append(mine, n)
					if fire {
						hits = append(hits, n)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				all, fired = append(all, mine...), append(fired, hits...)
			})
		}
		wg.Wait()
		slices.Sort(all)
		slices.Sort(fired)
		if len(all) != goroutines*each || all[0] != 1 || all[len(all)-1] != goroutines*each || len(slices.Compact(all)) != goroutines*each {
			t.Errorf("%+v: the numbers are not 1 to %d, each once", trigger, goroutines*each)
		}
		want := firings(trigger, goroutines*each)
		if len(fired) != len(want) {
			t.Errorf("%+v: fired %d times, want %d", trigger, len(fired), len(want))
		}
		if (trigger.P == 1 || trigger.Times == 0) && !slices.Equal(fired, want) {
			t.Errorf("%+v: fired at other operations than one thread does", trigger)
		}
		if c.Matched() != goroutines*each || c.Fired() != uint64(len(want)) || c.Spent() != (trigger.Times != 0) {
			t.Errorf("%+v: matched %d, fired %d, spent %v", trigger, c.Matched(), c.Fired(), c.Spent())
		}
	}
}

// TestTriggerRace lets goroutines race for the last of `times`, many times over.
func TestTriggerRace(t *testing.T) {
	const goroutines, each, rounds = 8, 200, 200
	for _, trigger := range []Trigger{
		{P: 1, Times: goroutines * each / 2, TTL: time.Minute},
		{P: 1 - 1e-12, Times: goroutines * each / 2, TTL: time.Minute}, // by draw and compare-and-swap
	} {
		for range rounds {
			c := NewCounter(trigger, start)
			gate := make(chan struct{})
			var wg sync.WaitGroup
			var late, fired atomic.Uint64
			for range goroutines {
				wg.Go(func() {
					<-gate
					for range each {
						if n, fire := c.Fire(start, 0); fire {
							fired.Add(1)
							if n > trigger.Times {
								late.Add(1)
							}
						}
					}
				})
			}
			close(gate)
			wg.Wait()
			if fired.Load() != trigger.Times || c.Fired() != trigger.Times {
				t.Fatalf("p=%v: fired %d times, counted %d, want %d", trigger.P, fired.Load(), c.Fired(), trigger.Times)
			}
			if trigger.P == 1 && late.Load() != 0 {
				t.Fatal("an operation with a number above times fired, in place of an earlier one")
			}
		}
	}
}

// TestTriggerLastOne lets two goroutines meet at the only firing of a rule,
// for many rules.
func TestTriggerLastOne(t *testing.T) {
	const rounds = 30_000
	counters := make([]*Counter, rounds)
	for i := range counters {
		counters[i] = NewCounter(Trigger{P: 1 - 1e-12, Times: 1, TTL: time.Minute}, start)
	}
	arrived := make([]atomic.Int32, rounds)
	var wg sync.WaitGroup
	var fired atomic.Uint64
	for range 2 {
		wg.Go(func() {
			for i, c := range counters {
				arrived[i].Add(1)
				for arrived[i].Load() < 2 {
					runtime.Gosched()
				}
				if _, fire := c.Fire(start, 0); fire {
					fired.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if fired.Load() != rounds {
		t.Errorf("%d rules with times=1 fired %d times", rounds, fired.Load())
	}
}

func TestTriggerExpiry(t *testing.T) {
	c := NewCounter(Trigger{P: 1, TTL: time.Minute}, start)
	end := start.Add(time.Minute)
	if !c.Expires().Equal(end) {
		t.Errorf("expires at %v, want %v", c.Expires(), end)
	}
	for _, now := range []time.Time{start, end.Add(-1)} {
		if _, fire := c.Fire(now, 0); !fire || c.Expired(now) {
			t.Errorf("at %v the rule is over already", now)
		}
	}
	for _, now := range []time.Time{end, end.Add(time.Hour)} {
		if n, fire := c.Fire(now, 0); fire || n != 0 || !c.Expired(now) {
			t.Errorf("at %v the rule still lives", now)
		}
	}
	if c.Matched() != 2 || c.Fired() != 2 {
		t.Errorf("matched %d, fired %d, want 2 and 2", c.Matched(), c.Fired())
	}
	if _, fire := NewCounter(Trigger{P: 1}, start).Fire(start, 0); fire {
		t.Error("a trigger without a time to live fired")
	}
}

// TestTriggerModel compares the counter with the sentence that documents Trigger.
func TestTriggerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		trigger := Trigger{
			P:     rapid.SampledFrom([]float64{0, 0.3, 1}).Draw(t, "p"),
			After: rapid.Uint64Range(0, 20).Draw(t, "after"),
			Every: rapid.Uint64Range(0, 5).Draw(t, "every"),
			Times: rapid.Uint64Range(0, 5).Draw(t, "times"),
			Seed:  rapid.Uint64().Draw(t, "seed"),
			TTL:   time.Minute,
		}
		c := NewCounter(trigger, start)
		fired := uint64(0)
		for n := uint64(1); n <= 60; n++ {
			want := n > trigger.After &&
				(trigger.Every <= 1 || (n-trigger.After-1)%trigger.Every == 0) &&
				(trigger.Times == 0 || fired < trigger.Times) &&
				c.draw(n) < trigger.P
			if want {
				fired++
			}
			if number, fire := c.Fire(start, 0); number != n || fire != want {
				t.Fatalf("operation %d: got number %d, fire %v, want %v", n, number, fire, want)
			}
		}
	})
}

func TestDrawIsAFraction(t *testing.T) {
	c := NewCounter(Trigger{}, start)
	for n := range uint64(100_000) {
		if d := c.draw(n); d < 0 || d >= 1 {
			t.Fatalf("draw %d is %v", n, d)
		}
	}
}

func BenchmarkFire(b *testing.B) {
	for _, bb := range []struct {
		name string
		t    Trigger
	}{
		{"always", Trigger{P: 1}}, {"p", Trigger{P: 0.05, Seed: 1}}, {"p-times", Trigger{P: 0.5, Seed: 1, Times: 10}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			bb.t.TTL = time.Hour
			c := NewCounter(bb.t, time.Now())
			now := time.Now()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					c.Fire(now, 0)
				}
			})
		})
	}
}
