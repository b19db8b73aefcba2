package fusefs_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
)

func itoa(i int) string { return strconv.Itoa(i) }

func setlk(fd int, typ int16, start, size int64) error {
	return unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: size})
}

func ofdlk(fd int, typ int16, start, size int64) error {
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: size})
}

// POSIX locks through the layer exclude those who do not go through it, and go
// with the first close, as POSIX has it.
func TestPosixLocks(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDWR)
	must(t, setlk(fd, unix.F_WRLCK, 0, 100))
	must(t, setlk(fd, unix.F_UNLCK, 40, 20))
	must(t, setlk(fd, unix.F_RDLCK, 90, 0))
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	want := map[fusefs.Lock]bool{{Type: unix.F_WRLCK, Start: 0, Len: 40}: true, {Type: unix.F_WRLCK, Start: 60, Len: 30}: true, {Type: unix.F_RDLCK, Start: 90}: true}
	got := b.PosixLocks(os.Getpid(), os.Getpid(), st.Ino)
	for _, l := range got {
		if !want[l] {
			t.Errorf("lock %+v", l)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%+v", got)
	}
	if l := b.PosixLocks(1, 1, st.Ino); len(l) != 0 {
		t.Errorf("locks of another process: %+v", l)
	}
	below := b.below("f", unix.O_RDWR)
	if err := ofdlk(below, unix.F_WRLCK, 0, 10); err != unix.EAGAIN {
		t.Errorf("below the layer the range is free: %v", err)
	}
	must(t, ofdlk(below, unix.F_WRLCK, 45, 5))
	if err := setlk(fd, unix.F_WRLCK, 45, 5); err != unix.EAGAIN {
		t.Errorf("a lock below is not seen: %v", err)
	}
	// another owner on the layer
	other := b.open("f", unix.O_RDWR)
	if err := ofdlk(other, unix.F_WRLCK, 0, 1); err != unix.EAGAIN {
		t.Errorf("another owner: %v", err)
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 1}
	must(t, unix.FcntlFlock(uintptr(other), unix.F_OFD_GETLK, &l))
	if l.Type != unix.F_WRLCK || l.Start != 0 || l.Len != 40 {
		t.Errorf("getlk %+v", l)
	}
	// while one is held, closes go on as FLUSH: they are what ends it
	if b.EndFlushes() {
		t.Error("flushes were ended over a lock")
	}
	must(t, setlk(fd, unix.F_UNLCK, 0, 0))
	must(t, ofdlk(below, unix.F_WRLCK, 0, 40))
	must(t, ofdlk(below, unix.F_UNLCK, 0, 0))
	must(t, setlk(fd, unix.F_WRLCK, 0, 1))
	third := b.open("f", unix.O_RDONLY)
	must(t, unix.Close(third)) // closes "a" descriptor of the file
	must(t, ofdlk(below, unix.F_WRLCK, 0, 1))
}

// OFD locks of the layer go with the last close of their file, not with any close.
func TestOFDLocksGoWithTheirFile(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "")
	fd := b.open("f", unix.O_RDWR)
	below := b.below("f", unix.O_RDWR)
	must(t, ofdlk(fd, unix.F_WRLCK, 0, 0))
	third := b.open("f", unix.O_RDONLY)
	must(t, unix.Close(third))
	if err := ofdlk(below, unix.F_WRLCK, 0, 0); err != unix.EAGAIN {
		t.Errorf("gone with another file: %v", err)
	}
	must(t, unix.Close(fd))
	waitFor(t, "the lock to go", func() bool { return ofdlk(below, unix.F_WRLCK, 0, 0) == nil })
}

// A description that had an OFD lock when it was adopted keeps and releases it through the layer.
func TestAdoptedOFDLock(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "")
	orig := b.below("f", unix.O_RDWR)
	other := b.below("f", unix.O_RDWR)
	must(t, ofdlk(orig, unix.F_WRLCK, 0, 10))
	file, _ := b.adopt(orig, "f", unix.O_RDWR, fusefs.Adoption{})
	if err := ofdlk(other, unix.F_WRLCK, 0, 1); err != unix.EAGAIN {
		t.Errorf("lost by adoption: %v", err)
	}
	must(t, ofdlk(file, unix.F_UNLCK, 0, 5))
	must(t, ofdlk(other, unix.F_WRLCK, 0, 5))
	if err := ofdlk(other, unix.F_WRLCK, 5, 5); err != unix.EAGAIN {
		t.Errorf("the rest was unlocked, too: %v", err)
	}
}

// A wait for a lock ends when it is free, and can be interrupted.
func TestWaitingForLocks(t *testing.T) {
	for name, c := range map[string]struct {
		lock, unlock func(fd int) error
		wait         func(fd int) error
	}{
		"record": {
			lock:   func(fd int) error { return ofdlk(fd, unix.F_WRLCK, 0, 0) },
			unlock: func(fd int) error { return ofdlk(fd, unix.F_UNLCK, 0, 0) },
			wait: func(fd int) error {
				return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK})
			},
		},
		"flock": {
			lock:   func(fd int) error { return unix.Flock(fd, unix.LOCK_EX) },
			unlock: func(fd int) error { return unix.Flock(fd, unix.LOCK_UN) },
			wait:   func(fd int) error { return unix.Flock(fd, unix.LOCK_EX) },
		},
	} {
		for _, holder := range []string{"layer", "below"} {
			t.Run(name+" held on the "+holder, func(t *testing.T) {
				b := over(t, setup{})
				b.write("f", "")
				fd := b.open("f", unix.O_RDWR)
				held := b.open("f", unix.O_RDWR)
				if holder == "below" {
					held = b.below("f", unix.O_RDWR)
				}
				must(t, c.lock(held))
				b.rules("io latency=1ns op=setlk") // counts the requests
				asked := func(n uint64) func() bool { return func() bool { return b.Rules()[0].Fired >= n } }

				tid, result := inThread(func() error { return c.wait(fd) })
				waitFor(t, "the request", asked(1))
				select {
				case err := <-result:
					t.Fatal("did not wait: ", err)
				case <-time.After(50 * time.Millisecond):
				}
				// The kernel restarts the call after a signal whose handler asks for that, as Go's do: the request comes again.
				must(t, unix.Tgkill(os.Getpid(), tid, unix.SIGURG))
				waitFor(t, "the request after the signal", asked(2))
				must(t, c.unlock(held))
				if err := within(t, result); err != nil {
					t.Errorf("free: %v", err)
				}
			})
		}
	}
}
