package policy

import (
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestDelayAndPulses shows at which times a rule matches, to the nanosecond.
func TestDelayAndPulses(t *testing.T) {
	const s = time.Second
	tests := []struct {
		name string
		t    Trigger
		on   []time.Duration // since the activation
		off  []time.Duration
	}{
		{"neither", Trigger{}, []time.Duration{-s, 0, 59 * s}, []time.Duration{60 * s, 61 * s}},
		{"delay", Trigger{Delay: 10 * s}, []time.Duration{10 * s, 59 * s}, []time.Duration{-s, 0, 10*s - 1, 60 * s}},
		{
			"pulses", Trigger{Active: 3 * s, Idle: 7 * s},
			[]time.Duration{-s, 0, 3*s - 1, 10 * s, 13*s - 1, 50 * s},
			[]time.Duration{3 * s, 10*s - 1, 13 * s, 20*s - 1, 60 * s},
		},
		{
			"pulses after a delay", Trigger{Delay: 5 * s, Active: 1 * s, Idle: 2 * s},
			[]time.Duration{5 * s, 6*s - 1, 8 * s, 11 * s},
			[]time.Duration{0, 5*s - 1, 6 * s, 8*s - 1, 9 * s},
		},
		{"a delay longer than the rule", Trigger{Delay: 61 * s}, nil, []time.Duration{0, 60 * s, 61 * s}},
		{"longest pulses", Trigger{Active: math.MaxInt64, Idle: math.MaxInt64}, []time.Duration{0, 59 * s}, []time.Duration{60 * s}},
		{"longest rest", Trigger{Active: 1, Idle: math.MaxInt64}, []time.Duration{0}, []time.Duration{1, 59 * s}},
	}
	for _, tt := range tests {
		tt.t.P, tt.t.TTL = 1, time.Minute
		c := NewCounter(tt.t, start)
		for _, at := range tt.off {
			if n, fire := c.Fire(start.Add(at), 1<<20); n != 0 || fire || c.Awake(start.Add(at)) {
				t.Errorf("%s: matches at %v (operation %d)", tt.name, at, n)
			}
		}
		if c.Matched() != 0 || c.Fired() != 0 {
			t.Errorf("%s: an operation at a time of rest was counted", tt.name)
		}
		for i, at := range tt.on {
			if n, fire := c.Fire(start.Add(at), 0); n != uint64(i+1) || !fire || !c.Awake(start.Add(at)) {
				t.Errorf("%s: operation %d at %v is number %d, fires %v", tt.name, i+1, at, n, fire)
			}
		}
	}
}

// TestNothingCountsInARest shows that after, every, times and afterBytes see
// only what comes while the rule is awake.
func TestNothingCountsInARest(t *testing.T) {
	c := NewCounter(Trigger{P: 1, After: 1, Every: 2, Times: 2, AfterBytes: 10, Delay: time.Second, Active: time.Second, Idle: time.Second, TTL: time.Minute}, start)
	type fired struct {
		at time.Duration
		n  uint64
	}
	var got []fired
	for at := time.Duration(0); at < 10*time.Second; at += 500 * time.Millisecond {
		if n, fire := c.Fire(start.Add(at), 10); fire {
			got = append(got, fired{at, n})
		}
	}
	// Awake are 1s, 1.5s, 3s, 3.5s, 5s, 5.5s ...; the first one is passed by
	// afterBytes, the second by after.
	ms := time.Millisecond
	if want := []fired{{3000 * ms, 2}, {5000 * ms, 4}}; !slices.Equal(got, want) {
		t.Errorf("fired at %v, want %v", got, want)
	}
}

func TestAfterBytes(t *testing.T) {
	tests := []struct {
		limit uint64
		sizes []int64
		first int // which one is the rule's operation 1
	}{
		{1, []int64{0, 1, 1}, 3},
		{4096, []int64{4096, 4096}, 2},
		{4096, []int64{4096, 0, 1, 0}, 3},
		{4095, []int64{4096, 4096}, 1},
		{4097, []int64{4096, 0, -1, 4096}, 4},
		{10, []int64{3, 3, 3, 3}, 4},
		{10, []int64{11, 0, 0}, 1},
		{math.MaxInt64, []int64{math.MaxInt64, math.MaxInt64, math.MaxInt64, 1}, 2},
	}
	for _, tt := range tests {
		c := NewCounter(Trigger{P: 1, AfterBytes: tt.limit, TTL: time.Minute}, start)
		for i, size := range tt.sizes {
			want := uint64(max(i+2-tt.first, 0))
			if n, fire := c.Fire(start, size); n != want || fire != (want > 0) {
				t.Errorf("afterBytes=%d: operation %d of %v is number %d, fires %v, want number %d", tt.limit, i+1, tt.sizes, n, fire, want)
			}
		}
	}
}

// TestAfterBytesConcurrent shows that with many threads, too, exactly as many
// operations pass as it takes to pass the bytes, and that the triggers after it
// count from there.
func TestAfterBytesConcurrent(t *testing.T) {
	const goroutines, each, size, pass, rounds = 8, 30_000, 512, 200_000, 15
	for range rounds {
		c := NewCounter(Trigger{P: 1, AfterBytes: pass * size, After: 100, Times: 50, TTL: time.Minute}, start)
		var numbers, fired [goroutines][]uint64
		gate := make(chan struct{})
		var wg sync.WaitGroup
		for g := range goroutines {
			wg.Go(func() {
				<-gate
				for range each {
					n, fire := c.Fire(start, size)
					if n != 0 {
						numbers[g] = append(numbers[g], n)
					}
					if fire {
						fired[g] = append(fired[g], n)
					}
				}
			})
		}
		close(gate)
		wg.Wait()
		all, hits := slices.Sorted(slices.Values(slices.Concat(numbers[:]...))), slices.Sorted(slices.Values(slices.Concat(fired[:]...)))
		if want := goroutines*each - pass; len(all) != want || len(slices.Compact(all)) != want || all[0] != 1 || c.Matched() != uint64(want) {
			t.Fatalf("%d operations were counted, the numbers of %d; want 1 to %d, each once", c.Matched(), len(all), want)
		}
		if len(hits) != 50 || hits[0] != 101 || hits[49] != 150 {
			t.Fatalf("fired at %v, want 101 to 150", hits)
		}
	}
}

// TestAfterBytesModel compares the count with a plain sum.
func TestAfterBytesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Uint64Range(0, 50).Draw(t, "afterBytes")
		c := NewCounter(Trigger{P: 1, AfterBytes: limit, TTL: time.Minute}, start)
		sum, number := uint64(0), uint64(0)
		for _, size := range rapid.SliceOf(rapid.Int64Range(0, 20)).Draw(t, "sizes") {
			sum += uint64(size)
			if sum > limit || limit == 0 {
				number++
			}
			want := number
			if sum <= limit && limit != 0 {
				want = 0
			}
			if n, _ := c.Fire(start, size); n != want {
				t.Fatalf("after %d bytes of %d the operation is number %d, want %d", sum, limit, n, want)
			}
		}
	})
}

