package policies

import (
	"slices"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/selection"
)

// choice is the set of containers that match a policy and, of these, the ones
// that are chosen: the first of them in an order that seed and identity give
// (rendezvous hashing), so that a container that comes or goes changes as few
// of the others as the numbers allow.
type choice struct {
	seed    uint64
	matched bitset
	chosen  bitset
	n       int
	// limit is how many of n containers are chosen; nil: all of them, and there is no order to keep.
	limit func(n int) int
	// order has the slots of those that match, in the order of their ranks. Four bytes each: a
	// thousand policies that match ten thousand containers must fit into memory.
	order []slot
	k     int // how many of order are chosen
}

// ranks gives what the order is by.
type ranks interface {
	// rank of a container under a seed; id breaks ties.
	rank(seed uint64, n slot) (rank uint64, id string)
}

func newChoice(spec *faultpolicy.Spec, seed uint64) *choice {
	c := &choice{seed: seed}
	if spec.Mode == faultpolicy.ModeAll && spec.Guard.MaxContainers == 0 && spec.Guard.MaxPercent == 0 {
		return c
	}
	mode, value, guard := spec.Mode, spec.Value, spec.Guard
	c.limit = func(n int) int {
		k := selection.Quota(mode, value, seed, n)
		if guard.MaxContainers > 0 {
			k = min(k, guard.MaxContainers)
		}
		if guard.MaxPercent > 0 {
			k = min(k, n*guard.MaxPercent/100)
		}
		return k
	}
	return c
}

// len is how many are chosen.
func (c *choice) len() int {
	if c.limit == nil {
		return c.n
	}
	return c.k
}

func (c *choice) matches(n slot) bool { return c.matched.has(n) }

func (c *choice) has(n slot) bool {
	if c.limit == nil {
		return c.matched.has(n)
	}
	return c.chosen.has(n)
}

// all are those that are chosen; the caller must not change it.
func (c *choice) all() bitset {
	if c.limit == nil {
		return c.matched
	}
	return c.chosen
}

// fill makes the choice from scratch.
func (c *choice) fill(r ranks, matching []slot) {
	c.matched, c.chosen, c.n, c.order, c.k = nil, nil, len(matching), nil, 0
	for _, n := range matching {
		c.matched.add(n)
	}
	if c.limit == nil {
		return
	}
	c.order = slices.Clone(matching)
	slices.SortFunc(c.order, func(a, b slot) int { return c.compare(r, a, b) })
	c.settle(nil)
}

// add and remove change the choice by one container that matches, or does not
// any more; changed is told of each other container that is chosen or dropped for it.
func (c *choice) add(r ranks, n slot, changed func(slot)) {
	c.matched.add(n)
	c.n++
	if c.limit == nil {
		return
	}
	at, _ := slices.BinarySearchFunc(c.order, n, func(e, t slot) int { return c.compare(r, e, t) })
	c.order = slices.Insert(c.order, at, n)
	if at < c.k {
		c.chosen.add(n)
		c.k++
	}
	c.settle(func(m slot) {
		if m != n {
			changed(m)
		}
	})
}

func (c *choice) remove(r ranks, n slot, changed func(slot)) {
	c.matched.remove(n)
	c.n--
	if c.limit == nil {
		return
	}
	at, found := slices.BinarySearchFunc(c.order, n, func(e, t slot) int { return c.compare(r, e, t) })
	if !found {
		panic("policies: a container that matches has no place in the order")
	}
	c.order = slices.Delete(c.order, at, at+1)
	if at < c.k {
		c.chosen.remove(n)
		c.k--
	}
	c.settle(changed)
}

// settle moves the border of the choice to where it belongs.
func (c *choice) settle(changed func(slot)) {
	want := min(c.limit(c.n), c.n)
	for c.k < want {
		c.chosen.add(c.order[c.k])
		if changed != nil {
			changed(c.order[c.k])
		}
		c.k++
	}
	for c.k > want {
		c.k--
		c.chosen.remove(c.order[c.k])
		if changed != nil {
			changed(c.order[c.k])
		}
	}
}

func (c *choice) compare(r ranks, a, b slot) int {
	if a == b {
		return 0
	}
	ra, ia := r.rank(c.seed, a)
	rb, ib := r.rank(c.seed, b)
	switch {
	case ra < rb:
		return -1
	case ra > rb:
		return 1
	case ia < ib:
		return -1
	case ia > ib:
		return 1
	}
	return int(a) - int(b)
}
