package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// Options say how the keeper process is started.
type Options struct {
	StateDir string
	// Target is a descriptor of what targetFile makes; Inherit is that of the connection with a server whose keeper died. 0 is none;
	// one of the three is set.
	Target, Inherit int
	// Follow is what the holder of a dead server says whose keeper died too: a descriptor's number and a generation, see package holder.
	Follow string
	// Ready is a descriptor to which one line is written once the keeper listens, or what went wrong; -1 for none.
	Ready int
	// Version is this build's, for whoever asks.
	Version string
	Logger  *slog.Logger
}

// Run is the keeper process. It ends when its last graft has been taken off, and
// takes all off when ctx ends.
func Run(ctx context.Context, o Options) error {
	raiseDescriptorLimit()
	// Holders whose server died come to this process, to be reaped.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		o.Logger.Warn("become the parent of orphans", "err", err)
	}
	k := &keeper{
		o: o, dir: stateDir(o.StateDir), grafts: map[string]*held{}, ended: make(chan struct{}),
	}
	err := k.start()
	if o.Ready >= 0 {
		f := os.NewFile(uintptr(o.Ready), "ready")
		line := "ready"
		if err != nil {
			line = err.Error()
		}
		_, werr := fmt.Fprintln(f, line)
		_ = f.Close()
		if err == nil && werr != nil {
			o.Logger.Warn("whoever started this keeper has gone", "err", werr)
		}
	}
	if err != nil {
		return err
	}
	atStart.Pass("ready")
	shrink(o.Logger)
	return k.run(ctx)
}

// keeper is the state of the process.
type keeper struct {
	o      Options
	dir    stateDir
	key    string
	target Target
	place  graft.Target
	events *EventLog
	http   *http.Server
	listen func() error

	swap sync.Mutex // held for a whole graft, ungraft or change of rules: one at a time

	mu      sync.Mutex // guards what follows
	grafts  map[string]*held
	server  *serverClient
	swapper *os.Process
	estate  *estateFile // what the server leaves if it dies; nil: nobody could follow it
	deaths  deaths
	blocked error // why no server can be started for now that follows a dead one
	last    error // why the server that follows, or serves, has no rules and is there to have the layers taken off
	// generation is that of the claim that servers of this keeper have (see package holder).
	generation byte
	injects    int // that wait or are at work
	ending     bool
	ended      chan struct{} // closed when nothing is left to keep
}

// held is a graft with the descriptors that it lives by.
type held struct {
	Graft
	info    graft.LayerInfo
	left    []tracer.Object // what its graft could not put onto the layer
	device  int             // -1 when the server has the only one
	mount   int
	backing int
	bottom  int // the second mount of a layer over "/"; -1 for none
	peer    int
	adopted map[uint64]int  // originals by handle; guarded by the keeper's mu
	closed  map[uint64]bool // handles that were released before their original came
	// lent: a swapper goes by the numbers of what is in adopted and remains; guarded by the keeper's mu.
	lent    bool
	stoodIn bool       // see standIn; guarded by the keeper's mu
	remains *remains   // of the dead server, for who takes the layer off without one; guarded by the keeper's mu
	taking  sync.Mutex // held while they are taken
	request Request
	rules   []activeRule // in force; guarded by the keeper's swap
	timer   *time.Timer  // ends the graft with its last rule
	attempt *attempt     // to take it off, under way; nil: none; guarded by the keeper's mu
	again   *time.Timer  // tries once more to take it off; guarded by the keeper's mu
	halted  error        // why it gets no rules any more: an ErrStopped; guarded by the keeper's mu
	ruling  sync.Mutex   // held while the server is given rules, or they are ended by a stop
	status  []RuleStatus // the last that was seen
	faults  []FaultCount // the last that was seen
	// swapping: a swapper moves objects onto the layer, and originals of files that are closed meanwhile may still come.
	swapping bool
	covering bool // coverSoon is about to
	lost     bool // the server that followed a dead one does not have the layer; guarded by the keeper's mu
	unused   bool // the layer has no user any more; guarded by the keeper's mu
}

