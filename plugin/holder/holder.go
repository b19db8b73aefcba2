// Package holder makes a process that shares the descriptor table of the one that
// makes it, and keeps what is open in it when that one dies.
//
// All that the kernel knows of a FUSE server is its descriptor table: /dev/fuse,
// what it has open below the layer, the locks that depend on these. clone(2) with
// CLONE_FILES and without CLONE_VM gives a process that has the table in common,
// for good: what the server opens later, the holder has too, at no cost, and what it
// closes is closed. exec(2) would end that, so the holder goes on in a copy of the
// server's memory, in code that uses system calls only and nothing of the Go runtime,
// of which it has one thread (child.go).
package holder

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Name is what /proc/PID/comm and cmdline say. It does not contain the name of the
// program, so that `pkill -9 faultgraft` spares the holder.
const Name = "fgraft-holder"

// Claim is the right to follow a process that died: a byte in a pipe, of which there
// is one. Who has read it is the successor.
type Claim struct{ Read, Write int }

// Options say what the holder watches and what it does. Its numbers are those of
// descriptors of this process, which the holder has in common with it.
type Options struct {
	// Guard is a pidfd of the process that sees to it if this one dies. It may be replaced (dup3(2)) at any time.
	Guard int
	// Claim is taken by the holder when this process and the guard have both died, if it is of this generation still, and put
	// back with the next one for the successor. If it is not, somebody else is at it: the holder stays
	// for them, Patience long, and starts nothing.
	Claim      Claim
	Generation byte
	Patience   time.Duration
	// Successor is the path of the program that is started then, with Args and Env. The first '@' in the last
	// argument stands for the generation of the claim that it has ('1' to '9').
	Successor string
	Args      []string
	Env       []string
}

// FirstGeneration is what is in the claim's pipe until a successor was started. With the last one no holder starts another.
const (
	FirstGeneration byte = '1'
	LastGeneration  byte = '9'
)

// NewClaim makes the pipe, with the claim in it.
func NewClaim() (Claim, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return Claim{}, fmt.Errorf("pipe: %w", err)
	}
	if _, err := unix.Write(p[1], []byte{FirstGeneration}); err != nil {
		_, _ = unix.Close(p[0]), unix.Close(p[1])
		return Claim{}, fmt.Errorf("write to a pipe: %w", err)
	}
	return Claim{Read: p[0], Write: p[1]}, nil
}

// ErrTaken says that somebody else has followed the process that died.
var ErrTaken = errors.New("another process has taken its place")

// Take takes the claim, if it is of that generation.
func (c Claim) Take(generation byte) error {
	var b [1]byte
	n, err := unix.Read(c.Read, b[:])
	switch {
	case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
		return ErrTaken
	case err != nil:
		return fmt.Errorf("claim: %w", err)
	case b[0] == generation:
		return nil
	}
	if _, err := unix.Write(c.Write, b[:]); err != nil { // it is a later one's
		return fmt.Errorf("claim: %w", err)
	}
	return ErrTaken
}

// Return puts the claim of a generation there if none comes within patience: who had it has died with it.
func (c Claim) Return(generation byte, patience time.Duration) error {
	for end := time.Now().Add(patience); ; {
		p := []unix.PollFd{{Fd: int32(c.Read), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(max(0, time.Until(end).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("claim: %w", err)
		case n > 0:
			return nil // it is there
		}
		break
	}
	if _, err := unix.Write(c.Write, []byte{generation}); err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	return nil
}

// Holder is a process that shares a descriptor table.
type Holder struct {
	PID   int
	pidfd int
	self  int // the pidfd of this process that its own holder watches; -1 in another process

	end    sync.Once
	failed error
}

// Start makes a holder of this process.
func Start(o Options) (*Holder, error) {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("holder: pidfd of this process: %w", err)
	}
	w, free, err := newWill(o, self)
	if err != nil {
		_ = unix.Close(self)
		return nil, fmt.Errorf("holder: %w", err)
	}
	defer free()
	pid, err := clone(w)
	if err != nil {
		_ = unix.Close(self)
		return nil, fmt.Errorf("holder: clone: %w", err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // not reaped yet: it is still this one
		var s unix.WaitStatus
		_, _ = unix.Wait4(pid, &s, 0, nil)
		return nil, fmt.Errorf("holder: pidfd of it: %w", err)
	}
	h := &Holder{PID: pid, pidfd: pidfd, self: self}
	// What kills for lack of memory is to spare it. Without CAP_SYS_RESOURCE that cannot be had (proc_pid_oom_score_adj(5)); then it
	// is as likely to be killed as any process of its size.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("-1000"), 0)
	return h, nil
}

// clone makes the child, in which it does not return.
func clone(w *will) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// It has its name from its first moment on: clone(2) takes that of the thread along.
	var own [16]byte
	if err := unix.Prctl(unix.PR_GET_NAME, uintptr(unsafe.Pointer(&own)), 0, 0, 0); err != nil {
		return 0, err
	}
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&w.name)), 0, 0, 0); err != nil {
		return 0, err
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&own)), 0, 0, 0) }() // fails for bad addresses only
	// The child must never run a signal handler of the Go runtime. It keeps this mask.
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return 0, err
	}
	pid, e := cloneSharingFiles(w)
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err != nil {
		return 0, err
	}
	if e != 0 {
		return 0, e
	}
	return int(pid), nil
}

// Open finds the holder of another process by its id.
func Open(pid int) (*Holder, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("holder %d: %w", pid, err)
	}
	h := &Holder{PID: pid, pidfd: pidfd, self: -1}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err == nil && string(comm) != Name+"\n" {
		err = fmt.Errorf("it is no holder but %q", comm)
	}
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("holder %d: %w", pid, err)
	}
	return h, nil
}

// Take gives this process's duplicate of what has the number fd in the shared table,
// the same open file description, close-on-exec (pidfd_getfd(2), Linux 5.6).
func (h *Holder) Take(fd int) (int, error) {
	got, err := unix.PidfdGetfd(h.pidfd, fd, 0)
	if err != nil {
		return -1, fmt.Errorf("descriptor %d of holder %d: %w", fd, h.PID, err)
	}
	return got, nil
}

// Alive reports whether the holder is there.
func (h *Holder) Alive() bool { return !h.Wait(0) }

// Wait waits that long for the end of the holder, and reports whether it has come.
func (h *Holder) Wait(d time.Duration) bool {
	ended, err := Ended(h.pidfd, d)
	return ended || err != nil
}

// End kills the holder and waits until it is gone: what nobody else has open is closed
// then. It is an error if that takes longer than deadline.
func (h *Holder) End(deadline time.Duration) error {
	h.end.Do(func() {
		ended, err := Kill(h.pidfd, deadline)
		if err != nil {
			h.failed = fmt.Errorf("end holder %d: %w", h.PID, err)
			return
		}
		if !ended {
			h.failed = fmt.Errorf("holder %d does not end within %v", h.PID, deadline)
			return
		}
		h.reap()
		if h.self >= 0 {
			_ = unix.Close(h.self)
		}
	})
	return h.failed
}

// reap takes the dead holder off the list of processes where that is ours to do: it
// is a child of whoever made it, and then of who adopts his orphans.
func (h *Holder) reap() {
	for {
		err := unix.Waitid(unix.P_PIDFD, h.pidfd, nil, unix.WEXITED, nil)
		if !errors.Is(err, unix.EINTR) {
			return // ECHILD: it is another's
		}
	}
}

// Close lets go of the holder, which goes on if End was not called.
func (h *Holder) Close() { _ = unix.Close(h.pidfd) }
