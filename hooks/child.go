package hooks

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/faultgraft/faultgraft/hooks/wrapper"
	"golang.org/x/sys/unix"
)

// forwarded are the signals that a runtime may get from who called it.
var forwarded = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGWINCH,
}

// runRuntime runs the real runtime as a child to its end and returns its exit status,
// 128 plus the signal's number for one that a signal ended. The child has this
// process's descriptors, at their numbers, and gets the signals that come
// meanwhile; interrupted then says whether one came that asks for an end. It is
// killed with this process, as the shim has it for its runtime (PR_SET_PDEATHSIG).
func runRuntime(inv *wrapper.Invocation) (status int, interrupted bool, err error) {
	real, err := inv.FindReal()
	if err != nil {
		return 0, false, err
	}
	// The parent-death signal comes when the thread ends that forked: prctl(2).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 16)
	for _, s := range forwarded {
		if !signal.Ignored(s) { // it stays ignored in the child
			signal.Notify(signals, s)
		}
	}
	defer signal.Stop(signals)
	// os/exec would set the descriptors to blocking mode. All others that are not
	// close-on-exec are inherited: the console socket, those of --preserve-fds.
	pid, err := syscall.ForkExec(real, append([]string{real}, inv.Args...), &syscall.ProcAttr{
		Env: wrapper.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 0, false, fmt.Errorf("run the real runtime %s: %w", real, err)
	}
	stop, stopped := make(chan struct{}), make(chan bool, 1)
	go func() { stopped <- forward(pid, signals, stop) }()
	// The PID is not given back before the last signal was sent.
	err = retry(func() error { return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) })
	close(stop)
	interrupted = <-stopped
	var ws syscall.WaitStatus
	if err == nil {
		err = retry(func() error {
			_, err := syscall.Wait4(pid, &ws, 0, nil)
			return err
		})
	}
	switch {
	case err != nil:
		return 0, interrupted, fmt.Errorf("wait for the real runtime %s: %w", real, err)
	case ws.Signaled():
		return 128 + int(ws.Signal()), interrupted, nil
	}
	return ws.ExitStatus(), interrupted, nil
}

func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// forward sends on what comes until stop is closed.
func forward(pid int, signals <-chan os.Signal, stop <-chan struct{}) (interrupted bool) {
	for {
		select {
		case <-stop:
			return interrupted
		case s := <-signals:
			n := s.(syscall.Signal)
			_ = syscall.Kill(pid, n) // it may have ended
			interrupted = interrupted || n == syscall.SIGTERM || n == syscall.SIGINT || n == syscall.SIGHUP || n == syscall.SIGQUIT
		}
	}
}
