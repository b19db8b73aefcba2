package keeper

import (
	"errors"
	"fmt"
	"time"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"github.com/faultgraft/faultgraft/tracer"
)

// attachSwapper gives a swapper its own connection, and exempts it from faults.
func (s *server) attachSwapper(r *wire.Request) error {
	var c swapperCall
	if err := r.Decode(&c); err != nil || len(r.FDs) != 1 {
		wire.CloseAll(r.FDs)
		return errors.Join(fmt.Errorf("swapper: %d descriptors", len(r.FDs)), err)
	}
	conn, err := wire.FromDescriptor(r.FDs[0])
	if err != nil {
		return err
	}
	began := time.Now()
	h := &swapperHandler{server: s, id: c.Layer, pid: c.PID}
	// An ungraft begins with questions to the layer itself; a graft's layer does not exist yet.
	l, err := s.layer(c.Layer)
	grafts := err != nil
	if !grafts {
		h.trust(l.layer)
		if c.Moves {
			l.layer.BeginMove()
		}
	}
	gone := make(chan struct{})
	s.mu.Lock()
	s.swappers[c.PID] = gone
	s.mu.Unlock()
	go func() {
		defer func() {
			_ = conn.Close()
			s.mu.Lock()
			delete(s.swappers, c.PID)
			s.mu.Unlock()
			close(gone)
		}()
		if err := conn.Serve(h.handle); err != nil {
			s.o.Logger.Warn("connection with the swapper broke", "graft", c.Layer, "err", err)
		}
		if h.layer != nil {
			h.layer.Trust(c.PID, false)
			_, _ = h.layer.KeepLocks(false) // only a beginning can fail
			h.layer.EndGuards(0, 0, 0)
			if c.Moves {
				h.layer.EndMove(began)
			}
			if grafts {
				h.layer.DropPages()
			}
		}
	}()
	return nil
}

// swapperHandler answers one swapper. For a graft the layer does not exist yet when it connects.
type swapperHandler struct {
	server *server
	id     string
	pid    int
	layer  *fusefs.Layer
}

func (h *swapperHandler) trust(l *fusefs.Layer) {
	h.layer = l
	l.Trust(h.pid, true)
}

func (h *swapperHandler) handle(r *wire.Request) (any, []int, error) {
	defer func() { wire.CloseAll(r.FDs) }()
	if h.layer == nil {
		l, err := h.server.layer(h.id)
		if err != nil {
			return nil, nil, err
		}
		h.trust(l.layer)
	}
	switch r.Method {
	case callArm:
		var c armCall
		if err := r.Decode(&c); err != nil {
			return nil, nil, err
		}
		if len(r.FDs) != len(c.All) {
			return nil, nil, fmt.Errorf("arm: %d descriptors for %d files", len(r.FDs), len(c.All))
		}
		all := make([]fusefs.Adoption, len(c.All))
		for i, a := range c.All {
			all[i] = fusefs.Adoption{Description: r.FDs[i], Token: a.Token, Path: a.Path}
		}
		err := h.layer.Arm(c.TID, all...)
		if err == nil {
			r.FDs = nil // the layer has them
		}
		return nil, nil, err
	case callDisarm:
		var tid int
		if err := r.Decode(&tid); err != nil {
			return nil, nil, err
		}
		all := []graft.Adopted{}
		for _, a := range h.layer.Disarm(tid) {
			all = append(all, graft.Adopted(a))
		}
		return all, nil, nil
	case callOpenFiles:
		var handles []uint64
		if err := r.Decode(&handles); err != nil {
			return nil, nil, err
		}
		answers, fds := openFiles(h.layer, handles)
		return answers, fds, nil
	case callBacking:
		var c backingCall
		if err := r.Decode(&c); err != nil {
			return nil, nil, err
		}
		fd, err := h.layer.Backing(c.Ino, c.Path)
		return nil, []int{fd}, err
	case callLockedFiles:
		return h.layer.LockedFiles(), nil, nil
	case callEndFlushes:
		return h.layer.EndFlushes(), nil, nil
	case callGuardLocks:
		var c guardCall
		if err := r.Decode(&c); err != nil {
			return nil, nil, err
		}
		return nil, nil, guardLocks(h.layer, c)
	case callKeepLocks:
		var on bool
		if err := r.Decode(&on); err != nil {
			return nil, nil, err
		}
		held, err := h.layer.KeepLocks(on)
		return held, nil, err
	case callMoved:
		var nodes []uint64
		if err := r.Decode(&nodes); err != nil {
			return nil, nil, err
		}
		h.layer.Moved(nodes)
		return nil, nil, nil
	case callLocks:
		var c locksCall
		if err := r.Decode(&c); err != nil {
			return nil, nil, err
		}
		list, locks := h.layer.PosixLocks, []tracer.Lock{}
		if c.Keep {
			list = h.layer.LocksToKeep
		}
		for _, l := range list(c.PID, c.TID, c.Ino) {
			locks = append(locks, tracer.Lock{Type: l.Type, Start: l.Start, Len: l.Len})
		}
		return locks, nil, nil
	default:
		return nil, nil, fmt.Errorf("server: unknown call %q of a swapper", r.Method)
	}
}

// openFilesTime is how long the descriptions of open files are looked for in one call. Some have to be opened, on a file system that may be slow.
const openFilesTime = callDeadline / 10

// openFiles duplicates the descriptions of open files, in their order, of as many as there is time for.
func openFiles(l *fusefs.Layer, handles []uint64) (answers []fileAnswer, fds []int) {
	begun := time.Now()
	for i, handle := range handles {
		if i > 0 && time.Since(begun) > openFilesTime {
			break
		}
		var a fileAnswer
		if fd, err := l.Description(handle); err != nil {
			a.Error = err.Error()
		} else {
			fds = append(fds, fd)
		}
		answers = append(answers, a)
	}
	return answers, fds
}

// guardLocks has a layer keep the locks of a process that go over.
func guardLocks(l *fusefs.Layer, c guardCall) error {
	for _, f := range c.Files {
		switch c.Phase {
		case tracer.LocksTaken:
			l.LocksTaken(f.PID, f.TID, f.Dev, f.Ino)
			continue
		case tracer.LocksKept:
			l.EndGuards(f.PID, f.Dev, f.Ino)
			continue
		}
		locks := make([]fusefs.Lock, 0, len(f.Locks))
		for _, k := range f.Locks {
			locks = append(locks, fusefs.Lock(k))
		}
		if err := l.GuardLocks(f.PID, f.Dev, f.Ino, locks, !c.Leaving); err != nil {
			return err
		}
	}
	return nil
}
