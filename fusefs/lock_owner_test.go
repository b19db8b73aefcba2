package fusefs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// owner is a thread with a descriptor table of its own, which is what owns POSIX locks.
type owner struct {
	tid  int
	work chan func()
	gone chan struct{}
}

func newOwner(t testing.TB) *owner {
	o := &owner{work: make(chan func()), gone: make(chan struct{})}
	ready := make(chan struct{})
	go func() {
		defer close(o.gone)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_FILES); err != nil {
			t.Error(err)
		}
		closeFiles()
		o.tid = unix.Gettid()
		close(ready)
		for f := range o.work {
			f()
		}
	}()
	<-ready
	t.Cleanup(o.end)
	return o
}

// closeFiles closes the files of the thread's own table, which is a copy: they would
// stay open for as long as the thread lives. The runtime's epoll descriptor and pipes have to stay.
func closeFiles() {
	dir := fmt.Sprintf("/proc/self/task/%d/fd/", unix.Gettid())
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		to, err := os.Readlink(dir + e.Name())
		if err != nil || !strings.HasPrefix(to, os.TempDir()+"/Test") {
			continue // the descriptor that listed them, or none of the tests'
		}
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			_ = unix.Close(fd) // only a copy
		}
	}
}

// end ends the thread, as a process ends.
func (o *owner) end() {
	if o.work != nil {
		close(o.work)
		o.work = nil
	}
	<-o.gone
}

// do runs f on the thread.
func (o *owner) do(f func()) {
	done := make(chan struct{})
	o.work <- func() { f(); close(done) }
	<-done
}

// begin runs f on the thread and returns once the thread waits in a lock call.
func (o *owner) begin(t testing.TB, f func() error) chan error {
	t.Helper()
	result := make(chan error, 1)
	o.work <- func() { result <- f() }
	waitFor(t, "the wait for a lock", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", o.tid))
		return len(result) > 0 || strings.HasPrefix(string(b), itoa(unix.SYS_FCNTL)+" ") || strings.HasPrefix(string(b), itoa(unix.SYS_FLOCK)+" ")
	})
	time.Sleep(50 * time.Millisecond) // for the request to have reached the server, which nothing shows
	return result
}

func (o *owner) open(t testing.TB, p string) (fd int) {
	o.do(func() {
		var err error
		if fd, err = unix.Open(p, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			t.Error(err)
		}
	})
	return fd
}

func lock(fd, cmd int, typ int16, start, size int64) error {
	return unix.FcntlFlock(uintptr(fd), cmd, &unix.Flock_t{Type: typ, Start: start, Len: size})
}

// Every lock call of two processes, and what a third one is told of it.
func TestSameRecordLocks(t *testing.T) {
	type step struct {
		who         int
		cmd         int
		typ         int16
		start, size int64
	}
	const r, w, u = unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK
	steps := []step{
		{0, unix.F_SETLK, w, 0, 100}, {1, unix.F_SETLK, w, 50, 10}, {1, unix.F_SETLK, r, 99, 1}, {1, unix.F_SETLK, r, 100, 10}, {0, unix.F_SETLK, w, 100, 1},
		{0, unix.F_SETLK, r, 100, 1}, {0, unix.F_SETLK, r, 20, 10}, {1, unix.F_SETLK, r, 20, 10}, {0, unix.F_SETLK, w, 20, 10}, {0, unix.F_SETLK, u, 40, 5},
		{1, unix.F_SETLK, w, 40, 5}, {1, unix.F_OFD_SETLK, w, 42, 1}, {1, unix.F_SETLK, u, 42, 1}, {1, unix.F_OFD_SETLK, w, 42, 1}, {1, unix.F_SETLK, w, 42, 1},
		{0, unix.F_SETLK, u, 0, 0}, {0, unix.F_OFD_SETLK, r, 0, 0}, {0, unix.F_OFD_SETLK, r, 200, 0}, {0, unix.F_SETLK, r, 210, 0}, {1, unix.F_SETLK, r, 300, 0},
		{0, unix.F_SETLK, w, 400, 1}, {0, unix.F_OFD_SETLK, w, 400, 1}, {1, unix.F_SETLK, u, 0, 0}, {0, unix.F_SETLK, w, 400, 1}, {0, unix.F_OFD_SETLK, u, 0, 0},
		{0, unix.F_SETLK, w, 400, 1}, {0, unix.F_SETLK, 7, 0, 1}, {0, unix.F_SETLK, w, -1, 1}, {0, unix.F_SETLK, w, 10, -5}, {0, unix.F_SETLK, w, 10, -11},
		{0, unix.F_SETLK, r, 1<<63 - 2, 1}, {0, unix.F_SETLK, r, 1<<63 - 2, 5}, {1, unix.F_SETLKW, r, 1 << 40, 5},
	}
	both(t, func(s *side) {
		s.make("f", "content", 0o644)
		who := []*owner{newOwner(s), newOwner(s), newOwner(s)}
		var fds []int
		for _, o := range who {
			fds = append(fds, o.open(s, s.path("f")))
		}
		for _, c := range steps {
			who[c.who].do(func() { s.say("%v: %s", c, errnoText(lock(fds[c.who], c.cmd, c.typ, c.start, c.size))) })
			for _, at := range []int64{0, 22, 42, 60, 99, 105, 250, 400} {
				who[2].do(func() {
					l := unix.Flock_t{Type: w, Start: at, Len: 1}
					err := unix.FcntlFlock(uintptr(fds[2]), unix.F_GETLK, &l)
					// FUSE has no way to say the -1 that stands for the owner of an OFD lock.
					s.say("  at %d: type %d from %d for %d by us %v %s", at, l.Type, l.Start, l.Len, l.Pid == int32(os.Getpid()), errnoText(err))
				})
			}
		}
		// POSIX locks go with the close of any descriptor of the file, OFD locks with the last of theirs.
		who[0].do(func() {
			s.say("posix: %s", errnoText(lock(fds[0], unix.F_SETLK, w, 0, 1)))
			s.say("ofd: %s", errnoText(lock(fds[0], unix.F_OFD_SETLK, w, 1000, 1)))
			d, err := unix.Dup(fds[0])
			must(s, err)
			must(s, unix.Close(d))
		})
		who[1].do(func() {
			s.say("after a close: posix %s, ofd %s", errnoText(lock(fds[1], unix.F_SETLK, w, 0, 1)), errnoText(lock(fds[1], unix.F_SETLK, w, 1000, 1)))
		})
		who[0].do(func() { must(s, unix.Close(fds[0])) })
		waitFor(s, "the OFD lock to go", func() (free bool) {
			who[1].do(func() { free = lock(fds[1], unix.F_SETLK, w, 1000, 1) == nil })
			return free
		})
		// and with the end of the process
		who[1].end()
		waitFor(s, "the locks of a process that ended to go", func() (free bool) {
			who[2].do(func() { free = lock(fds[2], unix.F_SETLK, w, 0, 0) == nil })
			return free
		})
		for _, o := range who {
			o.end()
		}
	})
}

