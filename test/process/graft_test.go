package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"golang.org/x/sys/unix"
)

// The main job: descriptors and maps that were open before get the fault, and
// work again afterwards, with everything as it was (G4, G9, G11, G12, G25).
func TestGraftAndRecover(t *testing.T) {
	r := newRig(t)
	r.write("log", "0123456789")
	r.write("gone", "unlinked but open")
	r.write("map", strings.Repeat("a", 8192))
	r.write("private", strings.Repeat("p", 8192))
	if err := os.MkdirAll(filepath.Join(r.data, "sub", "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		r.write(fmt.Sprintf("sub/file%02d", i), "x")
	}
	h := r.start()
	d := r.data
	h.ok("open log %s/log rdwr,append,cloexec", d)
	h.ok("open plain %s/log rdwr", d)
	h.ok("lseek plain 3")
	h.ok("dup plain twin")
	h.ok("open gone %s/gone rdwr", d)
	h.ok("unlink %s/gone", d)
	h.ok("open dir %s/sub rdonly,directory", d)
	h.ok("open opath %s/log path", d)
	h.ok("open pathdir %s/sub path,directory", d)
	h.ok("open noatime %s/log rdonly,noatime", d)
	h.ok("open sync %s/log rdwr,sync", d)
	h.ok("open direct %s/map rdwr,direct", d)
	h.ok("open m %s/map rdwr", d)
	h.ok("mmap M m 8192 shared")
	h.ok("open pm %s/private rdwr", d)
	h.ok("mmap P pm 8192 private")
	h.ok("poke P 10 modified")
	h.ok("poke M 0 before")
	h.ok("open tmp %s/sub tmpfile,rdwr", d)
	h.ok("write tmp anonymous")
	h.ok("chdir %s/sub", d)
	first := h.ok("readdir dir")
	before := h.snapshot()

	g := r.inject(h, d, "io error=EIO op=fsync ttl=1m")
	if len(g.Report.Skipped) > 0 {
		t.Errorf("not moved: %+v", g.Report.Skipped)
	}
	if len(g.Report.Swapped) < 13 {
		t.Errorf("%d objects moved", len(g.Report.Swapped))
	}
	during := h.snapshot()
	for k, v := range during {
		if strings.HasPrefix(k, "fd ") && strings.Contains(v, d) && v == before[k] {
			t.Errorf("%s is still on the old mount: %s", k, v)
		}
	}
	// The fault reaches descriptors that were open before, and only where the rule says.
	for _, n := range []string{"log", "plain", "gone", "tmp", "m"} {
		h.is("EIO", "fsync %s", n)
		h.is("ok", "fdatasync %s", n)
	}
	h.is("ok 3456789", "read plain 100")
	h.is("ok 10", "lseek twin cur") // G5: shared through dup
	h.is("ok 0123456789", "cat %s/log", d)
	h.is("ok 3", "write log abc")
	h.is("ok 0123456789abc", "cat %s/log", d)
	h.ok("lseek log 0")
	h.is("ok unlinked but open", "pread gone 0 100")
	h.is("ok modified", "peek P 10 8")
	h.is("ok before", "peek M 0 6")
	h.ok("poke M 0 during")
	h.is("ok", "msync M") // msync(MS_SYNC) is an fdatasync of the range (mm/msync.c)
	h.is("ok "+d+"/sub", "getcwd")
	second := h.ok("readdir dir")
	for _, n := range strings.Split(second, ",") {
		if strings.Contains(","+first+",", ","+n+",") {
			t.Errorf("directory position lost: %q again after %q", n, first)
		}
	}
	h.ok("open new %s/new rdwr,creat", d)
	h.is("EIO", "fsync new")
	h.ok("lseek plain 3")

	r.recover(g)
	h.is("ok", "fsync log")
	h.is("ok", "fsync gone")
	h.is("ok", "fsync new")
	if b, err := os.ReadFile(d + "/map"); err != nil || !strings.HasPrefix(string(b), "during") {
		t.Errorf("what was written through the map: %.10q, %v", b, err)
	}
	h.is("ok modified", "peek P 10 8")
	h.is("ok anonymous", "pread tmp 0 100")
	h.is("ok 3", "lseek twin cur")
	h.ok("close new")
	after := h.snapshot()
	for _, s := range []map[string]string{before, after} {
		for k, v := range s {
			if strings.Contains(v, "/sub\n") && strings.HasPrefix(k, "fd ") {
				delete(s, k) // the directory's position: it was read on
			}
		}
	}
	same(t, before, after)
	h.is("ok "+d+"/sub", "getcwd")
	if third := h.ok("readdir dir"); third == first || third == second {
		t.Errorf("directory position lost at recovery: %q", third)
	}
}

// G2: a process with no object under the path is never stopped.
func TestProcessWithoutObjectsIsNotStopped(t *testing.T) {
	r := newRig(t)
	r.write("f", "x")
	h := r.start()
	g := r.inject(h, r.data, "io error=EIO op=read ttl=1m")
	if len(g.Report.Stopped) != 0 || g.PauseMs != 0 {
		t.Errorf("stopped %+v for %v ms", g.Report.Stopped, g.PauseMs)
	}
	h.is("EIO", "cat %s/f", r.data)
	if u := r.recover(g); len(u.Report.Stopped) != 0 {
		t.Errorf("stopped %+v", u.Report.Stopped)
	}
	h.is("ok x", "cat %s/f", r.data)
}

// G6, G7: a lock held before is held during and after.
func TestLocksAreKept(t *testing.T) {
	r := newRig(t)
	p := r.write("locked", "0123456789")
	q := r.write("record", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	h.ok("flock f")
	h.ok("open k %s rdwr", q)
	h.ok("setlk k 2 5")
	held := func(when string) {
		t.Helper()
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
			t.Errorf("%s: flock from outside: %v", when, err)
		}
		k, err := os.OpenFile(q, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = k.Close() }()
		l := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 10}
		if err := unix.FcntlFlock(k.Fd(), unix.F_GETLK, &l); err != nil || l.Type != unix.F_WRLCK || l.Start != 2 || l.Len != 5 {
			t.Errorf("%s: POSIX lock seen from outside: %+v, %v", when, l, err)
		}
	}
	held("before")
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	held("grafted")
	h.is("EAGAIN", "trylock %s", p)
	r.recover(g)
	held("recovered")
	// On the layer a close lets go of the lock too, whoever else holds the description for safety.
	g = r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	h.ok("close f")
	for end := time.Now().Add(30 * time.Second); h.do("trylock %s", p) != "ok"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Error("a closed file's lock is still held")
			break
		}
	}
	r.recover(g)
}

