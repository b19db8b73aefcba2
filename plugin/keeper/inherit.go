package keeper

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"golang.org/x/sys/unix"
)

// inheritance is what a server hands to a new keeper after its own died. The
// connection with the server is descriptor 3; the layers' descriptors follow:
// for each backing, mount[, the other mount of one over "/"][, peer group].
type inheritance struct {
	Target Target           `json:"target"`
	Place  graft.Target     `json:"place"`
	Layers []inheritedLayer `json:"layers"`
}

type inheritedLayer struct {
	Graft string          `json:"graft"`
	Info  graft.LayerInfo `json:"info"`
	FDs   int             `json:"fds"`
}

// inheritedFirst is the number of the first descriptor after stdin, stdout and stderr.
const inheritedFirst = 3

func (i inheritance) encode() (string, error) {
	b, err := json.Marshal(i)
	return string(b), err
}

func decodeInheritance(s string) (inheritance, error) {
	var i inheritance
	if err := json.Unmarshal([]byte(s), &i); err != nil {
		return i, fmt.Errorf("keeper: inheritance: %w", err)
	}
	return i, nil
}

// inherit takes over the layers of a server whose keeper died.
func (k *keeper) inherit(i inheritance) error {
	conn, err := wire.FromDescriptor(inheritedFirst)
	if err != nil {
		return fmt.Errorf("keeper: inherit: %w", err)
	}
	// The server is the parent here: it lives as long as its connection.
	k.server = newServerClient(conn, nil)
	if err := k.server.watch(os.Getppid()); err != nil {
		return fmt.Errorf("keeper: inherit: %w", err)
	}
	k.shareEstate(k.server)
	go k.watchServer(k.server)
	next := inheritedFirst + 1
	for _, l := range i.Layers {
		var fds []int
		for fd := next; fd < next+l.FDs; fd++ {
			unix.CloseOnExec(fd) // swappers must not have them
			fds = append(fds, fd)
		}
		layer, err := layerOf(l.Info, fds)
		if err != nil {
			return fmt.Errorf("keeper: inherit graft %s: %w", l.Graft, err)
		}
		h := &held{
			Graft:  Graft{ID: l.Graft, Target: k.target, Path: l.Info.Path, State: StateReverting, Since: time.Now(), Version: k.o.Version, Reason: "its keeper died"},
			device: -1, backing: layer.Backing, mount: layer.Mount, bottom: layer.Bottom, peer: layer.PeerGroup, info: l.Info,
		}
		next += l.FDs
		k.grafts[h.ID] = h
	}
	return nil
}
