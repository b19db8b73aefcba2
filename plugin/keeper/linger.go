package keeper

import (
	"fmt"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// A layer that was taken off can still be in use: by a process that was started
// from it and may not have another executable, by what could not be moved, in a
// mount namespace that was copied meanwhile. It lingers: the server goes on to
// serve it, without rules, until the kernel says that the last user has gone.

// Waits for the last users of a layer that was just taken off; short where some are known to stay.
const (
	endDeadline = 2 * time.Second
	endKnown    = 100 * time.Millisecond
)

// end has the server let go of a layer that is nowhere mounted any more, and
// reports whether it is still in use.
func (k *keeper) end(id string, wait time.Duration) (lingers bool) {
	for range maxFollowed {
		server, err := k.serving()
		if err != nil || server == nil || !server.alive() { // no server knows it any more; who follows is not told of it
			return false
		}
		if err = server.call(callEnd, endCall{Layer: id, Wait: wait}, &lingers); err == nil {
			break
		}
		if server.alive() {
			k.o.Logger.Warn("end the layer", "graft", id, "err", err)
			break
		}
	}
	return lingers
}

// settle ends a graft whose layer has been taken off, or keeps what is left of it
// until it is not used any more. It says by whom it is used still; empty: by nobody.
func (k *keeper) settle(h *held, rep *graft.Report) (used string) {
	k.mu.Lock()
	release := []int{h.mount, h.bottom, h.peer} // a mount of the layer is a user of it
	h.mount, h.bottom, h.peer = -1, -1, -1
	k.mu.Unlock()
	for _, fd := range release {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	k.dropAdopted(h)
	wait := endDeadline
	if len(rep.Skipped) > 0 {
		wait = endKnown
	}
	lingers := k.end(h.ID, wait)
	k.mu.Lock()
	if lingers && !h.unused {
		used = users(rep)
	}
	if used == "" || k.inherits() { // the server that a keeper inherits waits by itself
		k.mu.Unlock()
		k.forget(h)
		return used
	}
	h.State, h.Reason = StateLingering, used
	k.mu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
	}
	return used
}

// dropAdopted lets go of the originals, and of what a dead server had open: the target has it again.
func (k *keeper) dropAdopted(h *held) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, fd := range h.adopted {
		_ = unix.Close(fd)
	}
	h.adopted = nil
	h.remains.close()
	h.remains = nil
}

// unused is called when the last user of a layer has gone. The caller holds k.mu.
func (k *keeper) unused(h *held) {
	h.unused = true
	if h.State != StateLingering {
		return // whoever takes it off sees it
	}
	go func() {
		k.swap.Lock() // not under a swapper that tries once more
		defer k.swap.Unlock()
		k.mu.Lock()
		there := k.grafts[h.ID] == h
		k.mu.Unlock()
		if there {
			k.forget(h)
			k.log(Event{Type: EventUngraft, Graft: h.ID, Path: h.Path, Message: "nothing uses the layer any more"})
		}
		k.endIfIdle()
	}()
}

// becameUnused reports that the last user of a lingering layer has gone just now,
// so that its server knows it no more.
func (k *keeper) becameUnused(h *held) bool {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		k.mu.Lock()
		unused := h.unused
		k.mu.Unlock()
		if unused {
			return true
		}
	}
	return false
}

// users says who keeps a layer in use.
func users(rep *graft.Report) string {
	var all []string
	for _, s := range rep.Skipped {
		text := fmt.Sprintf("%s: %s", &s.Object, s.Reason)
		if s.Object.Kind == tracer.Executable {
			text = fmt.Sprintf("process %d (%s) was started from the layer: its executable stays on it until it ends", s.Object.PID, graft.CommOf(s.Object.PID))
		}
		all = append(all, text)
	}
	if len(all) == 0 {
		all = []string{"something still uses it that could not be found: an io_uring, a descriptor in flight over a socket, another mount namespace, or a process that is stuck within an execve"}
	}
	const most = 5
	if n := len(all) - most; n > 0 {
		all = append(all[:most], fmt.Sprintf("and %d more", n))
	}
	return "the layer is off, and served without rules as long as it is used: " + strings.Join(all, "; ")
}
