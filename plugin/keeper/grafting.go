package keeper

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"golang.org/x/sys/unix"
)

var (
	errEnding  = errors.New("this keeper is ending")
	errNoGraft = errors.New("no such graft")
	errLeft    = errors.New("the layer could not be taken off; that is tried again")
	errNotYet  = errors.New("it was given other rules just now")
)

// inject makes one graft, or adds to the one that is there.
func (k *keeper) inject(req Request, who string) (Graft, error) {
	if len(req.Rules) == 0 {
		return Graft{}, errors.New("no rules")
	}
	if err := checkRules(req.Rules); err != nil {
		return Graft{}, err
	}
	k.mu.Lock()
	k.injects++
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		k.injects--
		k.mu.Unlock()
		k.endIfIdle()
	}()
	k.swap.Lock()
	defer k.swap.Unlock()
	if h := k.active(path.Clean(req.Path), req.Origin); h != nil {
		return k.changeRules(h, Change{Keep: true, Rules: req.Rules, Limits: req.Limits, Origin: req.Origin}, who)
	}
	if err := k.comingOff(path.Clean(req.Path)); err != nil {
		return Graft{}, err
	}
	k.mu.Lock()
	if k.ending || k.takesOff() { // one that inherited is there to take layers off
		k.mu.Unlock()
		return Graft{}, errEnding
	}
	h := &held{
		Graft: Graft{
			ID: newID(), Target: k.target, Path: path.Clean(req.Path), State: StateGrafting, Origin: req.Origin, Since: time.Now(), Version: k.o.Version,
		},
		device: -1, mount: -1, backing: -1, bottom: -1, peer: -1, request: req,
	}
	k.grafts[h.ID] = h
	k.mu.Unlock()
	atGraft.Pass("listed")
	// In this order: a stop that comes after the check finds the graft on the list, and waits for it.
	err := CheckStopped(k.o.StateDir)
	var g Graft
	if err == nil {
		g, err = k.graft(h, who)
	}
	if errors.Is(err, errLeft) {
		k.mu.Lock()
		h.State, h.Reason = StateFailed, err.Error()
		k.mu.Unlock()
		k.later(h, "its graft failed")
		return Graft{}, err
	}
	if err != nil {
		made := h.mount >= 0
		k.forget(h)
		if made {
			k.end(h.ID, endDeadline) // the layer was made; that it was never mounted is no reason for it to stay
		}
		k.log(Event{Type: EventRefused, Graft: h.ID, Path: h.Path, By: h.Origin, Who: who, Rules: texts(activate(req.Rules, time.Now())), Message: err.Error()})
		return Graft{}, err
	}
	return g, nil
}

func (k *keeper) graft(h *held, who string) (Graft, error) {
	server, err := k.running()
	if err != nil {
		return Graft{}, err
	}
	atGraft.Pass("server")
	rep, err := k.runSwapper(h, job{
		Graft: h.ID, Target: k.place, Path: h.request.Path, Limits: h.request.Limits,
	})
	if err != nil {
		return Graft{}, err
	}
	atGraft.Pass("swapped")
	h.left = graft.LeftBelow(rep)
	g, err := k.begin(h, server, rep)
	if err != nil {
		if rerr := k.rollBack(h); rerr != nil {
			return Graft{}, errors.Join(err, rerr)
		}
		return Graft{}, fmt.Errorf("%w; the layer was taken off again, nothing is changed", err)
	}
	atGraft.Pass("active")
	k.log(Event{Type: EventGraft, Graft: h.ID, Path: h.Path, By: h.Origin, Who: who, Rules: texts(h.rules), PauseMs: g.PauseMs, LongestPauseMs: g.LongestPauseMs, Message: fmt.Sprintf("%d objects swapped, %d left, %d processes stopped", len(rep.Swapped), len(rep.Skipped), len(rep.Stopped))})
	atGraft.Pass("logged")
	return g, nil
}

