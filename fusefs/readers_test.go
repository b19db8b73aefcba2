package fusefs_test

import (
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A request for which the file system below blocks, which nobody can tell
// beforehand, is waited for by nobody else: here opens of files that a lease
// keeps open(2) waiting for.
func TestBlockedRequestsDelayNobody(t *testing.T) {
	b := over(t, setup{})
	const n = 5 // more than there are readers at first
	var leases [n]int
	for i := range leases {
		name := string(rune('a' + i))
		b.write(name, "data")
		fd, err := unix.Open(b.under(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		leases[i] = fd
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETSIG, int(unix.SIGURG)); err != nil { // the default, SIGIO, ends the process
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
			t.Skip("no leases here: ", err)
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	opened := 0
	for i := range leases {
		wg.Go(func() {
			fd, err := unix.Open(b.path(string(rune('a'+i))), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			_ = unix.Close(fd) // nothing was written
			mu.Lock()
			opened++
			mu.Unlock()
		})
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return opened }
	for _, fd := range leases { // being broken: the layer is in open(2)
		eventually(t, "all opens wait", func() bool {
			typ, err := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
			return err == nil && typ != unix.F_RDLCK
		})
	}
	done := make(chan error)
	go func() {
		for range 200 {
			var st unix.Stat_t
			if err := unix.Stat(b.path("missing"), &st); err != unix.ENOENT {
				done <- err
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(20 * time.Second): // /proc/sys/fs/lease-break-time is 45 s
		t.Error("other requests wait for those that are blocked")
	}
	if n := count(); n != 0 {
		t.Errorf("%d opens did not wait for their lease", n)
	}
	for _, fd := range leases {
		must(t, unix.Close(fd))
	}
	wg.Wait()
}

// Requests of many threads at once are each answered, and with their own answer.
func TestManyThreads(t *testing.T) {
	b := over(t, setup{direct: true})
	var wg sync.WaitGroup
	for i := range 16 {
		name := string(rune('a' + i))
		b.write(name, name)
		wg.Go(func() {
			buf := make([]byte, 1)
			for range 300 {
				fd, err := unix.Open(b.path(name), unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Error(err)
					return
				}
				if n, err := unix.Pread(fd, buf, 0); n != 1 || err != nil || string(buf) != name {
					t.Errorf("%s: %q %d %v", name, buf, n, err)
				}
				if n, err := unix.Pwrite(fd, buf, 0); n != 1 || err != nil {
					t.Errorf("%s: %d %v", name, n, err)
				}
				_ = unix.Close(fd) // looked at above
			}
		})
	}
	wg.Wait()
}
