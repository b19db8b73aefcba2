package policies

import (
	"iter"
	"math/bits"
)

// bitset is a set of small numbers: the slots of containers.
type bitset []uint64

func (b bitset) has(n slot) bool {
	return int(n>>6) < len(b) && b[n>>6]&(1<<(n&63)) != 0
}

func (b *bitset) add(n slot) {
	for int(n>>6) >= len(*b) {
		*b = append(*b, 0)
	}
	(*b)[n>>6] |= 1 << (n & 63)
}

func (b bitset) remove(n slot) {
	if int(n>>6) < len(b) {
		b[n>>6] &^= 1 << (n & 63)
	}
}

func (b bitset) all() iter.Seq[slot] {
	return func(yield func(slot) bool) {
		for i, w := range b {
			for ; w != 0; w &= w - 1 {
				if !yield(slot(i<<6 + bits.TrailingZeros64(w))) {
					return
				}
			}
		}
	}
}