// G10: FIFOs, sockets and devices stay where they are.
func TestFIFOsAreLeftAlone(t *testing.T) {
	r := newRig(t)
	fifo := filepath.Join(r.data, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(r.data, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	h := r.start()
	h.ok("open pipe %s rdwr,nonblock", fifo)
	h.ok("open null %s/null rdwr", r.data)
	h.ok("write pipe hello")
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=all ttl=1m")
	if len(g.Report.Swapped) != 0 || len(g.Report.Stopped) != 0 {
		t.Errorf("moved %+v", g.Report.Swapped)
	}
	h.is("ok hello", "read pipe 5")
	h.is("ok 2", "write null xx")
	r.recover(g)
	same(t, before, h.snapshot())
}

// Rules end by themselves, and the layer goes with the last one.
func TestLayerEndsWithItsRules(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.write("f", "x")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	r.inject(h, r.data, "io error=EIO op=fsync ttl=1s")
	h.is("EIO", "fsync f")
	r.awaitOff(20*time.Second, "still grafted")
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
}

// A target that ends takes its graft with it.
func TestTargetEnds(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "x")
	h := r.start()
	h.ok("open f %s rdwr", p)
	r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	h.stop()
	r.awaitOff(20*time.Second, "still grafted")
}

// Without a mount namespace of its own: the tree gets the faults, nobody else.
func TestTreeInSharedNamespace(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "x")
	// A private namespace plays the host: holder and bystander share it with the command.
	h := r.startWith(binaries.holder)
	other := r.startWith(binaries.holder)
	h.ok("open f %s rdwr", p)
	other.ok("open f %s rdwr", p)
	before := other.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync+read ttl=1m")
	for _, s := range g.Report.Stopped {
		if s.PID != h.pid() {
			t.Errorf("process %d was stopped", s.PID)
		}
	}
	h.is("EIO", "fsync f")
	other.is("ok", "fsync f")
	other.is("ok x", "cat %s", p)
	other.ok("open g %s rdwr", p)
	other.is("ok", "fsync g")
	other.ok("close g")
	h.is("EIO", "cat %s", p)
	r.recover(g)
	h.is("ok", "fsync f")
	same(t, before, other.snapshot())
}

// Signals that arrive during swaps are delivered exactly once (G17): a child that counts them sits in the tracer's
// tests; here a shell's trap must not be lost under repeated grafts.
func TestRepeatedGrafts(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	h.ok("mmap M f 10 shared")
	before := h.snapshot()
	for range 10 {
		g := r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
		h.is("EIO", "fsync f")
		r.recover(g)
		h.is("ok", "fsync f")
	}
	same(t, before, h.snapshot())
}

// Two paths of one target share a keeper; a graft that overlaps another is refused.
func TestSeveralPaths(t *testing.T) {
	r := newRig(t)
	for _, d := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(r.data, d), 0o755); err != nil {
			t.Fatal(err)
		}
		r.write(d+"/f", d)
	}
	single := r.write("single", "one file")
	h := r.start()
	ga := r.inject(h, r.data+"/a", "io error=EIO op=read ttl=1m")
	gb := r.inject(h, r.data+"/b", "io error=ENOSPC op=read ttl=1m")
	gs := r.inject(h, single, "io error=EACCES op=open ttl=1m")
	h.is("EIO", "cat %s/a/f", r.data)
	h.is("ENOSPC", "cat %s/b/f", r.data)
	h.is("EACCES", "cat %s", single)
	for path, want := range map[string]string{
		r.data + "/a/f": "inside the layer", r.data: "lies inside it",
	} {
		out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", path, "io error=EIO op=read")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("graft on %s: %s, %v; want %q", path, out, err, want)
		}
	}
	if n := len(r.list()); n != 3 {
		t.Errorf("%d grafts", n)
	}
	for _, g := range []keeper.Graft{gb, ga, gs} {
		r.recover(g)
	}
	h.is("ok a", "cat %s/a/f", r.data)
	h.is("ok one file", "cat %s", single)
}