// adopt keeps an original for the day the server dies.
func (h *held) adopt(handle uint64, fd int) {
	if h.closed[handle] {
		delete(h.closed, handle)
		_ = unix.Close(fd)
		return
	}
	if h.adopted == nil {
		h.adopted = map[uint64]int{}
	}
	if old, twice := h.adopted[handle]; twice {
		_ = unix.Close(old)
	}
	h.adopted[handle] = fd
}

// released lets go of an original whose file saw its last close.
func (h *held) released(handle uint64) {
	if h.lent {
		return // its number would be another file's; all go when the layer is off
	}
	if fd, ok := h.adopted[handle]; ok {
		delete(h.adopted, handle)
		_ = unix.Close(fd)
		return
	}
	if !h.swapping {
		return // it was handed back
	}
	if h.closed == nil {
		h.closed = map[uint64]bool{}
	}
	h.closed[handle] = true
}

func (k *keeper) start() error {
	var legacy inheritance
	var left estate
	var err error
	switch {
	case k.inherits():
		legacy, err = k.askLegacy()
		k.target = legacy.Target
	case k.o.Follow != "":
		left, err = k.openEstate()
		k.target, legacy.Place = left.Target, left.Place
	default:
		k.target, err = readTarget(k.o.Target)
	}
	if err != nil {
		return err
	}
	t, err := graft.CheckTarget(k.target.PID)
	switch {
	case k.takesOff():
		t = legacy.Place // it may have ended; what it left is taken off all the same
	case err != nil:
		return err
	case k.target.StartTime != 0 && k.target.StartTime != t.StartTime:
		return fmt.Errorf("pid %d: the process has ended, another one has its id now", t.PID)
	}
	k.target.StartTime, k.place = t.StartTime, t
	if err := k.holdNamespace(); err != nil {
		return err
	}
	atStart.Pass("namespace")
	k.key = keyOf(t)
	if k.takesOff() {
		// Not between the look and the listening of one that a command starts: it may have found nobody here. Nor is the folder swept meanwhile.
		unlock, err := k.dir.lock(k.key, startWait)
		if err != nil {
			k.o.Logger.Warn("another keeper may start for the same target", "err", err)
		} else {
			defer unlock()
		}
		if err != nil || alive(k.dir.socket(k.key)) {
			k.key += fmt.Sprintf("-after-%d", os.Getppid())              // the server's, or the holder's: it has the layers to be taken off
			if unlock, err := k.dir.lock(k.key, startWait); err == nil { // against who sweeps; nobody else knows the name
				defer unlock()
			}
		}
	}
	if err := os.MkdirAll(k.dir.keeper(k.key), 0o700); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	atStart.Pass("folder")
	if k.events, err = OpenEventLog(k.o.StateDir); err != nil {
		return err
	}
	l, err := wire.ListenRoot(k.dir.socket(k.key), k.o.Logger)
	if err != nil {
		return err
	}
	k.http = &http.Server{Handler: k.routes(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ConnContext: wire.WithPeer}
	k.listen = func() error { return k.http.Serve(l) }
	atStart.Pass("listening")
	switch {
	case k.inherits():
		k.inherit(legacy)
	case k.o.Follow != "":
		return k.takeEstate(left)
	}
	return nil
}

// takesOff: this keeper follows one that died, and is there to take its layers off.
func (k *keeper) takesOff() bool { return k.inherits() || k.o.Follow != "" }

// inherits: it was started by the server of the one that died.
func (k *keeper) inherits() bool { return k.o.Inherit > 0 }

// holdNamespace keeps the target's mount namespace open: the layer can be taken
// off when no process is left in it, and the namespace's inode number is given
// to no other meanwhile.
func (k *keeper) holdNamespace() error {
	path := fmt.Sprintf("/proc/%d/ns/mnt", k.place.PID)
	if k.place.NamespaceFile != "" {
		path = k.place.NamespaceFile // that of a server whose keeper died
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("pid %d: hold its mount namespace: %w", k.place.PID, err)
	}
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil || s.Ino != k.place.MountNS {
		_ = unix.Close(fd)
		return fmt.Errorf("pid %d: the process has ended", k.place.PID)
	}
	k.place.NamespaceFile = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
	return nil
}

// keyOf names the keeper of a target, by what names a process for good.
func keyOf(t graft.Target) string { return fmt.Sprintf("pid-%d-%d", t.PID, t.StartTime) }

// idle is how long a keeper that holds nothing waits for its first request.
const idle = 30 * time.Second

func (k *keeper) run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- k.listen() }()
	go k.watchTarget()
	first := time.AfterFunc(idle, k.endIfIdle)
	defer first.Stop()
	switch {
	case k.inherits():
		go k.recoverAll("its keeper died")
	case k.o.Follow != "":
		go k.followBoth()
	}
	defer context.AfterFunc(ctx, func() { k.recoverAll("its keeper was told to end") })()
	select {
	case <-k.ended:
	case err := <-served:
		return fmt.Errorf("keeper: %w", err)
	}
	atEnd.Pass("ended")
	k.mu.Lock()
	server := k.server
	k.mu.Unlock()
	if server != nil {
		_ = server.conn.Close() // the server ends with its last layer gone and the connection closed
		if server.cmd == nil {
			server.end(nil) // inherited: it is the parent, and waits for this process
		}
		select {
		case <-server.dead:
		case <-time.After(5 * time.Second):
			k.o.Logger.Warn("the server does not end; it is killed", "pid", server.pid())
			server.kill()
		}
	}
	k.endHolders()
	atEnd.Pass("server")
	return errors.Join(k.events.Close(), k.leave())
}

