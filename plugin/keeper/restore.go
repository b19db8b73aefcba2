package keeper

import (
	"errors"
	"fmt"
	"os"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/holder"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"golang.org/x/sys/unix"
)

// restoredLayer is what became of a layer of a dead server.
type restoredLayer struct {
	Layer string `json:"layer"`
	// Error is why it cannot be served on.
	Error string `json:"error,omitempty"`
	// Adopted are the handles of descriptions that were adopted and are open still.
	Adopted []uint64 `json:"adopted,omitempty"`
}

// restore makes the layers of a dead server this one's: all but answering their requests.
func (s *server) restore() ([]restoredLayer, error) {
	s.mu.Lock()
	p := s.succession
	s.mu.Unlock()
	if p == nil || !p.pending {
		return nil, errors.New("server: there is nobody to follow")
	}
	for _, o := range p.estate.Servers {
		if o.PID != os.Getpid() {
			if err := awaitDeath(o.PID, o.StartTime); err != nil {
				return nil, err
			}
		}
	}
	out := []restoredLayer{}
	for _, r := range p.estate.Layers {
		atFollow.Pass("layer")
		l := restoredLayer{Layer: r.Call.Layer}
		served, err := s.restoreLayer(r, p.estate)
		if err != nil {
			s.o.Logger.Error("serve a dead server's layer on", "graft", l.Layer, "err", err)
			l.Error = err.Error()
		} else {
			l.Adopted = served.layer.Adopted()
		}
		out = append(out, l)
	}
	atFollow.Pass("restored")
	return out, nil
}

// awaitDeath waits until a server is gone with all its threads, and so with all their
// system calls. One that is not dead has no keeper any more, and is killed.
func awaitDeath(pid int, start uint64) error {
	p, err := openProcess(pid, func() bool {
		stat, err := graft.ReadStat(pid)
		return err == nil && stat.StartTime == start
	})
	if p == nil {
		return err
	}
	defer p.close()
	gone, err := p.kill(releaseDeadline)
	if err == nil && !gone {
		err = fmt.Errorf("server %d does not end: a file system that it waits for does not answer", pid)
	}
	return err
}

// taker takes descriptors out of the tables of dead servers.
type taker struct {
	estate  estate
	holders map[int]*holder.Holder // by server
}

func newTaker(e estate) *taker { return &taker{estate: e, holders: map[int]*holder.Holder{}} }

func (t *taker) close() {
	for _, h := range t.holders {
		h.Close()
	}
}

// of gives the holder of a dead server's table.
func (t *taker) of(server int) (*holder.Holder, error) {
	if h := t.holders[server]; h != nil {
		return h, nil
	}
	r, ok := t.estate.server(server)
	if !ok {
		return nil, fmt.Errorf("nothing is known of server %d", server)
	}
	h, err := r.openHolder()
	if err != nil {
		return nil, err
	}
	t.holders[server] = h
	return h, nil
}

// take takes several descriptors, all or none.
func (t *taker) take(server int, numbers ...int) ([]int, error) {
	h, err := t.of(server)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, n := range numbers {
		fd, err := h.Take(n)
		if err != nil {
			wire.CloseAll(out)
			return nil, err
		}
		out = append(out, fd)
	}
	return out, nil
}

// state opens the state of a layer.
func (t *taker) state(r estateLayer) (*fusefs.State, error) {
	files, err := t.take(r.Server, r.State...)
	if err != nil {
		return nil, err
	}
	st, err := fusefs.OpenState(files)
	if err != nil {
		wire.CloseAll(files)
	}
	return st, err
}

// restoreLayer makes one layer this server's.
func (s *server) restoreLayer(r estateLayer, e estate) (l *servedLayer, err error) {
	t := newTaker(e)
	defer t.close()
	st, err := t.state(r)
	if err != nil {
		return nil, err
	}
	l = &servedLayer{call: r.Call, state: st, device: -1}
	defer func() {
		if err != nil {
			l.release()
		}
	}()
	fds, err := t.take(r.Server, append([]int{r.Namespace, r.Device}, r.Keep...)...)
	if err != nil {
		return nil, err
	}
	l.device, l.keep = fds[1], fds[2:]
	s.keepNamespace(fds[0], &l.call.Place)
	opts, err := s.optionsOf(l)
	if err != nil {
		return nil, err
	}
	opts.State = st
	owner, err := t.of(st.Owner())
	if err != nil {
		return nil, err
	}
	if l.layer, err = fusefs.Restore(opts, owner.Take); err != nil {
		return nil, err
	}
	atFollow.Pass("taken")
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Off {
		l.unused = make(chan struct{})
	}
	s.layers[r.Call.Layer] = l
	s.bequeath(l, false)
	return l, nil
}

// resumed says what came of it.
type resumed struct {
	// Taken: another process follows the dead server, or has.
	Taken bool `json:"taken,omitempty"`
	// Failed are layers that are not served, with the reason.
	Failed map[string]string `json:"failed,omitempty"`
}

// resume has the restored layers answered from here on. From its success on, this
// is the server; until then, and if it fails, another process can be.
func (s *server) resume() (out resumed, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.succession
	if p == nil || !p.pending {
		return resumed{}, errors.New("server: there is nobody to follow")
	}
	switch err := p.claim.Take(p.generation); {
	case errors.Is(err, holder.ErrTaken):
		return resumed{Taken: true}, nil
	case err != nil:
		return resumed{}, fmt.Errorf("server: follow the dead one: %w", err)
	}
	atFollow.Pass("claimed")
	err = s.becomeOnly(p)
	if _, werr := unix.Write(p.claim.Write, []byte{p.generation}); werr != nil { // for who follows this one, or is in its place
		s.o.Logger.Error("leave the claim to who may follow", "err", werr)
	}
	if err != nil {
		return resumed{}, err
	}
	atFollow.Pass("only")
	out.Failed = map[string]string{}
	for id, l := range s.layers {
		if err := l.layer.Resume(); err != nil {
			out.Failed[id] = err.Error()
			continue
		}
		if l.unused != nil {
			go s.awaitEnd(l)
		}
	}
	atFollow.Pass("resumed")
	return out, nil
}

// becomeOnly ends the holders of those who served before, and puts down that this process is the only one. The caller holds s.mu.
func (s *server) becomeOnly(p *succession) error {
	// A lock that was let go of may still be held by a descriptor that nobody knows: the old tables go first.
	var self estateServer
	for _, o := range p.estate.Servers {
		if o.PID == os.Getpid() {
			self = o
			continue
		}
		h, err := o.openHolder()
		if err != nil {
			continue // it is gone
		}
		err = h.End(releaseDeadline)
		h.Close()
		if err != nil {
			return err
		}
	}
	atFollow.Pass("ended")
	var layers []estateLayer
	for _, r := range p.estate.Layers {
		if s.layers[r.Call.Layer] != nil { // the others' descriptors are gone
			layers = append(layers, r)
		}
	}
	p.estate.Servers, p.estate.Layers, p.pending = []estateServer{self}, layers, false
	return p.file.write(p.estate)
}
