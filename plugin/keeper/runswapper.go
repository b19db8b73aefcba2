package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"golang.org/x/sys/unix"
)

// runSwapper starts a swapper for one job and stands by until it is done.
func (k *keeper) runSwapper(h *held, j job) (*graft.Report, error) {
	if j.Dead && j.Off && graft.ConnectionEnded(h.device) {
		return &graft.Report{}, nil // its last user has gone, and its device number may be another file system's by now
	}
	turnOver := func() {}
	if !j.Dead { // else the target waits
		turnOver = k.dir.turns().take()
	}
	defer func() { turnOver() }() // it may be given back twice
	if !j.Detach && len(j.Reswap) == 0 {
		if err := CheckStopped(k.o.StateDir); err != nil { // while it waited for its turn
			return nil, err
		}
	}
	conn, theirs, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	at, err := newProgress()
	if err != nil {
		_ = theirs.Close() // nobody has it
		return nil, err
	}
	defer at.close()
	files := []*os.File{theirs}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	args := []string{"swap"}
	serverEnd := -1
	if j.Dead {
		k.takeRemains(h)
		j.StoodIn = k.stoodIn(h)
	} else {
		sv, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("socketpair: %w", err)
		}
		serverEnd = sv[0]
		defer func() { _ = unix.Close(serverEnd) }()
		files = append(files, os.NewFile(uintptr(sv[1]), "server"))
		args = append(args, "--server")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.ExtraFiles = append([]*os.File{at.file}, files...)
	var said speech
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	if err := startProcess(cmd); err != nil {
		return nil, fmt.Errorf("start the swapper: %w", err)
	}
	j.points().Pass("swapper")
	k.mu.Lock()
	k.swapper, h.swapping = cmd.Process, !j.Detach
	server := k.server
	k.mu.Unlock()
	late, over, watched := error(nil), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		if late = at.watch(over); late != nil {
			_ = cmd.Process.Kill() // it may have ended just now
			_ = conn.Close()       // a thread of it may wait where no signal reaches it
		}
	}()
	defer func() {
		k.mu.Lock()
		k.swapper, h.swapping, h.closed = nil, false, nil
		k.mu.Unlock()
	}()
	for _, f := range files {
		_ = f.Close()
	}
	files = nil
	d := &deskOfSwapper{k: k, h: h, job: j, server: server}
	if serverEnd >= 0 {
		if err := server.call(callSwapper, swapperCall{Layer: h.ID, PID: cmd.Process.Pid, Moves: len(j.Reswap) > 0}, nil, serverEnd); err != nil {
			k.lost(server, err) // so that an ungraft goes on with the next server, or with none
			_ = cmd.Process.Kill()
			close(over)
			<-watched
			return nil, errors.Join(err, awaitSwapper(cmd))
		}
	}
	broke := conn.Serve(d.handle)
	defer func() { wire.CloseAll(d.kept) }() // the target has them, or its old ones
	if broke != nil {
		k.o.Logger.Warn("connection with the swapper broke", "err", broke)
		_ = conn.Close() // it waits for an answer, and hears by this that none comes
	}
	close(over)
	<-watched
	err = awaitSwapper(cmd)
	turnOver() // what it has left is another's work
	text, exit := said.text(), new(exec.ExitError)
	switch {
	case d.result == nil && late != nil:
		return k.swapperDied(h, j, late)
	case d.result == nil && broke != nil:
		return k.swapperDied(h, j, fmt.Errorf("connection with the swapper: %w", broke))
	case d.result == nil && errors.As(err, &exit) && exit.ExitCode() == exitHung:
		return k.swapperDied(h, j, fmt.Errorf("the swapper ended itself, to let the target go on: %s", text))
	case d.result == nil:
		return k.swapperDied(h, j, fmt.Errorf("the swapper died (%v) %s", err, text))
	case d.result.Left:
		return k.swapperDied(h, j, errors.New(d.result.Error))
	case d.result.Error != "":
		return nil, errors.New(d.result.Error)
	}
	if text != "" {
		k.o.Logger.Info("the swapper says", "text", text)
	}
	return d.result.Report, nil
}

// stoodIn tells whether somebody stands in for the dead server of a layer.
func (k *keeper) stoodIn(h *held) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return h.stoodIn
}

// swapperGrace is how long a swapper may take to end after its work, or its death.
const swapperGrace = 5 * time.Second

// awaitSwapper waits for the end of a swapper, but not for ever: a request that a FUSE
// server has read is waited for whatever signal comes (request_wait_answer,
// fs/fuse/dev.c), and so is a file system that hangs. It is reaped when it ends.
func awaitSwapper(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(swapperGrace):
		return errors.New("it does not end, because a file system does not answer")
	}
}

// speech is what a process says, also one that does not end.
type speech struct {
	mu   sync.Mutex
	said bytes.Buffer
}

func (s *speech) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.Write(b)
}

