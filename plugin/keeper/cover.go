package keeper

import (
	"fmt"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
)

// cover brings open files under rules that have just come. Files that no rule
// could match are served by the kernel itself; those that a rule can match now
// are moved to files of the layer that ask the server.
func (k *keeper) cover(h *held, server *serverClient, limits graft.Limits) (*graft.Report, error) {
	files, err := server.retired(h.ID)
	if err != nil || len(files) == 0 {
		return &graft.Report{}, err
	}
	rep, err := k.runSwapper(h, job{
		Graft: h.ID, Target: k.place, Path: h.Path, Limits: limits,
		Reswap: files, Layer: h.info,
	})
	if err != nil {
		return nil, err
	}
	for _, f := range k.uncovered(h, server) {
		note := fmt.Sprintf("not covered: %s is still open where it could not be moved (a descriptor in flight over a socket, an io_uring, or one listed above)", f.Path)
		if limits.RequireAll {
			return nil, fmt.Errorf("%s", note)
		}
		rep.Notes = append(rep.Notes, note)
	}
	return rep, nil
}

// coverSoon does it for files that were renamed to where a rule is. The caller holds k.mu.
func (k *keeper) coverSoon(h *held) {
	if h.covering || h.State != StateActive {
		return // a graft that is being made looks by itself
	}
	h.covering = true
	go func() {
		for range maxFollowed {
			server := k.settled() // before swap is taken: others are not to wait for that
			if !k.coverNow(h, server) {
				return
			}
		}
		k.mu.Lock()
		h.covering = false
		k.mu.Unlock()
	}()
}

// coverNow does it, and reports that the server has died meanwhile, so that it is to be done with the next one.
func (k *keeper) coverNow(h *held, server *serverClient) (again bool) {
	k.swap.Lock()
	defer k.swap.Unlock()
	k.mu.Lock()
	active := h.State == StateActive
	again = active && server != nil && !server.alive() && (k.server != server || !isClosed(server.handled))
	h.covering = again
	k.mu.Unlock()
	if !active || again || k.without(h, server) {
		return again
	}
	limits := h.request.Limits
	limits.RequireAll = false // nobody asked for it now
	rep, err := k.cover(h, server, limits)
	if err != nil {
		k.o.Logger.Error("move files that were renamed to where a rule is", "graft", h.ID, "err", err)
		k.log(Event{Type: EventRules, Graft: h.ID, Path: h.Path, Message: "files that were renamed to where a rule is are not under it: " + err.Error()})
		return false
	}
	if len(rep.Swapped) > 0 {
		k.log(Event{
			Type: EventRules, Graft: h.ID, Path: h.Path, PauseMs: pauseOf(rep).PauseMs, LongestPauseMs: pauseOf(rep).LongestPauseMs,
			Message: fmt.Sprintf("renamed to where a rule is: %d objects moved again, %d processes stopped", len(rep.Swapped), len(rep.Stopped)),
		})
	}
	return false
}

// lastClose is how long the server may take to hear of the last close of files that were moved.
const lastClose = time.Second

// uncovered are the files that are still open in the old way. Of a target that
// shares its mount namespace others may have them open, who get no faults.
func (k *keeper) uncovered(h *held, server *serverClient) []graft.RetiredFile {
	if k.place.Tree {
		return nil
	}
	for end := time.Now().Add(lastClose); ; time.Sleep(5 * time.Millisecond) {
		left, err := server.retired(h.ID)
		if err != nil {
			k.o.Logger.Warn("look for files that were not moved", "graft", h.ID, "err", err)
			return nil
		}
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}