// TestAged shows that a rule which is made anew matches at the very times at
// which the old one would have.
func TestAged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ms := func(name string, least, most int64) time.Duration {
			return time.Duration(rapid.Int64Range(least, most).Draw(t, name)) * time.Millisecond
		}
		r, err := ParseRule("r", "io error=EIO op=read path=/d ttl=1s", Defaults{})
		if err != nil {
			t.Fatal(err)
		}
		r.Trigger.Delay = ms("delay", 0, 500)
		if rapid.Bool().Draw(t, "pulses") {
			r.Trigger.Active, r.Trigger.Idle = ms("active", 1, 300), ms("idle", 1, 300)
		}
		age := ms("age", 0, 999)
		old := NewCounter(r.Trigger, start)
		r.Trigger = r.Trigger.Aged(age)
		again := NewCounter(r.Trigger, start.Add(age))
		for at := age; at < 1100*time.Millisecond; at += time.Millisecond {
			if now := start.Add(at); old.Awake(now) != again.Awake(now) || old.Expired(now) != again.Expired(now) {
				t.Fatalf("%v after the start the old rule is awake: %v, the new one: %v", at, old.Awake(now), again.Awake(now))
			}
		}
		if err := r.Check(); err != nil {
			t.Fatal(err)
		}
	})
}
