package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"golang.org/x/sys/unix"
)

var (
	// noTakeover has no server follow a dead one: its layers are taken off.
	noTakeover = []string{"FAULTGRAFT_TEST_MAX_DEATHS=0"}
	// noResend has servers behave as on a kernel that cannot send requests again (before Linux 6.9).
	noResend = []string{"FAULTGRAFT_TEST_NO_RESEND=1"}
)

// kernels runs a test with this kernel as it is, and as if it could not send requests again.
func kernels(t *testing.T, run func(t *testing.T, env []string)) {
	t.Run("this_kernel", func(t *testing.T) { run(t, nil) })
	t.Run("without_resend", func(t *testing.T) { run(t, noResend) })
}

// replaced kills the server and waits until another has followed it, for the n-th time.
func (r *rig) replaced(sig syscall.Signal, n int) {
	r.t.Helper()
	r.oneServer()
	r.signal("server", sig)
	r.awaitTakeovers(n)
}

// oneServer waits until there is one: a server that has just been made has a twin for a moment, its holder.
func (r *rig) oneServer() {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); len(r.processes("server")) != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("servers: %v%s", r.processes("server"), r.logs())
		}
	}
}

func (r *rig) awaitTakeovers(n int) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		l := r.list()
		if len(l) > 0 && !slices.ContainsFunc(l, func(g keeper.Graft) bool { return g.Takeovers != n }) {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("after death %d of a server: %+v%s\n%+v", n, l, r.logs(), r.events())
		}
	}
}

// A server dies, by whatever: another serves on. The target sees no error, and everything is as it was: rules
// with their counters, what is open, also of files that have no name any more, positions, locks, maps.
func TestServerIsReplaced(t *testing.T) { kernels(t, serverIsReplaced) }

func serverIsReplaced(t *testing.T, env []string) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGABRT} { // Go panics with SIGABRT's exit
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			r := newRig(t)
			r.env = env
			p, gone := r.write("f", "0123456789"), r.write("gone", "unlinked but open")
			h := r.start()
			h.ok("open f %s rdwr", p)
			h.ok("lseek f 4")
			h.ok("mmap M f 10 shared")
			h.ok("chdir %s", r.data)
			before := h.snapshot()
			g := r.inject(h, r.data, "io error=EIO op=fsync times=3 ttl=5m")
			h.is("EIO", "fsync f")
			h.ok("open gone %s rdwr", gone)
			h.ok("unlink %s", gone)
			h.ok("open locked %s rdwr", p)
			h.ok("flock locked")
			h.ok("lseek gone 9")
			r.replaced(sig, 1)
			h.is("EIO", "fsync f")
			h.is("ok but open", "read gone 100")
			h.is("ok 0123", "peek M 0 4")
			if got := h.do("trylock %s", p); got == "ok" {
				t.Errorf("the lock is lost: %s", got)
			}
			h.ok("close locked")
			h.is("ok", "trylock %s", p)
			if l := r.list(); len(l) != 1 || l[0].State != keeper.StateActive || len(l[0].Rules) != 1 || l[0].Rules[0].Fired != 2 {
				t.Errorf("after the takeover: %+v", l)
			}
			h.is("EIO", "fsync f")
			h.is("ok", "fsync f") // three times in all
			if !slices.ContainsFunc(r.events(), func(e keeper.Event) bool {
				return e.Type == keeper.EventServer && strings.Contains(e.Message, "was replaced")
			}) {
				t.Error("the event log does not tell of it")
			}
			h.ok("close gone")
			r.recover(g)
			h.is("ok 456789", "read f 100")
			h.ok("lseek f 4")
			same(t, before, h.snapshot())
		})
	}
}

// Servers are killed one after another under load: no call fails, nothing is lost or done twice.
func TestServersAreReplacedUnderLoad(t *testing.T) { kernels(t, serversAreReplacedUnderLoad) }

func serversAreReplacedUnderLoad(t *testing.T, env []string) {
	r := newRig(t)
	r.env = append([]string{"FAULTGRAFT_TEST_MAX_DEATHS=1000"}, env...)
	h := r.start()
	h.ok("chdir %s", r.data)
	g := r.inject(h, r.data, "io latency=1ms op=fsync p=10% ttl=10m")
	stop := make(chan struct{})
	var all sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); all.Wait() })
	defer end()
	for i, work := range []func(dir string, stop <-chan struct{}) error{appends, moves, tempfiles, locks} {
		dir := filepath.Join(r.data, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			if err := work(dir, stop); err != nil {
				t.Error(err)
			}
		})
	}
	kills := 20
	for n := 1; n <= kills && !t.Failed(); n++ {
		r.replaced(syscall.SIGKILL, n)
	}
	end()
	r.recover(g)
	r.t.Logf("%d kills", kills)
}

// loop calls f with a number that rises until stop is closed.
func loop(stop <-chan struct{}, f func(n int) error) error {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := f(n); err != nil {
			return err
		}
	}
}

