package keeper

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/holder"
)

// A keeper and its server were killed at once. The server's holder, which has all that
// they had open, starts another keeper. That has a server follow the dead one,
// without rules, and takes the layers off.

// openEstate takes the estate from the holder that started this process.
func (k *keeper) openEstate() (estate, error) {
	fail := func(err error) (estate, error) {
		return estate{}, fmt.Errorf("keeper: follow a dead keeper: %w", err)
	}
	number, generation, ok := strings.Cut(k.o.Follow, ":")
	n, err := strconv.Atoi(number)
	if err != nil || !ok || len(generation) != 1 {
		return fail(fmt.Errorf("%q: not NUMBER:GENERATION", k.o.Follow))
	}
	h, err := holder.Open(os.Getppid())
	if err != nil {
		return fail(err)
	}
	defer h.Close()
	fd, err := h.Take(n)
	if err != nil {
		return fail(err)
	}
	f, err := openEstateFile(fd)
	if err != nil {
		return fail(err)
	}
	e, err := f.read()
	if err != nil {
		return fail(err)
	}
	k.estate, k.generation = f, generation[0]
	if e.OOMScoreAdj != "" { // the holder's makes a process immortal
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(e.OOMScoreAdj), 0); err != nil {
			k.o.Logger.Warn("be as likely to be killed for lack of memory as before", "err", err)
		}
	}
	t := newTaker(e)
	defer t.close()
	for _, l := range e.Layers { // all have the same
		fds, err := t.take(l.Server, l.Namespace)
		if err == nil {
			e.Place = l.Call.Place
			e.Place.NamespaceFile = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fds[0])
			return e, nil
		}
		k.o.Logger.Warn("take the target's mount namespace from the holder", "err", err)
	}
	return fail(errors.New("there is no layer to take off"))
}

// takeEstate makes the dead keeper's grafts this one's.
func (k *keeper) takeEstate(e estate) error {
	t := newTaker(e)
	defer t.close()
	for _, l := range e.Layers {
		h := &held{
			Graft:  Graft{ID: l.Call.Layer, Target: k.target, Path: l.Call.Info.Path, State: StateReverting, Since: time.Now(), Version: k.o.Version, Reason: "its keeper and its server died"},
			device: -1, mount: -1, backing: -1, bottom: -1, peer: -1, info: l.Call.Info,
		}
		fds, err := t.take(l.Server, append([]int{l.Device}, l.Keep...)...)
		if err != nil {
			return fmt.Errorf("keeper: follow a dead keeper: graft %s: %w", h.ID, err)
		}
		h.device = fds[0]
		if l.Off && len(fds) == 2 {
			h.State, h.backing = StateLingering, fds[1]
		} else {
			layer, err := layerOf(l.Call.Info, fds[1:])
			if err != nil {
				return fmt.Errorf("keeper: follow a dead keeper: graft %s: %w", h.ID, err)
			}
			h.backing, h.mount, h.bottom, h.peer = layer.Backing, layer.Mount, layer.Bottom, layer.PeerGroup
		}
		k.grafts[h.ID] = h
	}
	k.server = newServerClient(nil, nil)
	k.server.why = errors.New("killed, with its keeper")
	close(k.server.dead)
	return nil
}

// followBoth has a server follow the dead one, and takes its layers off.
func (k *keeper) followBoth() {
	k.mu.Lock()
	dead := k.server
	k.mu.Unlock()
	k.serverDied(dead)
	k.recoverAll("its keeper and its server died")
}
