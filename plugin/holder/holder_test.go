package holder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process is killed. What it had open, also what it opened when it had a holder
// already, is there as it was: the same descriptions, with offset and locks, of a file
// that has no name any more.
func TestDescriptorsOutliveTheirProcess(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			v := startVictim(t, os.Getpid())
			v.kill(sig)
			h, err := Open(v.holder)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			fd, err := h.Take(v.file)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(fd) }()
			b := make([]byte, 10)
			if n, err := unix.Read(fd, b); err != nil || string(b[:n]) != "456789" {
				t.Errorf("read %q, %v", b[:n], err)
			}
			other, err := h.Take(v.other)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(other) }()
			lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 2, Len: 3}
			if err := unix.FcntlFlock(uintptr(other), unix.F_OFD_SETLK, &lock); !errors.Is(err, unix.EAGAIN) {
				t.Errorf("the lock is not held any more: %v", err)
			}
			_ = unix.Close(fd)
			if err := h.End(time.Minute); err != nil {
				t.Fatal(err)
			}
			if err := unix.FcntlFlock(uintptr(other), unix.F_OFD_SETLK, &lock); err != nil {
				t.Errorf("the lock is still held when the holder has ended: %v", err)
			}
			if _, err := h.Take(v.file); err == nil {
				t.Error("a holder that has ended gives descriptors")
			}
		})
	}
}

// Signals that end a service do not end the holder, and those who kill by name do not find it.
func TestHolderIsHardToKill(t *testing.T) {
	v := startVictim(t, os.Getpid())
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGURG, syscall.SIGPROF, syscall.SIGQUIT} {
		if err := syscall.Kill(v.holder, sig); err != nil {
			t.Fatal(err)
		}
	}
	v.kill(syscall.SIGKILL)
	h, err := Open(v.holder)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if fd, err := h.Take(v.file); err != nil {
		t.Error(err)
	} else {
		_ = unix.Close(fd)
	}
	for _, f := range []string{"comm", "cmdline"} {
		eventually(t, "its name in "+f, func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", v.holder, f))
			return err == nil && strings.TrimRight(string(b), "\x00\n") == Name
		})
	}
	if err := h.End(time.Minute); err != nil {
		t.Error(err)
	}
}

// The process ends its holder itself, and goes on.
func TestEndOfAHolder(t *testing.T) {
	v := startVictim(t, os.Getpid())
	v.tell("end")
	if got := v.line(); got != "ended" {
		t.Fatal(got)
	}
	if err := syscall.Kill(v.holder, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("there is something left of the holder: %v", err)
	}
}

// Both the process and its guard are killed: a successor is started, which has the
// holder as its parent; and another when that is killed as well.
func TestSuccessor(t *testing.T) {
	g := guard(t)
	v := startVictim(t, g.Process.Pid)
	v.kill(syscall.SIGKILL)
	_, _ = g.Process.Kill(), g.Wait()
	for generation := byte('2'); generation < '4'; generation++ {
		pid := v.successor(generation)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(v.dir, "successor")); err != nil {
			t.Fatal(err)
		}
	}
	pid := v.successor('4')
	h, err := Open(v.holder)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var c Claim
	for of, fd := range map[*int]int{&c.Read: v.claimed.Read, &c.Write: v.claimed.Write} {
		if *of, err = h.Take(fd); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Close(*of) }()
	}
	if err := c.Take('2'); !errors.Is(err, ErrTaken) {
		t.Errorf("whoever was started by one that is dead has the claim: %v", err)
	}
	eventually(t, "the claim is back in its pipe", func() bool { return c.Take('4') == nil })
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !h.Wait(time.Minute) {
		t.Error("the holder is there still although its process was followed by another")
	}
}

// successor waits for one of that generation.
func (v *victim) successor(generation byte) (pid int) {
	v.t.Helper()
	var b []byte
	eventually(v.t, "a successor", func() (is bool) {
		var err error
		b, err = os.ReadFile(filepath.Join(v.dir, "successor"))
		return err == nil
	})
	var parent int
	var said string
	if _, err := fmt.Sscan(string(b), &pid, &parent, &said); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) }) // it sleeps for minutes: it is this one still, if it lives
	if parent != v.holder || said != string(generation) {
		v.t.Errorf("successor %q, holder %d, generation %c", b, v.holder, generation)
	}
	return pid
}

// The process dies, and its guard lives: nothing is started.
func TestNoSuccessorWhileTheGuardLives(t *testing.T) {
	g := guard(t)
	v := startVictim(t, g.Process.Pid)
	h, err := Open(v.holder)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	c, err := h.Take(v.claimed.Read)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(c) }()
	v.kill(syscall.SIGKILL)
	if err := (Claim{Read: c, Write: -1}).Take(FirstGeneration); err != nil {
		t.Fatal(err)
	}
	// Somebody has followed: the holder ends with the guard, and starts nothing.
	_, _ = g.Process.Kill(), g.Wait()
	if !h.Wait(time.Minute) {
		t.Error("the holder does not end")
	}
	if _, err := os.Stat(filepath.Join(v.dir, "successor")); err == nil {
		t.Error("a successor was started although the claim was taken")
	}
}

// A claim comes back that somebody has died with, and there is one at any time.
func TestReturnOfAClaim(t *testing.T) {
	c, err := NewClaim()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(c.Read), unix.Close(c.Write) }()
	for i, patience := range []time.Duration{0, time.Minute, time.Millisecond} {
		if i == 2 {
			if err := c.Take(FirstGeneration); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Return(FirstGeneration, patience); err != nil { // the first two find it there
			t.Fatal(err)
		}
	}
	if err := c.Take(FirstGeneration); err != nil {
		t.Errorf("it is away: %v", err)
	}
	if err := c.Take(FirstGeneration); !errors.Is(err, ErrTaken) {
		t.Errorf("it is there twice: %v", err)
	}
}

// Many holders in a process that is busy: each is there, each ends, and nothing of them is left.
func TestManyHolders(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	for range 2 {
		go func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = make([]byte, 1<<16)
					runtime.Gosched()
				}
			}
		}()
	}
	open := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	guard, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(guard) }()
	claim, err := NewClaim()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(claim.Read), unix.Close(claim.Write) }()
	before := open()
	for range 20 {
		h, err := Start(Options{Guard: guard, Claim: claim, Generation: FirstGeneration, Successor: "/bin/false", Args: []string{"false"}})
		if err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		if !h.Alive() {
			t.Fatal("it is not there")
		}
		if err := h.End(time.Minute); err != nil {
			t.Fatal(err)
		}
		h.Close()
		if err := syscall.Kill(h.PID, 0); !errors.Is(err, syscall.ESRCH) {
			t.Fatalf("there is something left of it: %v", err)
		}
	}
	if after := open(); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

// What is no holder is not taken for one.
func TestOpenOfAnother(t *testing.T) {
	if _, err := Open(os.Getpid()); err == nil {
		t.Error("no error")
	}
	if _, err := Start(Options{}); err == nil {
		t.Error("no error without a successor")
	}
	if _, err := Start(Options{Successor: "/bin/true", Args: []string{"a\x00b"}}); err == nil {
		t.Error("no error with a NUL in an argument")
	}
}
