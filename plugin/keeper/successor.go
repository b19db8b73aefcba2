package keeper

import (
	"time"

	"github.com/faultgraft/faultgraft/plugin/holder"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"github.com/faultgraft/faultgraft/policy"
	"golang.org/x/sys/unix"
)

// One server that follows a dead one, from its start until it serves, or has to go.

// successor starts a server that follows the dead one and serves its layers. If that fails, the process is given, which the caller discards; nil: none could be started.
func (k *keeper) successor() (s *serverClient, lost []*held, err error) {
	if s, err = startServer(k.o.StateDir, &follow{estate: k.estate.fd, generation: k.generation}, k.newsDesk, k.o.Logger); err != nil {
		return nil, nil, err
	}
	var layers []restoredLayer
	if _, err := s.callWithin(restoreDeadline, callRestore, nil, &layers); err != nil {
		return s, nil, err
	}
	there := map[string]bool{}
	for _, l := range layers {
		h := k.graftOf(l.Layer)
		if h != nil && l.Error != "" {
			k.takeRemains(h) // the holder that has them is about to be ended
		}
		if h == nil || l.Error != "" {
			continue
		}
		if rules := k.rulesToRestore(h); len(rules) > 0 {
			if err := s.call(callRules, rulesCall{Layer: l.Layer, Rules: rules, Start: time.Now()}, nil); err != nil {
				return s, nil, err
			}
		}
		k.stillAdopted(h, l.Adopted)
		there[l.Layer] = true
	}
	var out resumed
	if _, err := s.callWithin(resumeDeadline, callResume, nil, &out); err != nil {
		return s, nil, err
	}
	if out.Taken {
		return s, nil, holder.ErrTaken
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.grafts {
		if !there[h.ID] || out.Failed[h.ID] != "" {
			h.lost = true
			lost = append(lost, h)
		}
	}
	return s, lost, nil
}

// discard ends a server that could not follow.
func (k *keeper) discard(s *serverClient) {
	s.kill()
	select {
	case <-s.dead:
	case <-time.After(callDeadline):
		k.o.Logger.Warn("a server that could not follow does not end", "pid", s.pid())
	}
	close(s.handled)
}

// claimPatience is how long the claim may be away that a server which has ended may have taken with it: whoever else takes it puts the next one there at once.
const claimPatience = time.Second

// returnClaim puts the claim back that a server of this keeper has taken and died with. While the keeper lives, no holder takes it.
func (k *keeper) returnClaim() {
	e, _, err := k.left()
	if err != nil {
		k.o.Logger.Error("the claim of a server that could not follow", "err", err)
		return
	}
	c, err := takeClaim(e)
	if err != nil {
		k.o.Logger.Warn("the claim of a server that could not follow", "err", err)
		return
	}
	defer wire.CloseAll([]int{c.Read, c.Write})
	if err := c.Return(k.generation, claimPatience); err != nil {
		k.o.Logger.Error("the claim of a server that could not follow", "err", err)
	}
}

// rulesToRestore are those that a graft has to have; none for one that is coming off, or was stopped.
func (k *keeper) rulesToRestore(h *held) []policy.Rule {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h.State != StateActive || h.halted != nil {
		return nil
	}
	return plain(h.rules)
}

// stillAdopted lets go of originals whose files saw their last close without a word from the dead server.
func (k *keeper) stillAdopted(h *held, handles []uint64) {
	open := map[uint64]bool{}
	for _, handle := range handles {
		open[handle] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for handle, fd := range h.adopted {
		if !open[handle] {
			delete(h.adopted, handle)
			_ = unix.Close(fd)
		}
	}
}
