package keeper

import (
	"errors"
	"fmt"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
)

// retry is how long an ungraft that failed waits for its next try.
const retry = 5 * time.Second

// timeUp is why a graft comes off whose rules have all ended.
const timeUp = "its time is up"

// attempt is one to take a graft off. Who comes meanwhile shares it: each starts a process and looks at the target, and may wait for what
// does not answer.
type attempt struct {
	why, who string
	done     chan struct{} // closed when there is what follows
	graft    Graft
	err      error
}

// expire takes a graft off whose rules have all ended.
func (k *keeper) expire(h *held) { k.takeOff(h.ID, timeUp) }

// undo takes back what an asker got who has gone.
func (k *keeper) undo(g Graft) {
	if len(g.Added) == 0 {
		k.takeOff(g.ID, "whoever asked for it has hung up")
		return
	}
	if _, err := k.change(g.ID, Change{Keep: true, Drop: g.Added, Origin: g.Origin}, ""); err != nil && !errors.Is(err, errNoGraft) {
		k.o.Logger.Error("end the rules of who hung up", "graft", g.ID, "err", err)
	}
}

// takeOff recovers a graft that nobody waits for; recover sees to it that a failure is tried again.
func (k *keeper) takeOff(id, why string) {
	_, err := k.recover(id, why, "")
	if errors.Is(err, errNotYet) {
		return
	}
	if err != nil && !errors.Is(err, errNoGraft) {
		k.o.Logger.Error("take the layer off", "graft", id, "err", err, "next try", retry)
		return
	}
	k.endIfIdle()
}

// later tries again to take a graft off, which is its next try whoever has failed.
func (k *keeper) later(h *held, why string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h.again != nil {
		h.again.Stop()
	}
	if k.grafts[h.ID] == h {
		h.again = time.AfterFunc(retry, func() { k.takeOff(h.ID, why) })
	}
}

// recover takes one graft off. who asked for it; empty: nobody did.
func (k *keeper) recover(id, why, who string) (Graft, error) {
	k.mu.Lock()
	h := k.grafts[id]
	if h == nil {
		k.mu.Unlock()
		return Graft{}, fmt.Errorf("%w: %s", errNoGraft, id)
	}
	a := h.attempt
	if a != nil {
		if a.who == "" && who != "" || a.why == timeUp {
			a.why, a.who = why, who // it is done for who asks for it, whether or not there are rules left
		}
		k.mu.Unlock()
		<-a.done
		return a.graft, a.err
	}
	a = &attempt{why: why, who: who, done: make(chan struct{})}
	h.attempt = a
	if h.again != nil {
		h.again.Stop()
	}
	k.mu.Unlock()
	a.graft, a.err = k.try(h, a)
	k.mu.Lock()
	if h.attempt == a {
		h.attempt = nil
	}
	k.mu.Unlock()
	close(a.done)
	return a.graft, a.err
}

// try makes the attempt.
func (k *keeper) try(h *held, a *attempt) (Graft, error) {
	k.swap.Lock()
	defer k.swap.Unlock()
	k.mu.Lock()
	if k.grafts[h.ID] != h {
		k.mu.Unlock()
		return Graft{}, fmt.Errorf("%w: %s", errNoGraft, h.ID)
	}
	if a.why == timeUp && h.State == StateActive {
		if time.Now().Before(lastEnd(h.rules)) {
			h.attempt = nil // nobody joins it any more
			k.mu.Unlock()
			return Graft{}, errNotYet // and a timer for these
		}
		k.log(Event{Type: EventExpired, Graft: h.ID, Path: h.Path})
	}
	was := h.State
	if was != StateLingering {
		h.State = StateReverting
	}
	k.mu.Unlock()
	atUngraft.Pass("reverting")
	rep, served, err := k.takeOffNow(h, was)
	if err != nil && was == StateLingering && served {
		return Graft{}, err // it lingers on
	}
	if err != nil {
		k.mu.Lock()
		h.State, h.Reason = StateFailed, err.Error()
		why := a.why
		waits := was != StateFailed && was != StateLingering && k.server != nil && !k.server.alive()
		k.mu.Unlock()
		if waits {
			k.log(Event{Type: EventServer, Graft: h.ID, Path: h.Path, Message: fmt.Sprintf("calls on the layer of the dead server wait until it is off, which is tried every %v: %v", retry, err)})
		}
		k.later(h, why) // its rules have ended: nobody wants a layer without them
		return Graft{}, err
	}
	k.mu.Lock()
	h.Reason = a.why
	k.mu.Unlock()
	used := k.settle(h, rep)
	atUngraft.Pass("settled")
	k.mu.Lock()
	g, why, who := h.Graft, a.why, a.who
	g.Rules, g.Report, g.Pause = h.status, rep, pauseOf(rep)
	k.mu.Unlock()
	if used != "" {
		why += "; " + used
	}
	k.log(Event{Type: EventUngraft, Graft: h.ID, Path: g.Path, By: g.Origin, Who: who, PauseMs: g.PauseMs, LongestPauseMs: g.LongestPauseMs, Message: why})
	atUngraft.Pass("logged")
	return g, nil
}

// takeOffNow ends the faults of a graft and takes its layer off. was is the state that it had before. served: there is a server, or will be.
func (k *keeper) takeOffNow(h *held, was State) (rep *graft.Report, served bool, err error) {
	server, err := k.serving()
	if err != nil {
		return nil, true, err
	}
	j := k.detachJob(h)
	if j.Dead = k.without(h, server); !j.Dead {
		// The faults end first: sleepers wake up, and the swap itself is never hit.
		if err := k.endRules(server, h); err != nil {
			k.o.Logger.Warn("end the rules", "graft", h.ID, "err", err)
			if k.lost(server, err) {
				if server, err = k.serving(); err != nil {
					return nil, true, err
				}
				j.Dead = k.without(h, server)
			}
		}
	}
	atUngraft.Pass("quiet")
	rep, err = k.detach(h, j, server)
	atUngraft.Pass("swapped")
	if err != nil && was == StateLingering && !j.Dead && k.becameUnused(h) {
		return &graft.Report{}, true, nil
	}
	return rep, !j.Dead, err
}
