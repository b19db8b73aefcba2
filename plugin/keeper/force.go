package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// A keeper that does not answer may not keep the node from being stopped. It is killed: then its server ends all faults and starts
// another keeper, which takes the layers off. Where the server does nothing either, it is killed as well: then the holder
// has both followed (see followBoth).

// forceWait is how long each of the two may take.
const forceWait = 8 * time.Second

// force takes the layers of a keeper off that does not answer. It gives them with what was done about each.
func (c *Client) force(ctx context.Context, silent *SilentError) ([]Graft, error) {
	var target int
	var started uint64
	if _, err := fmt.Sscanf(silent.Key, "pid-%d-%d", &target, &started); err != nil || silent.PID == 0 {
		return nil, silent
	}
	others := map[string]bool{}
	grafts, _ := c.fromEach(func(key string) ([]Graft, error) { // of keepers in the same mount namespace; they speak for themselves
		if key == silent.Key {
			return nil, nil
		}
		return c.listOf(ctx, key)
	})
	for _, g := range grafts {
		others[g.ID] = true
	}
	mounted := func() (left []graft.MountedLayer) {
		if stat, err := graft.ReadStat(target); errors.Is(err, os.ErrNotExist) || err == nil && stat.StartTime != started {
			return nil // it has ended, and nobody is there to be faulted
		}
		all, _ := graft.LayersOf(target) // it may end just now
		for _, l := range all {
			if !others[l.ID] {
				left = append(left, l)
			}
		}
		return left
	}
	layers := mounted()
	servers := serversOf(silent.PID)
	defer func() {
		for _, s := range servers {
			s.close()
		}
	}()
	if err := killKeeper(silent.PID); err != nil {
		return nil, fmt.Errorf("%w; it could not be killed: %w", silent, err)
	}
	done := "it was killed"
	off := awaitOff(ctx, mounted)
	if !off {
		for _, s := range servers {
			if gone, err := s.kill(silence); err == nil && gone {
				done = "it and its server, which did nothing either, were killed"
			}
		}
		off = awaitOff(ctx, mounted)
	}
	why := fmt.Sprintf("its keeper (process %d) did not answer for %v: %s, and the layer taken off without it", silent.PID, silent.For, done)
	if !off {
		why = fmt.Sprintf("its keeper (process %d) did not answer for %v: %s. Its faults have ended; that the layer comes off is tried on", silent.PID, silent.For, done)
	}
	left := mounted()
	out := []Graft{}
	for _, l := range layers {
		g := Graft{ID: l.ID, Target: Target{ID: fmt.Sprintf("pid-%d", target), PID: target, StartTime: started}, Path: l.Path, State: StateReverting, Reason: why, Forced: true, Rules: []RuleStatus{}}
		for _, s := range left {
			if s.ID == l.ID {
				g.State = StateFailed
			}
		}
		out = append(out, g)
	}
	return out, WriteEvent(c.StateDir, Event{Type: EventServer, Who: wire.Self(), Message: fmt.Sprintf("the keeper of process %d did not answer to a stop: %s", target, done)})
}

// awaitOff waits until no layer is left.
func awaitOff(ctx context.Context, left func() []graft.MountedLayer) bool {
	ctx, cancel := context.WithTimeout(ctx, forceWait)
	defer cancel()
	for len(left()) > 0 {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
	return true
}

// serversOf takes hold of the servers that a keeper has started.
func serversOf(pid int) (servers []*process) {
	children, _ := graft.Children(pid) // without them, the keeper alone is killed
	for _, child := range children {
		if s, _ := openJob(child, "server"); s != nil {
			servers = append(servers, s)
		}
	}
	return servers
}

// killKeeper ends a keeper and waits until it is gone.
func killKeeper(pid int) error {
	k, err := openJob(pid, "keeper")
	if k == nil {
		return err
	}
	defer k.close()
	gone, err := k.kill(silence)
	if err == nil && !gone {
		err = fmt.Errorf("it does not end: %s", whyStill(pid))
	}
	return err
}