// Processes that wait for each other are told so, as below.
func TestSameDeadlocks(t *testing.T) {
	for n := 2; n <= 4; n++ {
		t.Run(itoa(n), func(t *testing.T) {
			both(t, func(s *side) {
				s.make("f", "content", 0o644)
				s.make("g", "content", 0o644)
				var who []*owner
				var fds []int
				for i := range n { // each holds a byte, of two files in turn
					o := newOwner(s)
					who, fds = append(who, o), append(fds, o.open(s, s.path([]string{"f", "g"}[i%2])))
					o.do(func() { must(s, lock(fds[i], unix.F_SETLK, unix.F_WRLCK, int64(i), 1)) })
				}
				// and waits for the next one's
				ask := func(i int) func() error {
					next := (i + 1) % n
					fd := who[i].open(s, s.path([]string{"f", "g"}[next%2]))
					return func() error { return lock(fd, unix.F_SETLKW, unix.F_WRLCK, int64(next), 1) }
				}
				var waits []chan error
				for i := range n - 1 {
					waits = append(waits, who[i].begin(s, ask(i)))
				}
				last := ask(n - 1)
				who[n-1].do(func() { s.say("the last of %d: %s", n, errnoText(last())) })
				// who was refused gives way
				who[n-1].end()
				for i := n - 2; i >= 0; i-- {
					s.say("%d: %s", i, errnoText(within2(s, waits[i])))
					who[i].end()
				}
			})
		})
	}
}

func within2(t testing.TB, c chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("still waiting")
		return nil
	}
}