// begin puts the rules of a graft in force whose layer is on, unless the node was stopped meanwhile.
func (k *keeper) begin(h *held, server *serverClient, rep *graft.Report) (Graft, error) {
	if err := CheckStopped(k.o.StateDir); err != nil {
		return Graft{}, err
	}
	start := time.Now()
	h.rules = activate(h.request.Rules, start)
	if err := k.setRules(server, h, h.rules, start); err != nil {
		return Graft{}, err
	}
	atGraft.Pass("rules")
	again, err := k.cover(h, server, h.request.Limits)
	if err != nil {
		return Graft{}, err
	}
	rep.Add(again)
	atGraft.Pass("covered")
	status, err := server.status(h.ID)
	if err != nil {
		k.o.Logger.Warn("read the rules", "graft", h.ID, "err", err)
	}
	if err := CheckStopped(k.o.StateDir); err != nil {
		return Graft{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if h.halted != nil {
		return Graft{}, h.halted
	}
	h.State, h.Pause, h.status = StateActive, pauseOf(rep), status
	h.timer = time.AfterFunc(time.Until(lastEnd(h.rules)), func() { k.expire(h) })
	g := h.Graft
	g.Rules, g.Report = status, rep
	return g, nil
}

func (k *keeper) detachJob(h *held) job {
	return job{
		Graft: h.ID, Target: k.place, Path: h.Path, Limits: h.request.Limits, Detach: true, Off: h.mount < 0, Layer: h.info, Left: h.left,
	}
}

// rollBack takes the layer of a graft off that did not come to its end.
func (k *keeper) rollBack(h *held) error {
	server, err := k.serving()
	if err != nil {
		return fmt.Errorf("%w: %w", errLeft, err)
	}
	j := k.detachJob(h)
	if j.Dead = k.without(h, server); !j.Dead {
		if err := server.call(callRules, rulesCall{Layer: h.ID, Start: time.Now()}, nil); err != nil {
			k.o.Logger.Warn("end the rules", "graft", h.ID, "err", err)
		}
	}
	if _, err := k.detach(h, j, server); err != nil {
		return fmt.Errorf("%w: %w", errLeft, err)
	}
	return nil
}

// detach runs an ungraft. One that fails with a deadline shorter than the default is tried once more, with that: a short pause was asked
// for, but a layer has to come off.
func (k *keeper) detach(h *held, j job, server *serverClient) (*graft.Report, error) {
	rep, err := k.detachWithin(h, &j, server)
	if err == nil || j.Deadline == 0 || j.Deadline >= graft.DefaultDeadline {
		return rep, err
	}
	k.o.Logger.Warn("take the layer off within the deadline of its graft", "graft", h.ID, "deadline", j.Deadline, "err", err, "tried again with", graft.DefaultDeadline)
	j.Deadline = graft.DefaultDeadline
	if server, err = k.serving(); err != nil {
		return nil, err
	}
	j.Dead = k.without(h, server)
	return k.detachWithin(h, &j, server)
}

// detachWithin runs an ungraft, and once more without the server if that was what it failed for.
func (k *keeper) detachWithin(h *held, j *job, server *serverClient) (*graft.Report, error) {
	rep, err := k.runSwapper(h, *j)
	for range maxFollowed {
		if err == nil || j.Dead || server.alive() {
			break
		}
		if server, err = k.serving(); err != nil { // it died meanwhile
			break
		}
		j.Dead = k.without(h, server)
		rep, err = k.runSwapper(h, *j)
	}
	return rep, err
}

// endRules ends the faults of a graft, and keeps what they have counted. A server that does not answer is not waited for twice.
func (k *keeper) endRules(server *serverClient, h *held) error {
	status, err := server.status(h.ID)
	var remote *wire.RemoteError
	if err != nil && !errors.As(err, &remote) {
		return err
	}
	if err == nil {
		k.mu.Lock()
		h.status = status
		k.mu.Unlock()
	}
	return server.call(callRules, rulesCall{Layer: h.ID, Start: time.Now()}, nil)
}

// lost reports that a call failed because the server is not there any more. One
// that does not answer is as good as dead, and is made so.
func (k *keeper) lost(s *serverClient, err error) bool {
	var remote *wire.RemoteError
	if errors.As(err, &remote) {
		return false
	}
	s.kill()
	select {
	case <-s.dead:
		return true
	case <-time.After(callDeadline):
		return false
	}
}

// recoverAll takes every graft off; what fails is tried again later.
func (k *keeper) recoverAll(why string) {
	k.mu.Lock()
	ids := make([]string, 0, len(k.grafts))
	for id := range k.grafts {
		ids = append(ids, id)
	}
	k.mu.Unlock()
	for _, id := range ids {
		k.takeOff(id, why)
	}
	k.endIfIdle()
}

// forget drops a graft and what was held for it.
func (k *keeper) forget(h *held) {
	k.mu.Lock()
	server, faults, lost := k.server, h.faults, h.lost
	k.mu.Unlock()
	if server == nil || !server.alive() || lost { // else the server has left what it counted, before it said that the layer has ended
		if err := k.dir.saveEnded(EndedGraft{Graft: h.ID, Target: k.target, Ended: time.Now(), Faults: faults}); err != nil {
			k.o.Logger.Error("faults go uncounted", "graft", h.ID, "err", err)
		}
	}
	k.mu.Lock()
	delete(k.grafts, h.ID)
	k.mu.Unlock()
	k.letGo(h)
}

// letGo closes what was held for a graft that is not on the list any more.
func (k *keeper) letGo(h *held) {
	k.mu.Lock()
	for _, t := range []*time.Timer{h.timer, h.again} {
		if t != nil {
			t.Stop()
		}
	}
	k.mu.Unlock()
	for _, fd := range []int{h.device, h.mount, h.backing, h.bottom, h.peer} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	k.dropAdopted(h)
}

// newID makes a graft's id: short enough to type, random enough to be unique on a node.
func newID() string {
	b := make([]byte, 4)
	if _, err := rand.Read(b); err != nil {
		panic(err) // crypto/rand never fails on Linux: it would have crashed itself
	}
	return "g-" + hex.EncodeToString(b)
}
