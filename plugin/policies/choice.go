package policies

import (
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/selection"
)

// choice is the set of containers that match a policy and, of these, the ones
// that are chosen: the first of them in an order that seed and identity give
// (rendezvous hashing), so that a container that comes or goes changes as few
// of the others as the numbers allow.
type choice struct {
	matched bitset
	chosen  bitset
	n       int
	// limit is how many of n containers are chosen; nil: all of them, and there is no order to keep.
	limit func(n int) int
	// order has those that match. Four bytes each: a thousand policies that match ten
	// thousand containers must fit into memory.
	order order
	k     int // how many of order are chosen, from its beginning
}

func newChoice(spec *faultpolicy.Spec, seed uint64) *choice {
	c := &choice{order: order{seed: seed}}
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
func (c *choice) fill(r *containers, matching []slot) {
	c.matched, c.chosen, c.n, c.k = nil, nil, len(matching), 0
	for _, n := range matching {
		c.matched.add(n)
	}
	if c.limit == nil {
		return
	}
	c.order.fill(r, matching)
	c.settle(func(slot) {})
}

// add and remove change the choice by one container that matches, or does not
// any more; changed is told of each other container that is chosen or dropped for it.
func (c *choice) add(r *containers, n slot, changed func(slot)) {
	c.matched.add(n)
	c.n++
	if c.limit == nil {
		return
	}
	if c.order.add(r, n) < c.k {
		c.chosen.add(n)
		c.k++
	}
	c.settle(func(m slot) {
		if m != n {
			changed(m)
		}
	})
}

func (c *choice) remove(r *containers, n slot, changed func(slot)) {
	c.matched.remove(n)
	c.n--
	if c.limit == nil {
		return
	}
	if c.order.remove(r, n) < c.k {
		c.chosen.remove(n)
		c.k--
	}
	c.settle(changed)
}

// settle moves the border of the choice to where it belongs.
func (c *choice) settle(changed func(slot)) {
	want := min(c.limit(c.n), c.n)
	for ; c.k < want; c.k++ {
		n := c.order.at(c.k)
		c.chosen.add(n)
		changed(n)
	}
	for c.k > want {
		c.k--
		n := c.order.at(c.k)
		c.chosen.remove(n)
		changed(n)
	}
}
