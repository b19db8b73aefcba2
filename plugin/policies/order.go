package policies

import (
	"cmp"
	"slices"
	"strings"

	"github.com/faultgraft/faultgraft/policy/selection"
)

// order has the containers that match a policy in the order of their ranks
// under its seed: in blocks, so that one that comes moves few others in memory.
type order struct {
	seed   uint64
	blocks [][]slot // none is empty
	n      int
}

// blockSize is how many slots a block can have; one that is full is split.
const blockSize = 256

// fill puts these in, in place of all others.
func (o *order) fill(r *containers, all []slot) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b slot) int {
		return o.compare(r, selection.Rank(o.seed, r.hashes[a]), selection.Rank(o.seed, r.hashes[b]), a, b)
	})
	o.blocks, o.n = nil, len(all)
	for some := range slices.Chunk(all, blockSize/2) {
		o.blocks = append(o.blocks, slices.Clone(some))
	}
}

// search finds where a container is, or belongs; b is the number of blocks if
// that is behind all others.
func (o *order) search(r *containers, n slot) (b, i int) {
	rank := selection.Rank(o.seed, r.hashes[n])
	than := func(e, n slot) int { return o.compare(r, selection.Rank(o.seed, r.hashes[e]), rank, e, n) }
	b, _ = slices.BinarySearchFunc(o.blocks, n, func(block []slot, n slot) int { return than(block[len(block)-1], n) })
	if b < len(o.blocks) {
		i, _ = slices.BinarySearchFunc(o.blocks[b], n, than)
	}
	return b, i
}

// add puts a container in and gives its place.
func (o *order) add(r *containers, n slot) (at int) {
	b, i := o.search(r, n)
	switch {
	case len(o.blocks) == 0:
		o.blocks = [][]slot{nil}
	case b == len(o.blocks):
		b--
		i = len(o.blocks[b])
	}
	at = o.before(b) + i
	o.blocks[b] = slices.Insert(o.blocks[b], i, n)
	o.n++
	if full := o.blocks[b]; len(full) >= blockSize {
		half := len(full) / 2
		o.blocks[b] = slices.Clip(full[:half])
		o.blocks = slices.Insert(o.blocks, b+1, slices.Clone(full[half:]))
	}
	return at
}

// remove takes a container out and gives the place that it had.
func (o *order) remove(r *containers, n slot) (at int) {
	b, i := o.search(r, n)
	if b == len(o.blocks) || i == len(o.blocks[b]) || o.blocks[b][i] != n {
		panic("policies: a container that matches has no place in the order")
	}
	at = o.before(b) + i
	o.n--
	if o.blocks[b] = slices.Delete(o.blocks[b], i, i+1); len(o.blocks[b]) == 0 {
		o.blocks = slices.Delete(o.blocks, b, b+1)
	}
	return at
}

// before is how many are in the blocks before one.
func (o *order) before(b int) (n int) {
	for _, block := range o.blocks[:b] {
		n += len(block)
	}
	return n
}

// at gives the container at a place.
func (o *order) at(place int) slot {
	for _, block := range o.blocks {
		if place < len(block) {
			return block[place]
		}
		place -= len(block)
	}
	panic("policies: a place beyond the order")
}

// compare puts two containers in order by their ranks, and where those are the same by their ids.
func (o *order) compare(r *containers, ra, rb uint64, a, b slot) int {
	switch {
	case ra < rb:
		return -1
	case ra > rb:
		return 1
	case a == b:
		return 0
	}
	x, y := r.list[a], r.list[b]
	return cmp.Or(strings.Compare(x.ID, y.ID), strings.Compare(x.Namespace, y.Namespace))
}
