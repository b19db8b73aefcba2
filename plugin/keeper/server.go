package keeper

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/holder"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"golang.org/x/sys/unix"
)

// ServerOptions say how the server process is started.
type ServerOptions struct {
	StateDir string
	// Control is the descriptor of the connection on which the keeper calls, News of that on which the server does.
	Control, News int
	// Follow says that this server follows one that died, whose estate is the descriptor Estate, and with which generation of the
	// claim; empty: it is the first.
	Follow string
	Estate int
	Logger *slog.Logger
}

// RunServer is the server process: it serves the layers of one target and
// takes orders from the keeper. When the keeper dies, it stops injecting and
// starts another keeper that takes the layers off.
func RunServer(o ServerOptions) error {
	conn, err := wire.FromDescriptor(o.Control)
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	raiseDescriptorLimit()
	// The modes that come from the kernel are masked already (FUSE_DONT_MASK is not asked for).
	unix.Umask(0)
	news, err := wire.FromDescriptor(o.News)
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	defer func() { _ = news.Close() }()
	s := &server{o: o, layers: map[string]*servedLayer{}, swappers: map[int]chan struct{}{}, news: newNews(news, o.Logger)}
	left, generation := -1, holder.FirstGeneration
	if o.Follow != "" {
		left, generation = o.Estate, o.Follow[0]
		atFollow.Pass("started")
	}
	if err := s.provide(left, generation); err != nil {
		if left >= 0 {
			return fmt.Errorf("server: follow the dead one: %w", err)
		}
		o.Logger.Warn("should this server die, its layers are taken off: no other could follow it", "err", err)
	}
	defer s.endSuccession()
	shrink(o.Logger)
	over := make(chan struct{})
	defer close(over)
	go watchCrowd(over, s.crowded)
	go closeAfter(over, os.Getppid(), conn)
	err = conn.Serve(s.handle)
	if err := s.decide(); err != nil {
		return err
	}
	if err = s.leave(err); errors.Is(err, errNotTaken) {
		return err
	}
	_, lingering := s.split()
	if len(lingering) > 0 {
		s.sayAlone()
	}
	for _, l := range lingering {
		o.Logger.Warn("nobody waits for the end of a layer that is off and still used, but this server", "graft", l.call.Layer)
		<-l.unused
	}
	return err
}

// split tells the layers that are on from those that linger.
func (s *server) split() (on, lingering []*servedLayer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		if l.unused == nil {
			on = append(on, l)
		} else {
			lingering = append(lingering, l)
		}
	}
	return on, lingering
}

type server struct {
	o           ServerOptions
	mu          sync.Mutex
	layers      map[string]*servedLayer
	namespaceFD int                   // the target's, held open for another keeper; 0 for none yet
	swappers    map[int]chan struct{} // those that are connected, by their process; closed when one is no more
	news        *news
	succession  *succession // nil if nobody could follow this server
	legacy      *legacy     // for the keeper that takes the layers off; nil while the first one lives
}

// holdNamespace keeps the target's mount namespace, and has the place name this process's hold of it.
func (s *server) holdNamespace(place *graft.Target) error {
	fd, err := unix.Open(place.NamespaceFile, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("hold the target's mount namespace: %w", err)
	}
	s.keepNamespace(fd, place)
	return nil
}

// keepNamespace is holdNamespace with what is open already.
func (s *server) keepNamespace(fd int, place *graft.Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.namespaceFD == 0 {
		s.namespaceFD = fd
	} else {
		_ = unix.Close(fd)
	}
	place.NamespaceFile = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.namespaceFD)
}

// servedLayer is one layer, with what another keeper would need to take it off.
type servedLayer struct {
	call  serveCall
	layer *fusefs.Layer
	keep  []int // duplicates of backing, mount[, the other mount of one over "/"][, peer group]
	// state and device are for whoever serves the layer on when this process dies; nil and -1 if nobody can.
	state  *fusefs.State
	device int
	log    *faultLog
	// unused is made when the layer has been taken off, and closed when nothing uses it any more; guarded by the server's mu.
	unused chan struct{}
	watch  *mountWatch
}

