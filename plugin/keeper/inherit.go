package keeper

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// A server whose keeper was killed starts another one, which has nothing but a connection with it, and asks for what there is to take
// off. As an argument it had a limit (128 KiB, MAX_ARG_STRLEN of include/uapi/linux/binfmts.h), to which a target's paths come.

// inheritCall asks for the layers from a number on. Whoever has all of them asks once more, and gets none.
type inheritCall struct {
	From int `json:"from"`
}

// inheritance is a page of what a server hands to a new keeper after its own died. The descriptors beside it are, for each
// layer: backing, mount[, the other mount of one over "/"][, peer group].
type inheritance struct {
	Target Target           `json:"target"`
	Place  graft.Target     `json:"place"`
	Layers []inheritedLayer `json:"layers"`
}

type inheritedLayer struct {
	Graft string          `json:"graft"`
	Info  graft.LayerInfo `json:"info"`
	FDs   int             `json:"fds"`

	layer graft.Layer // put together by sort
}

// sort gives each layer of a page its descriptors, which stay the caller's if it fails.
func (i *inheritance) sort(fds []int) error {
	if i.Target.PID <= 0 {
		return fmt.Errorf("inheritance: pid %d", i.Target.PID)
	}
	for n := range i.Layers {
		l := &i.Layers[n]
		if l.Graft == "" || l.FDs < 0 || l.FDs > len(fds) {
			return fmt.Errorf("inheritance: graft %q has %d descriptors of %d that are left", l.Graft, l.FDs, len(fds))
		}
		var err error
		if l.layer, err = layerOf(l.Info, fds[:l.FDs]); err != nil {
			return fmt.Errorf("inheritance: graft %s: %w", l.Graft, err)
		}
		fds = fds[l.FDs:]
	}
	if len(fds) > 0 {
		return fmt.Errorf("inheritance: %d descriptors are of no layer", len(fds))
	}
	return nil
}

// handOver answers a keeper that inherits. A page has as many layers as have room for their descriptors.
func (s *server) handOver(r *wire.Request) (any, []int, error) {
	var c inheritCall
	if err := r.Decode(&c); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.legacy == nil || c.From < 0 {
		return nil, nil, fmt.Errorf("server: layer %d of those that another keeper takes off is asked for, and its keeper lives", c.From)
	}
	s.legacy.asked = true
	if err := atInherit.Err("page"); err != nil {
		return nil, nil, err
	}
	page, fds := inheritance{}, []int{}
	for _, l := range s.legacy.layers {
		page.Target, page.Place = l.call.Target, l.call.Place
	}
	page.Target.Labels = nil // a keeper that only takes layers off has no use for them
	for _, l := range s.legacy.layers[min(c.From, len(s.legacy.layers)):] {
		if len(fds)+len(l.keep) > batch {
			break
		}
		page.Layers = append(page.Layers, inheritedLayer{Graft: l.call.Layer, Info: l.call.Info, FDs: len(l.keep)})
		fds = append(fds, l.keep...)
	}
	if len(page.Layers) == 0 {
		s.legacy.taken = true
		atInherit.Pass("taken")
	}
	fds, err := dupAll(fds...)
	return page, fds, err
}

// askLegacy asks the server that has started this keeper for what is to be taken off.
func (k *keeper) askLegacy() (all inheritance, err error) {
	fail := func(err error) (inheritance, error) {
		return inheritance{}, fmt.Errorf("keeper: inherit: %w", err)
	}
	conn, err := wire.FromDescriptor(k.o.Inherit)
	if err != nil {
		return fail(err)
	}
	// The server is the parent here: it lives as long as its connection.
	k.server = newServerClient(conn, nil)
	if err := k.server.watch(os.Getppid()); err != nil {
		return fail(err)
	}
	seen := map[string]bool{}
	for {
		var page inheritance
		fds, err := k.server.callWithin(callDeadline, callInherit, inheritCall{From: len(all.Layers)}, &page)
		if err == nil {
			err = page.sort(fds)
		}
		if err != nil {
			wire.CloseAll(fds)
			return fail(err)
		}
		if len(page.Layers) == 0 {
			break
		}
		all.Target, all.Place = page.Target, page.Place
		for _, l := range page.Layers {
			if seen[l.Graft] {
				return fail(fmt.Errorf("graft %s is there twice", l.Graft))
			}
			seen[l.Graft] = true
			all.Layers = append(all.Layers, l)
		}
	}
	if len(all.Layers) == 0 {
		return fail(errors.New("there is no layer to take off"))
	}
	return all, nil
}

// inherit takes over the layers of a server whose keeper died.
func (k *keeper) inherit(i inheritance) {
	k.shareEstate(k.server)
	go k.watchServer(k.server)
	for _, l := range i.Layers {
		k.grafts[l.Graft] = &held{
			Graft:  Graft{ID: l.Graft, Target: k.target, Path: l.Info.Path, State: StateReverting, Since: time.Now(), Version: k.o.Version, Reason: "its keeper died"},
			device: -1, backing: l.layer.Backing, mount: l.layer.Mount, bottom: l.layer.Bottom, peer: l.layer.PeerGroup, info: l.Info,
		}
	}
}
