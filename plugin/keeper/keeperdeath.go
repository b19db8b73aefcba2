package keeper

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/holder"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// What a server does when its keeper has died: it ends the faults, and has another keeper take the layers off.

// closeAfter closes the connection with a keeper that is killed and does not come to its end: where a file system does not answer the
// close of one of its files, its sockets are not closed either (exit_files comes before exit_task_work in do_exit, kernel/exit.c, and a
// last fput is work of the task; Linux 6.18), and nothing can be polled for. The keeper, a parent or child of this process, is there when it is called. over ends it.
func closeAfter(over <-chan struct{}, keeper int, conn *wire.Conn) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	begun, _ := graft.ReadStat(keeper) // if it has ended already, it is found so below
	for {
		select {
		case <-over:
			return
		case <-look.C:
		}
		if s, err := graft.ReadStat(keeper); errors.Is(err, os.ErrNotExist) || err == nil && (s.Ending() || s.StartTime != begun.StartTime) {
			_ = conn.Close()
			return
		}
	}
}

// awaitSwappers waits until no swapper of the keeper that has died is at work. It
// notices at its next step and undoes what it began; one that does not come to
// that is killed, and the target's threads restore themselves.
func (s *server) awaitSwappers() {
	s.mu.Lock()
	waiting := maps.Clone(s.swappers)
	s.mu.Unlock()
	for pid, gone := range waiting {
		select {
		case <-gone:
		case <-time.After(swapperGrace):
			s.o.Logger.Warn("a swapper whose keeper has died does not end; it is killed", "pid", pid)
			if p, _ := openJob(pid, "swap"); p != nil { // else it has ended just now
				_, _ = p.kill(swapperGrace) // one that does not end does nothing more either
				p.close()
			}
			select {
			case <-gone:
			case <-time.After(swapperGrace):
			}
		}
	}
}

// abandon has the layers of a keeper that has died taken off, and serves them until its successor ends.
func (s *server) abandon(orphans []*servedLayer) error {
	for _, l := range orphans {
		if err := l.layer.SetRules(nil, time.Now()); err != nil {
			s.o.Logger.Error("stop the faults", "graft", l.call.Layer, "err", err)
		}
	}
	s.awaitSwappers()
	return s.replaceKeeper(orphans)
}

// legacy is what another keeper is to take off.
type legacy struct {
	layers []*servedLayer
	asked  bool // it has asked for it
	taken  bool // it has all of it
}

// errNotTaken: keepers that this server starts cannot take its layers over, and whoever follows it can find them without it.
var errNotTaken = errors.New("server: no keeper can take its layers over: it ends, and its holder has another one do that")

// maxNotTaken is how many keepers may fail so in a row.
const maxNotTaken = 3

// leave has keepers take the layers off that are on, one after another where they die. err is why the first one is no more.
//
// It goes on as long as it takes: the target works meanwhile, without faults, and would see ENOTCONN without this server. Where no
// process can be started at all, or none can have the state directory, the holder can do no better, and tries a few times only. What
// it can do without is the handing over: with that failing, the layers are left to it.
func (s *server) leave(err error) error {
	notTaken := 0
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		orphans, _ := s.split()
		if len(orphans) == 0 {
			return err
		}
		s.o.Logger.Warn("the keeper has died: no more faults, its layers are taken off", "layers", len(orphans), "err", err)
		if err = s.abandon(orphans); err == nil {
			continue
		}
		if notTaken++; !errors.Is(err, errNotTaken) {
			notTaken = 0
		}
		if notTaken >= maxNotTaken && s.followable() {
			return err
		}
		time.Sleep(wait)
	}
}

// followable: the holder would have another process serve all layers of this one.
func (s *server) followable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.succession
	if p == nil || p.holder == nil || !p.holder.Alive() || p.generation >= holder.LastGeneration {
		return false
	}
	left, err := p.file.read()
	if err != nil {
		return false
	}
	for id, l := range s.layers {
		if l.state == nil || left.layer(id) == nil {
			return false
		}
	}
	return true
}

// replaceKeeper starts a keeper that takes layers off, and answers it until it ends.
func (s *server) replaceKeeper(orphans []*servedLayer) error {
	own, theirs, err := wire.Pair()
	if err != nil {
		return err
	}
	defer func() { _ = own.Close() }()
	heir := &legacy{layers: orphans}
	s.mu.Lock()
	s.legacy = heir
	s.mu.Unlock()
	cmd := exec.Command("/proc/self/exe", "keeper", "--state-dir", s.o.StateDir, "--inherit", keyOf(orphans[0].call.Place)) // for who looks at processes
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = theirs.Close() // the process has its own
	if err != nil {
		return fmt.Errorf("server: start another keeper: %w", err)
	}
	s.newGuard(cmd.Process.Pid)
	over := make(chan struct{})
	defer close(over)
	go closeAfter(over, cmd.Process.Pid, own)
	err = own.Serve(s.handle)
	werr := cmd.Wait()
	if err == nil {
		err = werr
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if exit := (*exec.ExitError)(nil); errors.As(werr, &exit) && exit.Exited() && heir.asked && !heir.taken { // not one that was killed
		return fmt.Errorf("%w (%w)", errNotTaken, err)
	}
	return err
}