// release lets go of what it holds; its layer, if it has one, is closed already.
func (l *servedLayer) release() {
	if l.log != nil {
		l.log.close()
	}
	if l.watch != nil {
		l.watch.close()
	}
	if l.state != nil {
		_ = l.state.Close() // memory: nothing to report
	}
	wire.CloseAll(l.keep)
	if l.device >= 0 {
		_ = unix.Close(l.device)
	}
}

func (s *server) handle(r *wire.Request) (any, []int, error) {
	if r.Method != callServe && r.Method != callSwapper { // the others bring none
		wire.CloseAll(r.FDs)
	}
	switch r.Method {
	case callServe:
		return nil, nil, s.serve(r)
	case callRules:
		var c rulesCall
		if err := r.Decode(&c); err != nil {
			return nil, nil, err
		}
		l, err := s.layer(c.Layer)
		if err != nil {
			return nil, nil, err
		}
		if c.Coming {
			return nil, nil, l.layer.Expect(c.Rules)
		}
		if s.follows() {
			defer atFollow.Pass("rules")
		}
		return nil, nil, l.layer.SetRules(c.Rules, c.Start)
	case callStatus:
		l, err := s.layerOf(r)
		if err != nil {
			return nil, nil, err
		}
		var out []RuleStatus
		for _, st := range l.layer.Rules() {
			out = append(out, RuleStatus{Name: st.Name, Policy: st.Policy, Run: st.Run, Text: st.Text, Matched: st.Matched, Fired: st.Fired, Expires: st.Expires, Expired: st.Expired})
		}
		return out, nil, nil
	case callFaults:
		l, err := s.layerOf(r)
		if err != nil {
			return nil, nil, err
		}
		return faultCounts(l.layer.Faults()), nil, nil
	case callRetired:
		l, err := s.layerOf(r)
		if err != nil {
			return nil, nil, err
		}
		files := []graft.RetiredFile{}
		for _, f := range l.layer.Retired() {
			files = append(files, graft.RetiredFile{Node: f.Node, Ino: f.Ino, Path: f.Path})
		}
		return files, nil, nil
	case callRelease:
		var c releaseCall
		if err := r.Decode(&c); err != nil {
			return nil, nil, err
		}
		l, err := s.layer(c.Layer)
		if err != nil {
			return nil, nil, err
		}
		atServe.Pass("release")
		return l.layer.ReleaseHung(c.Rule), nil, nil
	case callEstate:
		return s.shareEstate()
	case callRestore:
		out, err := s.restore()
		return out, nil, err
	case callResume:
		out, err := s.resume()
		return out, nil, err
	case callSwapper:
		return nil, nil, s.attachSwapper(r)
	case callInherit:
		return s.handOver(r)
	case callEnd:
		var c endCall
		if err := r.Decode(&c); err != nil {
			return nil, nil, err
		}
		l, err := s.layer(c.Layer)
		if err != nil {
			return nil, nil, err
		}
		return s.end(l, c.Wait), nil, nil
	default:
		return nil, nil, fmt.Errorf("server: unknown call %q", r.Method)
	}
}

func (s *server) layer(id string) (*servedLayer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[id]
	if l == nil {
		return nil, fmt.Errorf("server: no layer of graft %s", id)
	}
	return l, nil
}

func (s *server) layerOf(r *wire.Request) (*servedLayer, error) {
	var c layerCall
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	return s.layer(c.Layer)
}

