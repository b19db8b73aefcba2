package keeper

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// orphanWait bounds how long the taking off of one dead layer may take.
const orphanWait = 30 * time.Second

// RecoverOrphans takes off layers of this machine that nobody serves any more, because
// all processes were killed that stood by them, and returns them as they were; in
// Reason is what could not be given back. No keeper and no agent is needed.
//
// A layer can be dead for a moment only: its server was killed, and its keeper is about
// to take it off. Where such a process lives, of whatever state directory, the layer is
// left alone, and told of in left; with own, those of this state directory are not:
// their keepers were asked before, and did not answer.
func (c *Client) RecoverOrphans(ctx context.Context, own bool) (off []Graft, left []GuardedLayer, err error) {
	living, err := c.List(ctx)
	if living == nil && err != nil {
		return nil, nil, err // which keepers there are is not known
	}
	held := map[string]bool{}
	for _, g := range living {
		held[g.ID] = true
	}
	orphans, err := graft.Orphans(func(id string) bool { return held[id] })
	errs := []error{err}
	off = []Graft{}
	for _, o := range orphans {
		guards, err := c.guards(o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if slices.ContainsFunc(guards, func(g Guard) bool { return !own || !g.own }) {
			left = append(left, GuardedLayer{o.ID, o.Path, o.PID, guards})
			continue
		}
		octx, cancel := context.WithTimeout(ctx, orphanWait)
		rep, err := o.TakeOff(octx)
		cancel()
		if err != nil {
			if !gone(o) { // else somebody else has taken it off meanwhile, as an agent that starts
				errs = append(errs, err)
			}
			continue
		}
		g := Graft{
			ID: o.ID, Target: Target{PID: o.PID}, Path: o.Path, State: StateReverting, Rules: []RuleStatus{}, Report: rep,
			Pause: pauseOf(rep), Reason: "all processes that served it were killed",
		}
		off = append(off, g)
		errs = append(errs, WriteEvent(c.StateDir, Event{
			Type: EventUngraft, Graft: o.ID, Path: o.Path, Who: wire.Self(), PauseMs: g.PauseMs, LongestPauseMs: g.LongestPauseMs, Message: g.Reason,
		}))
	}
	return off, left, errors.Join(errs...)
}

// gone reports that a layer that nobody serves is not there any more.
func gone(o graft.Orphan) bool {
	left, err := graft.Orphans(func(id string) bool { return id != o.ID })
	return err == nil && len(left) == 0
}