// A wait ends when a signal comes, takes its turn when the lock is free, and leaves nothing.
func TestSameLockWaits(t *testing.T) {
	kinds := map[string]struct{ take, wait, give func(fd int) error }{
		"posix": {
			func(fd int) error { return lock(fd, unix.F_SETLK, unix.F_WRLCK, 0, 0) },
			func(fd int) error { return lock(fd, unix.F_SETLKW, unix.F_WRLCK, 5, 1) },
			func(fd int) error { return lock(fd, unix.F_SETLK, unix.F_UNLCK, 0, 0) },
		},
		"ofd": {
			func(fd int) error { return lock(fd, unix.F_OFD_SETLK, unix.F_WRLCK, 0, 0) },
			func(fd int) error { return lock(fd, unix.F_OFD_SETLKW, unix.F_RDLCK, 5, 1) },
			func(fd int) error { return lock(fd, unix.F_OFD_SETLK, unix.F_UNLCK, 0, 0) },
		},
		"flock": {
			func(fd int) error { return unix.Flock(fd, unix.LOCK_EX) },
			func(fd int) error { return unix.Flock(fd, unix.LOCK_SH) },
			func(fd int) error { return unix.Flock(fd, unix.LOCK_UN) },
		},
	}
	const wake = 62 // interrupts calls in this process, see interruptible
	for _, kind := range sorted(kinds) {
		k := kinds[kind]
		t.Run(kind, func(t *testing.T) {
			both(t, func(s *side) {
				s.make("f", "content", 0o644)
				held, waits, third := newOwner(s), newOwner(s), newOwner(s)
				a, b, c := held.open(s, s.path("f")), waits.open(s, s.path("f")), third.open(s, s.path("f"))
				held.do(func() { _ = s.did("take", k.take(a)) })
				for i := range 3 {
					result := waits.begin(s, func() error { return k.wait(b) })
					third.do(func() { s.say("refused: %s", errnoText(nonblocking(kind, c))) })
					if !s.plain { // the handler was set by a wait on the layer
						must(s, unix.Tgkill(os.Getpid(), waits.tid, wake))
						if err := within2(s, result); err != unix.EINTR {
							s.Errorf("wait %d after a signal: %v", i, err)
						}
					} else {
						held.do(func() { must(s, k.give(a)) })
						must(s, within2(s, result))
						waits.do(func() { must(s, k.give(b)) })
						held.do(func() { must(s, k.take(a)) })
					}
				}
				result := waits.begin(s, func() error { return k.wait(b) })
				held.do(func() { _ = s.did("give", k.give(a)) })
				s.say("free: %s", errnoText(within2(s, result)))
				third.do(func() { s.say("then: %s", errnoText(nonblocking(kind, c))) })
				waits.do(func() { must(s, unix.Close(b)) })
				waitFor(s, "the lock to go with its file", func() (free bool) {
					third.do(func() { free = nonblocking(kind, c) == nil })
					return free
				})
				for _, o := range []*owner{held, waits, third} {
					o.end()
				}
			})
		})
	}
}

func nonblocking(kind string, fd int) error {
	switch kind {
	case "posix":
		return lock(fd, unix.F_SETLK, unix.F_WRLCK, 0, 0)
	case "ofd":
		return lock(fd, unix.F_OFD_SETLK, unix.F_WRLCK, 0, 0)
	}
	return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
}

// An OFD lock taken through the layer is one of the description below, which is handed back in the end.
func TestOFDLockIsOfTheDescription(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "content")
	fd := b.open("f", unix.O_RDWR)
	must(t, ofdlk(fd, unix.F_WRLCK, 3, 4))
	must(t, setlk(fd, unix.F_WRLCK, 100, 1))
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	if got := b.PosixLocks(os.Getpid(), os.Getpid(), st.Ino); len(got) != 1 || got[0].Start != 100 {
		t.Errorf("POSIX locks: %+v", got)
	}
	info := ""
	list, _ := filepath.Glob("/proc/self/fdinfo/*")
	for _, f := range list {
		if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), "OFDLCK") && strings.Contains(string(text), " 3 6") {
			info = string(text)
		}
	}
	if info == "" {
		t.Error("no description below holds the lock")
	}
}

// An aborted connection lets go of who waits for locks held elsewhere, and many waits leave no descriptor.
func TestAbortEndsLockWaits(t *testing.T) {
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(list)
	}
	b := over(t, setup{})
	b.write("f", "content")
	below := b.below("f", unix.O_RDWR)
	must(t, ofdlk(below, unix.F_WRLCK, 0, 0))
	must(t, unix.Flock(below, unix.LOCK_EX))
	fd := b.open("f", unix.O_RDWR)
	before := count()
	var results []chan error
	for _, wait := range []func() error{
		func() error { return lock(fd, unix.F_SETLKW, unix.F_WRLCK, 0, 1) },
		func() error { return lock(fd, unix.F_SETLKW, unix.F_RDLCK, 5, 1) },
		func() error { return lock(fd, unix.F_OFD_SETLKW, unix.F_WRLCK, 0, 1) },
		func() error { return unix.Flock(fd, unix.LOCK_SH) },
	} {
		for range 5 {
			_, c := inThread(wait)
			results = append(results, c)
		}
	}
	waitFor(t, "all to wait below", func() bool {
		locks, err := os.ReadFile("/proc/locks")
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Stat(b.under("f"), &st))
		waiting := 0
		for _, line := range strings.Split(string(locks), "\n") {
			if strings.Contains(line, "->") && strings.Contains(line, fmt.Sprintf(":%d ", st.Ino)) {
				waiting++
			}
		}
		return waiting == len(results)
	})
	if n := count(); n > before+1 { // one owner of POSIX locks
		t.Errorf("%d descriptors more for %d waits of one process", n-before, len(results))
	}
	must(t, unix.Unmount(b.mnt, unix.MNT_FORCE|unix.MNT_DETACH))
	for _, c := range results {
		if err := within2(t, c); err == nil {
			t.Error("a wait on an aborted connection succeeded")
		}
	}
	ended := make(chan error, 1)
	go func() { b.Wait(); ended <- nil }()
	_ = within2(t, ended)
}
