package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/failpoint"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"golang.org/x/sys/unix"
)

var (
	// noTakeover has no server follow a dead one: its layers are taken off.
	noTakeover = []string{"FAULTGRAFT_TEST_NO_TAKEOVER=1"}
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
	r.killServer(sig)
	r.awaitTakeovers(n)
}

// killServer sends a signal to the one server.
func (r *rig) killServer(sig syscall.Signal) {
	r.t.Helper()
	if err := syscall.Kill(r.oneServer(), sig); err != nil {
		r.t.Fatal(err)
	}
}

// oneServer waits until there is one, and gives it: a server that has just been made has a twin for a moment, its holder.
func (r *rig) oneServer() (pid int) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		all := r.processes("server")
		if len(all) == 1 {
			return all[0]
		}
		if time.Now().After(end) {
			r.t.Fatalf("servers: %v%s", all, r.logs())
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

// serverDeath is a way in which a server dies: how is told the graft, why is what the event log says of it.
type serverDeath struct {
	env []string
	how func(r *rig, g keeper.Graft)
	why string
}

func bySignal(sig syscall.Signal, why string) serverDeath {
	return serverDeath{how: func(r *rig, _ keeper.Graft) { r.killServer(sig) }, why: why}
}

// crash is what Go's runtime makes of a signal that it does not survive, and of a panic: it tells of it in keeper.log.
const crash = "(exit status 2: it crashed, keeper.log has the stack)"

// A server dies, by whatever: another serves on. The target sees no error, and everything is as it was: rules
// with their counters, what is open, also of files that have no name any more, positions, locks, maps.
func TestServerIsReplaced(t *testing.T) { kernels(t, serverIsReplaced) }

func serverIsReplaced(t *testing.T, env []string) {
	for name, death := range map[string]serverDeath{
		"SIGKILL": bySignal(syscall.SIGKILL, "(signal: killed)"),
		"SIGSEGV": bySignal(syscall.SIGSEGV, crash),
		"SIGABRT": bySignal(syscall.SIGABRT, crash),
		"panic":   {env: []string{failpoint.At + "=panic:server.release"}, how: panics, why: crash},
		"OOM":     {how: starves, why: "(signal: killed; while it was there, the kernel has killed "},
	} {
		if env != nil && name != "SIGKILL" {
			continue // how it died says nothing about the requests that it left
		}
		t.Run(name, func(t *testing.T) {
			death.env = append(slices.Clone(env), death.env...)
			replacedAfter(t, death)
		})
	}
}

// panics has the server panic in the middle of an order.
func panics(r *rig, g keeper.Graft) {
	r.t.Helper()
	out, err := r.run("release", g.ID)
	r.t.Logf("release: %s, %v", out, err)
	if logs := r.logs(); !strings.Contains(logs, "panic: asked for before step release") {
		r.t.Errorf("keeper.log does not have the panic:%s", logs)
	}
}

// starves puts the server into a cgroup that has no memory to speak of, and gives it work until another has followed it.
func starves(r *rig, g keeper.Graft) {
	r.t.Helper()
	group := memoryGroup(r.t, 64<<10)
	group.add(r.oneServer())
	stop := make(chan struct{})
	var all sync.WaitGroup
	defer func() { close(stop); all.Wait() }()
	for i := range 16 { // each that waits for the rule takes a reader with room for a large request
		all.Go(func() {
			name := onTarget(g.Target.PID, r.data, fmt.Sprint("big", i))
			err := loop(stop, func(int) error {
				err := os.WriteFile(name, make([]byte, 1<<20), 0o600)
				return errors.Join(err, os.Remove(name))
			})
			if err != nil {
				r.t.Error(err)
			}
		})
	}
	r.awaitTakeovers(1)
}

func replacedAfter(t *testing.T, death serverDeath) {
	r := newRig(t)
	r.env = death.env
	p, gone := r.write("f", "0123456789"), r.write("gone", "unlinked but open")
	h := r.start()
	h.ok("open f %s rdwr", p)
	h.ok("lseek f 4")
	h.ok("mmap M f 10 shared")
	h.ok("chdir %s", r.data)
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync times=3 ttl=5m", "io latency=100ms op=write path="+r.data+"/big* ttl=5m")
	h.is("EIO", "fsync f")
	h.ok("open gone %s rdwr", gone)
	h.ok("unlink %s", gone)
	h.ok("open locked %s rdwr", p)
	h.ok("flock locked")
	h.ok("lseek gone 9")
	death.how(r, g)
	r.awaitTakeovers(1)
	h.is("EIO", "fsync f")
	h.is("ok but open", "read gone 100")
	h.is("ok 0123", "peek M 0 4")
	if got := h.do("trylock %s", p); got == "ok" {
		t.Errorf("the lock is lost: %s", got)
	}
	h.ok("close locked")
	h.is("ok", "trylock %s", p)
	if l := r.list(); len(l) != 1 || l[0].State != keeper.StateActive || len(l[0].Rules) != 2 || l[0].Rules[0].Fired != 2 {
		t.Errorf("after the takeover: %+v", l)
	}
	h.is("EIO", "fsync f")
	h.is("ok", "fsync f") // three times in all
	if !slices.ContainsFunc(r.events(), func(e keeper.Event) bool {
		return e.Type == keeper.EventServer && strings.Contains(e.Message, death.why) && strings.Contains(e.Message, "was replaced")
	}) {
		t.Errorf("the event log does not tell of it: %+v", r.events())
	}
	h.ok("close gone")
	r.recover(g)
	h.is("ok 456789", "read f 100")
	h.ok("lseek f 4")
	same(t, before, h.snapshot())
}

// Servers are killed one after another under load: no call fails, nothing is lost or done twice.
func TestServersAreReplacedUnderLoad(t *testing.T) { kernels(t, serversAreReplacedUnderLoad) }

func serversAreReplacedUnderLoad(t *testing.T, env []string) {
	r := newRig(t)
	r.env = env
	h := r.start()
	h.ok("chdir %s", r.data)
	// A rule about the data of the first folders: what is in the others passes the server.
	g := r.inject(h, r.data, "io latency=1ms op=fsync p=10% path="+r.data+"/[0-4]/** ttl=10m")
	stop := make(chan struct{})
	var all sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); all.Wait() })
	defer end()
	for i, work := range []func(dir string, stop <-chan struct{}) error{appends, moves, tempfiles, locks, maps, maps, appends, tempfiles} {
		dir := onTarget(h.pid(), r.data, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			if err := work(dir, stop); err != nil {
				t.Error(err)
			}
		})
	}
	kills := 8
	if wholeWalk() {
		kills = 20
	}
	for n := 1; n <= kills && !t.Failed(); n++ {
		r.replaced(syscall.SIGKILL, n)
	}
	end()
	if off := r.recover(g); len(off.Rules) != 1 || off.Rules[0].Matched == 0 {
		t.Errorf("no load was on the layer: %+v", off.Rules)
	}
	r.t.Logf("%d kills", kills)
}

// onTarget names a file as seen in the target's mount namespace: the test's own shows what lies below the layer.
func onTarget(pid int, path ...string) string {
	return filepath.Join(append([]string{"/proc", fmt.Sprint(pid), "root"}, path...)...)
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

// maps are changed and synced, and files are opened again and again while they are mapped.
func maps(dir string, stop <-chan struct{}) error {
	const size = 16 << 10
	name := filepath.Join(dir, "mapped")
	want := make([]byte, size)
	if err := os.WriteFile(name, want, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	shared, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(shared) }()
	private, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(private) }()
	private[100] = 'p'
	return loop(stop, func(n int) error {
		at := n * 97 % size
		want[at], shared[at] = byte(n), byte(n)
		if err := unix.Msync(shared, unix.MS_SYNC); err != nil {
			return fmt.Errorf("msync %d: %w", n, err)
		}
		got, err := os.ReadFile(name)
		if err == nil && !bytes.Equal(got, want) {
			err = fmt.Errorf("after change %d the file is not what was written to its map", n)
		}
		if err == nil && private[100] != 'p' {
			err = errors.New("the private map has lost what was written to it")
		}
		return err
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
