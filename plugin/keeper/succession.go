package keeper

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/holder"
	"golang.org/x/sys/unix"
)

// succession is a server's provision for its death: a holder of its descriptors, and
// an estate that says what they are. Guarded by the server's mu.
type succession struct {
	file       *estateFile
	estate     estate
	claim      holder.Claim
	generation byte
	guard      int // pidfd of the keeper
	holder     *holder.Holder
	// pending: another process served the layers, which Resume has to be called of.
	pending bool
	over    bool // the process is about to end
}

const (
	// holderPatience is how long a holder stays that cannot have the claim: another process takes its descriptors over.
	holderPatience = time.Minute
	// holderDeadline is how long a holder may take to close what it has open when it is killed.
	holderDeadline = 10 * time.Second
	// releaseDeadline is how long a dead server, and then its holder, may take to let go of all that they have open, before another
	// serves: a last close may wait for the disk, behind what others write.
	releaseDeadline = 90 * time.Second
)

// provide makes the server's holder before there is a layer, so that there is next
// to no memory to copy. left is the descriptor of a dead server's estate, -1 for none.
func (s *server) provide(left int, generation byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &succession{generation: generation, guard: -1}
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return err
	}
	if p.guard, err = unix.PidfdOpen(os.Getppid(), 0); err != nil {
		return fmt.Errorf("watch the keeper: %w", err)
	}
	if left < 0 {
		if p.file, err = newEstateFile(); err != nil {
			return err
		}
		if p.claim, err = holder.NewClaim(); err != nil {
			return err
		}
	} else {
		unix.CloseOnExec(left)
		if p.file, err = openEstateFile(left); err != nil {
			return err
		}
		if p.estate, err = p.file.read(); err != nil {
			return err
		}
		p.pending = true
		if p.claim, err = takeClaim(p.estate); err != nil {
			return err
		}
	}
	p.estate.OOMScoreAdj = strings.TrimSpace(string(score))
	if err := s.startHolder(p); err != nil {
		return err
	}
	s.succession = p
	go s.watchHolder(p.holder)
	if p.pending {
		atFollow.Pass("holder")
	}
	return nil
}

// follows: a dead server is about to be followed by this one.
func (s *server) follows() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.succession != nil && s.succession.pending
}

