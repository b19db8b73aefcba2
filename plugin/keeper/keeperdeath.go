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
	"github.com/faultgraft/faultgraft/plugin/wire"
	"golang.org/x/sys/unix"
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

// replaceKeeper starts a keeper that takes layers off, and answers it until it ends.
func (s *server) replaceKeeper(orphans []*servedLayer) error {
	own, theirs, err := wire.Pair()
	if err != nil {
		return err
	}
	defer func() { _ = own.Close() }()
	files := []*os.File{theirs}
	given := func() {
		for _, f := range files {
			_ = f.Close()
		}
		files = nil
	}
	defer given()
	var legacy inheritance
	for _, l := range orphans {
		legacy.Target, legacy.Place = l.call.Target, l.call.Place
		legacy.Layers = append(legacy.Layers, inheritedLayer{Graft: l.call.Layer, Info: l.call.Info, FDs: len(l.keep)})
		for _, fd := range l.keep {
			d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				return fmt.Errorf("server: %w", err)
			}
			files = append(files, os.NewFile(uintptr(d), "layer"))
		}
	}
	arg, err := legacy.encode()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "keeper", "--state-dir", s.o.StateDir, "--inherit", arg)
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("server: start another keeper: %w", err)
	}
	given()
	s.newGuard(cmd.Process.Pid)
	over := make(chan struct{})
	defer close(over)
	go closeAfter(over, cmd.Process.Pid, own)
	err = own.Serve(s.handle)
	werr := cmd.Wait()
	if err == nil {
		err = werr
	}
	return err
}