// appends writes a line after another, through a file that stays open and through one that is opened each time.
func appends(dir string, stop <-chan struct{}) error {
	name := filepath.Join(dir, "log")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	written := 0
	err = loop(stop, func(n int) error {
		to := f
		if n%2 == 1 {
			if to, err = os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0); err != nil {
				return err
			}
			defer func() { _ = to.Close() }()
		}
		written++
		_, err := fmt.Fprintf(to, "%d\n", n)
		return err
	})
	if err != nil {
		return err
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	lines := strings.Fields(string(b))
	for i, l := range lines {
		if l != fmt.Sprint(i) {
			return fmt.Errorf("line %d of %d is %q", i, len(lines), l)
		}
	}
	if len(lines) != written {
		return fmt.Errorf("%d lines of %d", len(lines), written)
	}
	return nil
}

// moves creates, links, renames and unlinks; each call has one right answer.
func moves(dir string, stop <-chan struct{}) error {
	return loop(stop, func(n int) error {
		a, b, c := filepath.Join(dir, fmt.Sprint("a", n%5)), filepath.Join(dir, fmt.Sprint("b", n%3)), filepath.Join(dir, "c")
		f, err := os.OpenFile(a, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(f, n)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		for _, step := range []func() error{
			func() error { return os.Link(a, c) },
			func() error { return os.Rename(a, b) },
			func() error { return os.Remove(c) },
			func() error { return os.Mkdir(c, 0o755) },
			func() error { return os.Symlink("b", a) },
			func() error { return os.Remove(a) },
			func() error { return os.Remove(c) },
		} {
			if err := step(); err != nil {
				return err
			}
		}
		got, err := os.ReadFile(b)
		if err == nil && string(got) != fmt.Sprint(n) {
			err = fmt.Errorf("%s: %q, not %d", b, got, n)
		}
		if err != nil {
			return err
		}
		return os.Remove(b)
	})
}

// tempfiles are files without a name, with positions.
func tempfiles(dir string, stop <-chan struct{}) error {
	return loop(stop, func(n int) error {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "tmpfile")
		defer func() { _ = f.Close() }()
		if _, err := fmt.Fprintf(f, "%010d", n); err != nil {
			return err
		}
		b := make([]byte, 10)
		if _, err := f.ReadAt(b, 0); err != nil || string(b) != fmt.Sprintf("%010d", n) {
			return fmt.Errorf("%q, %w", b, err)
		}
		return f.Sync()
	})
}

// locks are held over the deaths: whoever tries in between is refused.
func locks(dir string, stop <-chan struct{}) error {
	name := filepath.Join(dir, "locked")
	var held [2]*os.File
	for i := range held {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		held[i] = f
	}
	return loop(stop, func(n int) error {
		mine, theirs := held[n%2], held[(n+1)%2]
		lock := unix.Flock_t{Type: unix.F_WRLCK, Len: 10}
		if err := unix.FcntlFlock(mine.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			return fmt.Errorf("lock %d: %w", n, err)
		}
		if err := unix.FcntlFlock(theirs.Fd(), unix.F_OFD_SETLK, &lock); err != unix.EAGAIN {
			return fmt.Errorf("lock %d was taken twice: %w", n, err)
		}
		lock.Type = unix.F_UNLCK
		return unix.FcntlFlock(mine.Fd(), unix.F_OFD_SETLK, &lock)
	})
}

// Keeper and server are killed at once: the holder has another keeper take the layers off. The target sees no error.
func TestKeeperAndServerDieAtOnce(t *testing.T) {
	for name, env := range map[string][]string{"replaced": nil, "replaced without resend": noResend, "not replaced": noTakeover} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.env = env
			p := r.write("f", "0123456789")
			h := r.start()
			h.ok("open f %s rdwr", p)
			h.ok("lseek f 4")
			h.ok("chdir %s", r.data)
			before := h.snapshot()
			r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
			h.is("EIO", "fsync f")
			r.oneServer()
			server, keepers := r.processes("server"), r.processes("keeper")
			for _, pid := range append(server, keepers...) {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			h.is("ok 456789", "read f 100") // it waits, at most
			for end := time.Now().Add(time.Minute); strings.Contains(h.mountinfo(), "fuse.faultgraft"); time.Sleep(50 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("still mounted%s", r.logs())
				}
			}
			h.is("ok", "fsync f")
			h.ok("lseek f 4")
			h.is("ok 456789", "read f 100")
			h.ok("lseek f 4")
			same(t, before, h.snapshot())
			for end := time.Now().Add(time.Minute); len(r.list()) > 0; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("still grafted: %+v", r.list())
				}
			}
		})
	}
}

// Servers die again and again: the layer is taken off.
func TestServersThatKeepDying(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	r.env = []string{"FAULTGRAFT_TEST_MAX_DEATHS=1"}
	r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	r.replaced(syscall.SIGKILL, 1)
	h.is("EIO", "fsync f")
	r.oneServer()
	r.signal("server", syscall.SIGKILL)
	for end := time.Now().Add(time.Minute); len(r.list()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still grafted: %+v%s", r.list(), r.logs())
		}
	}
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
}
