package keeper

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/faultgraft/faultgraft/plugin/holder"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"golang.org/x/sys/unix"
)

// A server that dies is replaced: its holder has all that it had open, and its
// layers' states say what of it is what (package holder, fusefs.Restore). Requests
// wait meanwhile. If that cannot be, the layers are taken off without a server.

// The deadlines are for a machine that is busy with other things: meanwhile the target
// waits, which is better than what it sees when the layer is taken off without a server.
const (
	// restoreDeadline bounds how long a new server may take to learn what the dead one had open, and resumeDeadline how long until it
	// answers. The greatest part of that is the holder's, which closes what the dead one had open.
	restoreDeadline = 2 * time.Minute
	resumeDeadline  = releaseDeadline + 30*time.Second
	// takeoverPatience is how long new servers are started after a death that cannot follow, or die before they have served, if one is
	// not told by them why.
	takeoverPatience = 3 * time.Minute
	// maxRefusals is how many servers may say that they cannot follow until it is believed.
	maxRefusals = 3
	// maxFollowed is how often something is tried once more because the server died meanwhile, and another followed.
	maxFollowed = 30
	// settleDeadline bounds the wait for a server that follows a dead one.
	settleDeadline = 5 * time.Minute
)

// shareEstate takes the memory in which a server writes down what it leaves.
func (k *keeper) shareEstate(s *serverClient) {
	var generation byte
	fds, err := s.callWithin(callDeadline, callEstate, nil, &generation)
	if err == nil && len(fds) != 1 {
		wire.CloseAll(fds)
		err = fmt.Errorf("%d descriptors", len(fds))
	}
	var f *estateFile
	if err == nil {
		f, err = openEstateFile(fds[0])
	}
	if err != nil {
		k.o.Logger.Warn("should the server die, its layers are taken off: no other could follow it", "err", err)
		return
	}
	k.endHolders() // of a server whose layers were all taken off
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.estate != nil {
		k.estate.close()
	}
	k.estate, k.generation, s.shared = f, generation, true
}

// settled gives the server. One that has died is waited for until another follows it
// or it is clear that none will.
func (k *keeper) settled() *serverClient {
	for end := time.Now().Add(settleDeadline); ; {
		k.mu.Lock()
		s := k.server
		k.mu.Unlock()
		if s == nil || s.alive() {
			return s
		}
		select {
		case <-s.handled:
			k.mu.Lock()
			same := k.server == s
			k.mu.Unlock()
			if same {
				return s
			}
		case <-time.After(time.Until(end)):
			return s
		}
	}
}

// block puts down why no server can be started that follows a dead one, and reports whether that is new; nil: it can.
func (k *keeper) block(why error) (first bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	first, k.blocked = k.blocked == nil, why
	return first
}

