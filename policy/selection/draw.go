package selection

import (
	"cmp"
	"slices"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

// Hash is what a container brings to every draw: a hash of its identity (64-bit
// FNV-1a, finished with the mixer of splitmix64).
func Hash(c *Container) uint64 {
	const offset, prime = 0xcbf29ce484222325, 0x100000001b3
	h := uint64(offset)
	for _, b := range []byte(c.Identity()) {
		h = (h ^ uint64(b)) * prime
	}
	return mix(h)
}

// Rank is a container's place under a seed: of those that match, the ones with
// the lowest ranks are chosen (rendezvous hashing, Thaler and Ravishankar 1998).
// It depends on no other container, so that one that comes or goes moves nobody
// but itself and, where a number has to be kept, the one at the border.
func Rank(seed, hash uint64) uint64 { return mix(mix(seed) ^ hash) }

// mix is the finalizer of splitmix64 (Steele, Lea and Flood 2014).
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Quota is how many of n matching containers a mode chooses. The share of
// random-max-percent is drawn from the seed alone, each from 0 to value as likely as the others.
func Quota(mode faultpolicy.Mode, value int, seed uint64, n int) int {
	k := n
	switch mode {
	case faultpolicy.ModeOne:
		k = 1
	case faultpolicy.ModeFixed:
		k = value
	case faultpolicy.ModeFixedPercent:
		k = n * value / 100
	case faultpolicy.ModeRandomMaxPercent:
		k = n * int(mix(seed^shareStream)%uint64(max(value, 0)+1)) / 100
	case faultpolicy.ModeAll:
	}
	return max(0, min(k, n))
}

// shareStream keeps the draw of the share apart from those of the ranks.
const shareStream = 0x5ab3d1c9f6e08724

// Choose gives the containers that a mode chooses of those that match, by rank.
// It is a pure function of the seed, the identities and their number: the order
// of matching does not matter, and what is chosen is the same after a restart.
func Choose(mode faultpolicy.Mode, value int, seed uint64, matching []*Container) []*Container {
	type ranked struct {
		rank uint64
		c    *Container
	}
	all := make([]ranked, 0, len(matching))
	for _, c := range matching {
		all = append(all, ranked{Rank(seed, Hash(c)), c})
	}
	slices.SortFunc(all, func(a, b ranked) int { return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.c.ID, b.c.ID)) })
	chosen := make([]*Container, 0, Quota(mode, value, seed, len(all)))
	for _, r := range all[:cap(chosen)] {
		chosen = append(chosen, r.c)
	}
	return chosen
}
