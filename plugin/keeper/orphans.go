package keeper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// OrphanRecovery is what RecoverOrphans has done.
type OrphanRecovery struct {
	// Off are the layers that were taken off, as they were; in Reason is what could not be given back.
	Off []Graft
	// Left are those that somebody stands by.
	Left []GuardedLayer
	// Passed says for a person what could not be looked at, or does not answer. It may be a container's own, and no layer at all.
	Passed []string
}

// takenAtOnce is from how many containers layers are taken off at a time.
const takenAtOnce = 8

// RecoverOrphans takes off layers of this machine that nobody serves any more, because
// all processes were killed that stood by them. No keeper and no agent is needed.
//
// A layer can be dead for a moment only: its server was killed, and its keeper is about
// to take it off. Where such a process lives, of whatever state directory, the layer is
// left alone, and told of in Left; with own, those of this state directory are not:
// their keepers were asked before, and did not answer.
//
// Nothing that a container can do makes others wait: what touches its file systems is done by processes that can be left behind.
func (c *Client) RecoverOrphans(ctx context.Context, own bool) (done OrphanRecovery, err error) {
	living, err := c.List(ctx)
	if living == nil && err != nil {
		return done, err // which keepers there are is not known
	}
	held := map[string]bool{}
	for _, g := range living {
		held[g.ID] = true
	}
	orphans, passed, err := graft.Orphans(func(id string) bool { return held[id] }, c.askElsewhere)
	errs := []error{err}
	done.Off, done.Passed = []Graft{}, passed
	var alone []graft.Orphan
	for _, o := range orphans {
		guards, err := c.guards(o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if slices.ContainsFunc(guards, func(g Guard) bool { return !own || !g.own }) {
			done.Left = append(done.Left, GuardedLayer{o.ID, o.Path, o.PID, guards})
			continue
		}
		alone = append(alone, o)
	}
	off, err := c.takeOffAll(ctx, alone)
	done.Off = append(done.Off, off...)
	for _, g := range off {
		errs = append(errs, WriteEvent(c.StateDir, Event{
			Type: EventUngraft, Graft: g.ID, Path: g.Path, Who: wire.Self(), PauseMs: g.PauseMs, LongestPauseMs: g.LongestPauseMs, Message: g.Reason,
		}))
	}
	return done, errors.Join(append(errs, err)...)
}

// takeOffAll takes dead layers off: those that have to do with each other one after the other, the others side by side.
func (c *Client) takeOffAll(ctx context.Context, orphans []graft.Orphan) (off []Graft, err error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	var errs []error
	turn := make(chan struct{}, takenAtOnce)
	for _, group := range graft.Apart(orphans) {
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			for i, o := range group {
				rep, err := c.takeOffElsewhere(ctx, o)
				if err != nil && !errors.Is(err, errSilent) && c.gone(o) {
					continue // somebody else has taken it off meanwhile, as an agent that starts
				}
				mu.Lock()
				if err == nil {
					off = append(off, Graft{
						ID: o.ID, Target: Target{PID: o.PID}, Path: o.Path, State: StateReverting, Rules: []RuleStatus{}, Report: rep,
						Pause: pauseOf(rep), Reason: "all processes that served it were killed",
					})
				} else {
					errs = append(errs, err)
				}
				mu.Unlock()
				if errors.Is(err, errSilent) {
					if n := len(group) - i - 1; n > 0 {
						mu.Lock()
						errs = append(errs, fmt.Errorf("%d more dead layers there are left for the next time", n))
						mu.Unlock()
					}
					return
				}
			}
		})
	}
	all.Wait()
	return off, errors.Join(errs...)
}

// gone reports that a layer that nobody serves is not there any more.
func (c *Client) gone(o graft.Orphan) bool {
	left, _, err := graft.Orphans(func(id string) bool { return id != o.ID }, c.askElsewhere)
	return err == nil && len(left) == 0
}
