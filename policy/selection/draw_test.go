package selection

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

func some(n int) []*Container {
	var all []*Container
	for i := range n {
		all = append(all, &Container{Namespace: "default", Name: fmt.Sprintf("c%d", i), ID: fmt.Sprintf("id%d", i)})
	}
	return all
}

func names(all []*Container) []string {
	var out []string
	for _, c := range all {
		out = append(out, c.Name)
	}
	return out
}

// TestQuota is P2: each mode's number is exact; percentages round down.
func TestQuota(t *testing.T) {
	for _, tt := range []struct {
		mode     faultpolicy.Mode
		value, n int
		want     int
	}{
		{faultpolicy.ModeOne, 0, 10, 1},
		{faultpolicy.ModeOne, 0, 0, 0},
		{faultpolicy.ModeAll, 0, 10, 10},
		{faultpolicy.ModeFixed, 3, 10, 3},
		{faultpolicy.ModeFixed, 30, 10, 10},
		{faultpolicy.ModeFixedPercent, 50, 10, 5},
		{faultpolicy.ModeFixedPercent, 50, 3, 1},
		{faultpolicy.ModeFixedPercent, 99, 1, 0},
		{faultpolicy.ModeFixedPercent, 100, 7, 7},
		{"", 0, 4, 4},
	} {
		if got := Quota(tt.mode, tt.value, 7, tt.n); got != tt.want {
			t.Errorf("%s %d of %d: %d, want %d", tt.mode, tt.value, tt.n, got, tt.want)
		}
	}
	seen := map[int]bool{}
	for seed := range uint64(2000) {
		k := Quota(faultpolicy.ModeRandomMaxPercent, 20, seed, 100)
		if k < 0 || k > 20 {
			t.Fatalf("seed %d: %d of 100, more than 20 percent", seed, k)
		}
		seen[k] = true
	}
	if len(seen) != 21 {
		t.Errorf("of the shares 0 to 20 percent only %d are drawn", len(seen))
	}
}

// TestChooseIsWrittenDown keeps what a seed of today chooses for later versions.
func TestChooseIsWrittenDown(t *testing.T) {
	got := names(Choose(faultpolicy.ModeFixed, 4, 7, some(20)))
	if want := []string{"c11", "c15", "c6", "c9"}; !slices.Equal(got, want) {
		t.Errorf("seed 7 chooses %v, it has always been %v", got, want)
	}
}

// TestChooseIsStable is P2: the order in which containers are listed and a
// restart do not matter, and one that goes away changes nobody but itself and
// the one that takes its place.
func TestChooseIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := some(rapid.IntRange(1, 60).Draw(t, "n"))
		seed := rapid.Uint64().Draw(t, "seed")
		mode := rapid.SampledFrom([]faultpolicy.Mode{faultpolicy.ModeOne, faultpolicy.ModeFixed, faultpolicy.ModeFixedPercent, faultpolicy.ModeRandomMaxPercent}).Draw(t, "mode")
		value := rapid.IntRange(1, 100).Draw(t, "value")
		chosen := names(Choose(mode, value, seed, all))

		shuffled := slices.Clone(all)
		rand.New(rand.NewPCG(seed, 1)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		restarted := *shuffled[0]
		restarted.ID = "another"
		shuffled[0] = &restarted
		if again := names(Choose(mode, value, seed, shuffled)); !slices.Equal(chosen, again) {
			t.Fatalf("chose %v, then %v of the same containers in another order", chosen, again)
		}

		gone := rapid.IntRange(0, len(all)-1).Draw(t, "gone")
		left := slices.Delete(slices.Clone(all), gone, gone+1)
		after := names(Choose(mode, value, seed, left))
		fresh := slices.DeleteFunc(slices.Clone(after), func(n string) bool { return slices.Contains(chosen, n) })
		if len(fresh) > 1 {
			t.Fatalf("%s went away, and %v are new in %v (before %v)", all[gone].Name, fresh, after, chosen)
		}
	})
}

// TestChooseIsEven: over many seeds each container is chosen about as often.
func TestChooseIsEven(t *testing.T) {
	all := some(20)
	count := map[string]int{}
	const seeds = 10_000
	for seed := range uint64(seeds) {
		for _, c := range Choose(faultpolicy.ModeFixed, 5, seed, all) {
			count[c.Name]++
		}
	}
	for name, n := range count {
		if n < seeds/4*9/10 || n > seeds/4*11/10 { // 2500, sigma 43
			t.Errorf("%s was chosen %d times under %d seeds, about %d are right", name, n, seeds, seeds/4)
		}
	}
}