func (s *speech) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimSpace(s.said.String())
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// swapperDied rolls a graft back whose swapper was lost in the middle: the
// target's threads have restored themselves, but objects may be on the layer.
func (k *keeper) swapperDied(h *held, j job, err error) (*graft.Report, error) {
	if j.Detach || len(j.Reswap) > 0 || h.mount < 0 {
		return nil, err
	}
	k.o.Logger.Warn("roll the graft back", "graft", h.ID, "err", err)
	if derr := k.rollBack(h); derr != nil {
		return nil, errors.Join(err, derr)
	}
	return nil, fmt.Errorf("%w; the layer was taken off again, nothing is changed", err)
}

// deskOfSwapper answers the calls of one swapper.
type deskOfSwapper struct {
	k      *keeper
	h      *held
	job    job
	server *serverClient
	result *result
	kept   []int // what the swapper has opened, and has no room for
}

func (d *deskOfSwapper) handle(r *wire.Request) (any, []int, error) {
	h := d.h
	if r.Method != callLayer && r.Method != callAdopted && r.Method != callKeep { // the others bring none
		wire.CloseAll(r.FDs)
	}
	switch r.Method {
	case callJob:
		d.job.points().Pass("job")
		if !d.job.Detach && len(d.job.Reswap) == 0 {
			return d.job, nil, nil
		}
		fds, err := dupAll(h.backing, h.mount, h.bottom, h.peer) // the first alone, of one that is off
		return d.job, fds, err
	case callLayer:
		return nil, nil, d.layer(r)
	case callAdopted:
		var handles []uint64
		if err := r.Decode(&handles); err != nil || len(handles) != len(r.FDs) {
			wire.CloseAll(r.FDs)
			return nil, nil, errors.Join(fmt.Errorf("adopted: %d handles, %d descriptors", len(handles), len(r.FDs)), err)
		}
		d.k.mu.Lock()
		defer d.k.mu.Unlock()
		for i, fd := range r.FDs {
			h.adopt(handles[i], fd)
		}
		d.job.points().Pass("adopted")
		return nil, nil, nil
	case callRemains:
		d.k.mu.Lock()
		defer d.k.mu.Unlock()
		if h.remains == nil {
			return nil, nil, fmt.Errorf("keeper: graft %s has no dead server", h.ID)
		}
		h.lent = true
		return remainsAnswer{Keeper: os.Getpid(), Descriptions: h.descriptions(), Objects: h.remains.objects}, nil, nil
	case callKeep:
		d.kept = append(d.kept, r.FDs...)
		return r.FDs, nil, nil
	case callOwners:
		var from int
		if err := r.Decode(&from); err != nil {
			return nil, nil, err
		}
		d.k.mu.Lock()
		defer d.k.mu.Unlock()
		if h.remains == nil {
			return nil, nil, nil
		}
		owners := page(h.remains.owners, from)
		var fds []int
		for _, o := range owners {
			fds = append(fds, o.file)
		}
		fds, err := dupAll(fds...)
		return owners, fds, err
	case callResult:
		var res result
		if err := r.Decode(&res); err != nil {
			return nil, nil, err
		}
		d.job.points().Pass("result")
		d.result = &res
		return nil, nil, nil
	default:
		return nil, nil, fmt.Errorf("keeper: unknown call %q of a swapper", r.Method)
	}
}

// page is what of a list goes into one answer.
func page[T any](all []T, from int) []T {
	if from < 0 || from >= len(all) {
		return nil
	}
	return all[from:min(len(all), from+batch)]
}

// layer takes a new layer's descriptors and has the server serve it.
func (d *deskOfSwapper) layer(r *wire.Request) error {
	h := d.h
	var info graft.LayerInfo
	if err := r.Decode(&info); err != nil || len(r.FDs) < 3 {
		wire.CloseAll(r.FDs)
		return errors.Join(fmt.Errorf("layer: %d descriptors", len(r.FDs)), err)
	}
	l, err := layerOf(info, r.FDs[1:])
	if err != nil {
		wire.CloseAll(r.FDs)
		return err
	}
	d.k.mu.Lock()
	h.device, h.backing, h.mount, h.bottom, h.peer, h.info = r.FDs[0], l.Backing, l.Mount, l.Bottom, l.PeerGroup, info
	d.k.mu.Unlock()
	atGraft.Pass("layer")
	if err := d.server.call(callServe, serveCall{Layer: h.ID, Info: h.info, Target: d.k.target, Place: d.k.place}, nil, r.FDs...); err != nil {
		return err
	}
	d.k.mu.Lock()
	shared := d.server.shared
	d.k.mu.Unlock()
	if !shared {
		d.k.shareEstate(d.server)
	}
	atGraft.Pass("served")
	// The layer knows its rules before a file is opened on it, so that none is opened in a way that they could not reach.
	err = d.server.call(callRules, rulesCall{Layer: h.ID, Rules: h.request.Rules, Coming: true}, nil)
	atGraft.Pass("expected")
	return err
}

// dupAll duplicates the descriptors that are there, for an answer that closes what it sent.
func dupAll(fds ...int) ([]int, error) {
	var out []int
	for _, fd := range fds {
		if fd < 0 {
			continue
		}
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			wire.CloseAll(out)
			return nil, fmt.Errorf("duplicate a descriptor: %w", err)
		}
		out = append(out, d)
	}
	return out, nil
}