func (s *server) serve(r *wire.Request) error {
	var c serveCall
	if err := r.Decode(&c); err != nil || len(r.FDs) < 3 {
		wire.CloseAll(r.FDs)
		return errors.Join(fmt.Errorf("serve: %d descriptors", len(r.FDs)), err)
	}
	dev, keep := r.FDs[0], r.FDs[1:]
	root, err := unix.FcntlInt(uintptr(keep[0]), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		wire.CloseAll(r.FDs)
		return fmt.Errorf("serve: %w", err)
	}
	served := &servedLayer{call: c, keep: keep, device: -1, state: s.newState()}
	if served.state != nil {
		if served.device, err = unix.FcntlInt(uintptr(dev), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			_ = served.state.Close()
			served.state = nil
		}
	}
	opts, err := s.optionsOf(served)
	if err != nil {
		_, _ = unix.Close(dev), unix.Close(root)
		served.release()
		return fmt.Errorf("serve %s: %w", c.Info.Path, err)
	}
	opts.Device, opts.Root, opts.State = dev, root, served.state
	l, err := fusefs.New(opts)
	if err == nil {
		err = l.Serve()
	}
	if err != nil {
		served.release()
		return fmt.Errorf("serve %s: %w", c.Info.Path, err)
	}
	served.layer = l
	if err := s.holdNamespace(&served.call.Place); err != nil {
		s.o.Logger.Warn("should the keeper die, the layer can only be taken off while its target lives", "err", err)
	}
	s.mu.Lock()
	s.layers[c.Layer] = served
	s.bequeath(served, false)
	s.mu.Unlock()
	return nil
}

// optionsOf are those of a layer that do not depend on who made it.
func (s *server) optionsOf(l *servedLayer) (fusefs.Options, error) {
	c := l.call
	var err error
	if l.log, err = newFaultLog(s.o.StateDir, c, s.o.Logger); err != nil {
		return fusefs.Options{}, err
	}
	o := fusefs.Options{Prefix: c.Info.Path, Record: l.log.record, Logger: s.o.Logger, NoResend: os.Getenv("FAULTGRAFT_TEST_NO_RESEND") != ""}
	o.Released = func(handle uint64) { s.news.tell(newsCall{Layer: c.Layer, Released: handle}) }
	o.Resent = func(n uint64) { s.news.tell(newsCall{Layer: c.Layer, Resent: n}) }
	o.Retire = func() { s.news.tell(newsCall{Layer: c.Layer, Retired: true}) }
	if c.Place.Tree {
		o.Scope = newTreeScope(c.Target.PID).contains
	}
	l.watch, err = watchMounts(c.Place.PID, c.Layer)
	switch {
	case err == nil:
		o.Mounted = l.watch.below
	case c.Place.Alive():
		return o, err
	}
	return o, nil // a target that has ended mounts nothing
}

// end lets go of a layer that was taken off, and waits until the kernel has. It
// reports that the layer lingers: it is still in use, and served on.
func (s *server) end(l *servedLayer, wait time.Duration) (lingers bool) {
	s.mu.Lock()
	keep := l.keep[1:] // what lies under the layer is needed for a last attempt to move what is left on it
	l.keep = l.keep[:1]
	if l.unused == nil {
		l.unused = make(chan struct{})
		go s.awaitEnd(l)
	}
	s.bequeath(l, false)
	s.mu.Unlock()
	wire.CloseAll(keep)
	select {
	case <-l.unused:
		return false
	case <-time.After(wait):
		return true
	}
}

// awaitEnd waits for the end of a layer's connection with the kernel, which comes when nothing uses it any more.
func (s *server) awaitEnd(l *servedLayer) {
	l.layer.Wait()
	// Nothing can be counted any more, and the keeper still lists the graft: the agent finds it in one of the two places.
	if err := stateDir(s.o.StateDir).saveEnded(EndedGraft{Graft: l.call.Layer, Target: l.call.Target, Ended: time.Now(), Faults: faultCounts(l.layer.Faults())}); err != nil {
		s.o.Logger.Error("faults go uncounted", "graft", l.call.Layer, "err", err)
	}
	s.mu.Lock()
	delete(s.layers, l.call.Layer)
	s.bequeath(l, true)
	s.mu.Unlock()
	l.release()
	close(l.unused)
	s.news.tell(newsCall{Layer: l.call.Layer, Unused: true})
}

// crowded says that there are next to no descriptors left.
func (s *server) crowded(c crowd) {
	s.o.Logger.Warn(c.String())
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.layers {
		s.news.tell(newsCall{Layer: id, Crowded: c})
	}
}