// takeClaim takes the claim from one of the holders of an estate.
func takeClaim(e estate) (holder.Claim, error) {
	var errs []error
	for i := len(e.Servers) - 1; i >= 0; i-- {
		c, err := takeClaimOf(e.Servers[i])
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return holder.Claim{}, fmt.Errorf("no holder is left: %w", errors.Join(errs...))
}

func takeClaimOf(s estateServer) (c holder.Claim, err error) {
	h, err := s.openHolder()
	if err != nil {
		return c, err
	}
	defer h.Close()
	if c.Read, err = h.Take(s.ClaimRead); err != nil {
		return c, err
	}
	if c.Write, err = h.Take(s.ClaimWrite); err != nil {
		_ = unix.Close(c.Read)
	}
	return c, err
}

// startHolder makes a holder and puts it down. The caller holds s.mu, if there is another goroutine.
func (s *server) startHolder(p *succession) error {
	h, err := holder.Start(holder.Options{
		Guard: p.guard, Claim: p.claim, Generation: p.generation, Patience: holderPatience,
		Successor: "/proc/self/exe", Env: os.Environ(),
		Args: []string{"faultgraft", "keeper", "--state-dir", s.o.StateDir, "--follow", fmt.Sprintf("%d:@", p.file.fd)},
	})
	if err != nil {
		return err
	}
	stat, err := graft.ReadStat(os.Getpid())
	its, herr := graft.ReadStat(h.PID)
	if err = errors.Join(err, herr); err == nil {
		self := estateServer{PID: os.Getpid(), StartTime: stat.StartTime, Holder: h.PID, HolderStart: its.StartTime, ClaimRead: p.claim.Read, ClaimWrite: p.claim.Write}
		if n := len(p.estate.Servers); n > 0 && p.estate.Servers[n-1].PID == self.PID {
			p.estate.Servers[n-1] = self
		} else {
			p.estate.Servers = append(p.estate.Servers, self)
		}
		err = p.file.write(p.estate)
	}
	if err != nil {
		return errors.Join(err, h.End(holderDeadline))
	}
	p.holder = h
	return nil
}

// watchHolder makes another holder when somebody has killed this one.
func (s *server) watchHolder(h *holder.Holder) {
	for !h.Wait(time.Hour) {
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.succession
	if p == nil || p.over || p.holder != h {
		return
	}
	_ = h.End(holderDeadline) // reaps it
	h.Close()
	if err := s.startHolder(p); err != nil {
		s.o.Logger.Error("the holder was killed, and there is no other: when this server dies, its layers are taken off", "err", err)
		p.holder = nil
		return
	}
	s.o.Logger.Warn("the holder was killed; there is another", "pid", p.holder.PID)
	go s.watchHolder(p.holder)
}

// endSuccession is for a server that ends: what it leaves is nothing, if no layer is there any more.
func (s *server) endSuccession() {
	s.mu.Lock()
	p := s.succession
	if p == nil || len(s.layers) > 0 { // with layers: the holder sees to it that somebody follows
		s.mu.Unlock()
		return
	}
	p.over = true
	h := p.holder
	s.mu.Unlock()
	if h != nil {
		if err := h.End(holderDeadline); err != nil {
			s.o.Logger.Error("end the holder", "err", err)
		}
	}
}

// newGuard has the holder watch another keeper.
func (s *server) newGuard(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.succession == nil {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		err = unix.Dup3(fd, s.succession.guard, unix.O_CLOEXEC)
		_ = unix.Close(fd)
	}
	if err != nil {
		s.o.Logger.Warn("the holder cannot watch the new keeper", "err", err)
	}
}

// newState makes what a layer needs to be served on by another process; nil if there is nobody who would keep it.
func (s *server) newState() *fusefs.State {
	s.mu.Lock()
	kept := s.succession != nil && s.succession.holder != nil
	s.mu.Unlock()
	if !kept {
		return nil
	}
	st, err := fusefs.NewState()
	if err != nil {
		s.o.Logger.Warn("should this server die, the layer is taken off: what another would need to know cannot be kept", "err", err)
		return nil
	}
	return st
}

// bequeath puts a layer down in the estate, or takes what is there of it out. The caller holds s.mu.
func (s *server) bequeath(l *servedLayer, gone bool) {
	p := s.succession
	if p == nil || l.state == nil {
		return
	}
	r := estateLayer{
		Call: l.call, Server: os.Getpid(), State: l.state.Files(), Keep: l.keep, Device: l.device, Namespace: s.namespaceFD,
		Off: l.unused != nil,
	}
	r.Call.Target.Labels = nil // a keeper that only takes layers off has no use for them
	p.estate.Target, p.estate.Place = r.Call.Target, r.Call.Place
	all := make([]estateLayer, 0, len(p.estate.Layers)+1)
	for _, o := range p.estate.Layers {
		if o.Call.Layer != r.Call.Layer {
			all = append(all, o)
		}
	}
	if !gone {
		all = append(all, r)
	}
	p.estate.Layers = all
	if err := p.file.write(p.estate); err != nil {
		s.o.Logger.Error("should this server die, not all of its layers can be served on", "graft", l.call.Layer, "err", err)
	}
}

// shareEstate gives the keeper the estate, for the next server.
func (s *server) shareEstate() (any, []int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.succession == nil {
		return nil, nil, errors.New("server: it has no holder")
	}
	fds, err := dupAll(s.succession.file.fd)
	return s.succession.generation, fds, err
}

// decide is for a server whose keeper died before it answered a request: with layers
// of a dead one in its hands it is the one to follow that, if no other is at it.
func (s *server) decide() error {
	if !s.follows() {
		return nil
	}
	s.mu.Lock()
	n := len(s.layers)
	s.mu.Unlock()
	if n == 0 {
		return errors.New("server: the keeper has died before there was anything to serve")
	}
	out, err := s.resume()
	if out.Taken {
		return fmt.Errorf("server: %w", holder.ErrTaken)
	}
	for id, why := range out.Failed {
		s.o.Logger.Error("serve a dead server's layer on", "graft", id, "err", why)
	}
	return err
}
