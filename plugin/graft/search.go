package graft

import (
	"context"
	"maps"
	"slices"

	"github.com/faultgraft/faultgraft/tracer"
)

// swapEverywhere swaps objects of a layer in whatever processes have them. It looks
// at every process of the machine once, before any is stopped; while they are
// stopped only at the target's own and at those that have such objects, because a
// look at all takes longer than all the rest. An object that comes to another
// process in that moment is for a later pass.
func swapEverywhere(ctx context.Context, t Target, o tracer.Options) (*tracer.Report, error) {
	ours, err := newOwn()
	if err != nil {
		return nil, err
	}
	have := map[int]bool{}
	// A process that was listed may have become one of ours by the time that it has an object: a command that was just about to be
	// executed, and looks for layers that nobody serves. So that is asked once more, for each list.
	others := map[int]bool{}
	match := o.Match
	o.Match = func(ob *tracer.Object) bool {
		if !match(ob) || !others[ob.PID] && ours.isNow(ob.PID, t) {
			return false
		}
		have[ob.PID], others[ob.PID] = true, true
		return true
	}
	all := true
	o.Processes = func() ([]int, error) {
		clear(others)
		if all {
			all = false
			return reachableProcesses(t)
		}
		near, err := t.Processes()
		if err != nil {
			return nil, err
		}
		for _, pid := range near {
			have[pid] = true
		}
		return slices.Sorted(maps.Keys(have)), nil
	}
	return tracer.Swap(ctx, o)
}