// leave closes the socket and removes the keeper's folder, while nobody can start
// another keeper for the target there.
func (k *keeper) leave() error {
	unlock, err := k.dir.lock(k.key, startWait)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := k.http.Shutdown(ctx); err != nil {
		k.o.Logger.Warn("close the control socket", "err", err)
	}
	err = os.RemoveAll(k.dir.keeper(k.key))
	atEnd.Pass("folder")
	return err
}

// watchTarget ends the grafts when the target's first process has ended.
func (k *keeper) watchTarget() {
	pidfd, err := unix.PidfdOpen(k.place.PID, 0)
	if err == nil {
		defer func() { _ = unix.Close(pidfd) }()
		for k.place.Alive() {
			p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
			if _, err := unix.Poll(p, -1); err != nil && !errors.Is(err, unix.EINTR) {
				k.o.Logger.Error("wait for the target's end", "err", err)
				return
			}
		}
	}
	k.o.Logger.Info("the target has ended", "pid", k.place.PID)
	k.recoverAll("the target has ended")
	k.endIfIdle()
}

// endIfIdle ends the keeper when it holds nothing, and nobody waits for a graft: of many callers that are refused each would start a keeper otherwise.
func (k *keeper) endIfIdle() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.grafts) == 0 && k.injects == 0 && !k.ending {
		k.ending = true
		close(k.ended)
	}
}

func (k *keeper) log(e Event) {
	e.Target, e.Name = k.target.ID, k.target.Name
	if err := k.events.Write(e); err != nil {
		k.o.Logger.Error("write the event log", "err", err)
	}
}

// running returns the server, started when there is none.
func (k *keeper) running() (*serverClient, error) {
	s, err := k.serving()
	if err != nil {
		return nil, err
	}
	if s == nil || !s.alive() {
		defer k.dir.turns().take()()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.server != nil && k.server.alive() {
		return k.server, nil
	}
	if k.server != nil && len(k.grafts) > 1 { // besides the one that asks
		return nil, errors.New("the server has just died, and its layers are being taken off: try again in a few seconds")
	}
	if s, err = startServer(k.o.StateDir, nil, k.newsDesk, k.o.Logger); err != nil {
		return nil, err
	}
	k.server, s.since = s, time.Now()
	go k.watchServer(s)
	return s, nil
}

func (k *keeper) watchServer(s *serverClient) {
	<-s.dead
	k.serverDied(s)
}