// serving waits as settled does, but fails as soon as it is seen that no server can be started for now: whoever asks for something gets words.
func (k *keeper) serving() (*serverClient, error) {
	for end := time.Now().Add(settleDeadline); ; {
		k.mu.Lock()
		s, blocked := k.server, k.blocked
		k.mu.Unlock()
		switch {
		case s == nil || s.alive() || time.Now().After(end):
			return s, nil
		case blocked != nil:
			return nil, fmt.Errorf("the server has died: no fault is in force, and calls on the layer wait for another: %w", blocked)
		}
		select {
		case <-s.handled:
			k.mu.Lock()
			same := k.server == s
			k.mu.Unlock()
			if same {
				return s, nil
			}
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// without: the layer of a graft has to be taken off without a server.
func (k *keeper) without(h *held, s *serverClient) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return s == nil || !s.alive() || h.lost
}

// serverDied has another server follow the dead one. If none can, it gets the targets
// out of layers that nobody answers any more.
func (k *keeper) serverDied(s *serverClient) {
	k.mu.Lock()
	swapper, n, ending := k.swapper, len(k.grafts), k.ending
	k.mu.Unlock()
	if n == 0 || ending {
		close(s.handled)
		k.endHolders()
		return
	}
	if swapper != nil {
		// Its half of the server has gone with the server. The target restores itself.
		if err := swapper.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			k.o.Logger.Error("kill the swapper", "err", err)
		}
	}
	lost, last, err := k.replace(s)
	taken, unserved := errors.Is(err, holder.ErrTaken), lost
	if err != nil && !taken {
		unserved = k.all()
	}
	k.standIn(unserved)
	close(s.handled)
	if taken {
		k.o.Logger.Warn("another process serves the layers of the dead server on")
		k.mu.Lock()
		all := k.grafts
		k.grafts = map[string]*held{}
		k.mu.Unlock()
		for _, h := range all {
			k.letGo(h)
		}
		k.endIfIdle()
		return
	}
	if err != nil {
		k.giveUp(s, err)
		return
	}
	for _, h := range lost {
		k.takeOff(h.ID, "its server died, and the layer could not be served on")
	}
	if last {
		k.recoverAll(reasonDying)
	}
}

// giveUp takes the layers of a dead server off.
func (k *keeper) giveUp(s *serverClient, err error) {
	k.log(Event{Type: EventServer, Message: fmt.Sprintf("the server has died (%s) and cannot be replaced: %v; its layers are taken off", s.obituary(), err)})
	k.recoverAll("its server died")
	k.mu.Lock()
	n := len(k.grafts)
	k.mu.Unlock()
	if n == 0 {
		k.endHolders()
	}
}

// replace starts servers until one has followed the dead one. lost are grafts whose layers it does not have. last: it is there to have
// all layers taken off, and has no rules.
// One that is killed on its way has died like any other. One that cannot start, or does not answer, may be
// able to when the machine has more time or memory. One that says what it lacks is asked a few times.
func (k *keeper) replace(dead *serverClient) (lost []*held, last bool, err error) {
	died := time.Now()
	began := died // of what patience counts
	e, there, err := k.left()
	if err == nil && !there {
		err = errors.New("it had no holder")
	}
	if err != nil {
		return nil, false, err
	}
	if os.Getenv("FAULTGRAFT_TEST_NO_TAKEOVER") != "" {
		return nil, false, errors.New("a test forbids it")
	}
	why, err := k.bury(dead)
	if err != nil {
		return nil, false, err
	}
	defer k.block(nil)
	refusals, pause := 0, 100*time.Millisecond
	for {
		if err := k.canBeFollowed(); err != nil {
			return nil, false, err
		}
		s, lost, err := k.successor()
		if err == nil {
			text := fmt.Sprintf("the server has died (%s) and was replaced, %v; layers that go on: %d", dead.obituary(), time.Since(died).Round(time.Millisecond), len(e.Layers)-len(lost))
			if why != nil {
				text += fmt.Sprintf(", without rules, until they are taken off: %v", why)
			}
			k.took(s, e, text)
			return lost, why != nil, nil
		}
		k.o.Logger.Error("a server to follow the dead one", "err", err)
		if errors.Is(err, holder.ErrTaken) {
			k.discard(s)
			return nil, false, err
		}
		if s != nil {
			ended := s.hasDied(err)
			k.discard(s)
			k.returnClaim()
			if ended {
				var many error
				if why, many = k.bury(s); many != nil {
					return nil, false, errors.Join(many, err)
				}
				continue
			}
		}
		var refused *wire.RemoteError
		switch {
		case errors.Is(err, errNotStarted): // nor could a swapper be, to do without a server
			if k.block(err) {
				k.log(Event{Type: EventServer, Message: fmt.Sprintf("the server has died (%s), and calls wait for the next one: %v", dead.obituary(), err)})
			}
			began = time.Now()
		case errors.As(err, &refused):
			refusals++
		}
		if refusals == maxRefusals || time.Since(began) > takeoverPatience {
			return nil, false, err
		}
		time.Sleep(pause)
		pause = min(2*pause, 2*time.Second)
	}
}

// canBeFollowed fails if nobody has what the dead server had open.
func (k *keeper) canBeFollowed() error {
	e, _, err := k.left()
	if err != nil {
		return err
	}
	c, err := takeClaim(e)
	if err == nil {
		wire.CloseAll([]int{c.Read, c.Write})
	}
	return err
}

// took makes the one that follows the server.
func (k *keeper) took(s *serverClient, e estate, message string) {
	k.mu.Lock()
	k.server, s.since = s, time.Now()
	var halted []*held
	for _, h := range k.grafts {
		h.Takeovers++
		if h.halted != nil {
			halted = append(halted, h)
		}
	}
	k.mu.Unlock()
	k.halt(s, halted) // a stop that came when it had their rules already has not found it
	go k.watchServer(s)
	k.reap(e)
	k.log(Event{Type: EventServer, Message: message})
}

func (k *keeper) graftOf(id string) *held {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.grafts[id]
}

// left reads what the server leaves; false: nothing is kept.
func (k *keeper) left() (e estate, there bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.estate == nil {
		return e, false, nil
	}
	e, err = k.estate.read()
	return e, true, err
}

// endHolders ends what keeps the descriptors of servers that are dead, or about to end.
func (k *keeper) endHolders() {
	e, _, err := k.left()
	if err != nil {
		k.o.Logger.Error("end the holders of dead servers", "err", err)
		return
	}
	for _, s := range e.Servers {
		h, err := s.openHolder()
		if err != nil {
			continue // it has ended
		}
		if err := h.End(holderDeadline); err != nil {
			k.o.Logger.Error("end the holder of a dead server", "err", err)
		}
		h.Close()
	}
	k.reap(e)
}

// reap takes ended holders off the list of processes: they are orphans, which come to this process (see Run).
func (k *keeper) reap(e estate) {
	for _, s := range e.Servers {
		var status unix.WaitStatus
		_, _ = unix.Wait4(s.Holder, &status, unix.WNOHANG, nil) // ECHILD: another's
	}
}
