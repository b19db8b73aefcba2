package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
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
	for end := time.Now().Add(10 * time.Second); h.do("trylock %s", p) != "ok"; time.Sleep(10 * time.Millisecond) {
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
	r := newRig(t)
	p := r.write("f", "x")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	r.inject(h, r.data, "io error=EIO op=fsync ttl=1s")
	h.is("EIO", "fsync f")
	for end := time.Now().Add(20 * time.Second); len(r.list()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still grafted%s", r.logs())
		}
	}
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
	for end := time.Now().Add(20 * time.Second); len(r.list()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still grafted%s", r.logs())
		}
	}
}

// Each process that stands by can be killed: the target goes on, without its
// descriptors noticing, and the layer is taken off.
func TestKillServer(t *testing.T) { killed(t, "server") }
func TestKillKeeper(t *testing.T) { killed(t, "keeper") }

func killed(t *testing.T, role string) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	h.ok("lseek f 4")
	h.ok("chdir %s", r.data)
	before := h.snapshot()
	r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	h.is("EIO", "fsync f")
	pids := 0
	for _, l := range leftovers(t) {
		var pid int
		if _, err := fmt.Sscanf(l, "/proc/%d/exe", &pid); err == nil && strings.Contains(l, " "+role) {
			pids++
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	if pids != 1 {
		t.Fatalf("%d processes with role %s: %q", pids, role, leftovers(t))
	}
	if role == "keeper" {
		// The server hears of it when the socket closes, and ends the rules then.
		for end := time.Now().Add(10 * time.Second); h.do("fsync f") != "ok" && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
	}
	h.is("ok", "fsync f") // it waits, at most, and sees no error
	h.is("ok 456789", "read f 100")
	h.ok("lseek f 4")
	for end := time.Now().Add(20 * time.Second); strings.Contains(h.mountinfo(), "fuse.faultgraft"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still mounted%s", r.logs())
		}
	}
	h.ok("stat /") // the mount goes within the stop; an answer means that it is over
	same(t, before, h.snapshot())
}

// G22: a failure at any step rolls back whole.
func TestRollbackAtEachStep(t *testing.T) {
	for _, step := range []string{"resolve", "layer", "serve", "scan", "replace", "seize", "stopped", "inject", "stage", "mount", "commit", "check", "release", "hand over", "kill:mount", "kill:check"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			p := r.write("f", "0123456789")
			h := r.start()
			h.ok("open f %s rdwr", p)
			h.ok("lseek f 4")
			h.ok("mmap M f 10 shared")
			h.ok("chdir %s", r.data)
			before := h.snapshot()
			cmd := r.command("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=1m")
			cmd.Env = append(cmd.Env, "FAULTGRAFT_TEST_FAIL_AT="+step)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("no error: %s", out)
			}
			h.is("ok 456789", "read f 100")
			h.ok("lseek f 4")
			h.is("ok", "fsync f")
			for end := time.Now().Add(20 * time.Second); strings.Contains(h.mountinfo(), "fuse.faultgraft") && time.Now().Before(end); {
				time.Sleep(50 * time.Millisecond)
			}
			h.ok("stat /") // not in the middle of a stop
			same(t, before, h.snapshot())
			if !strings.HasPrefix(step, "kill:") && !strings.Contains(string(out), step) {
				t.Errorf("the error does not name the step: %s", out)
			}
			t.Logf("%s", out)
		})
	}
}

// G22 for the way back: a failure leaves the target on the layer, whole, and the next try takes it off.
func TestRollbackOfRecoverAtEachStep(t *testing.T) {
	for _, step := range []string{"scan", "replace", "seize", "stopped", "unmount", "inject", "stage", "commit", "check", "release", "kill:unmount", "kill:check", "kill:release"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.env = append(r.env, "FAULTGRAFT_TEST_FAIL_DETACH_AT="+step)
			p := r.write("f", "0123456789")
			h := r.start()
			h.ok("open f %s rdwr", p)
			h.ok("open locked %s rdwr", r.write("locked", "x"))
			h.ok("setlk locked 0 1")
			h.ok("lseek f 4")
			h.ok("mmap M f 10 shared")
			h.ok("chdir %s", r.data)
			before := h.snapshot()
			g := r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
			h.ok("poke M 0 ABC")
			out, err := r.run("recover", g.ID)
			if err == nil {
				t.Fatalf("no error: %s", out)
			}
			t.Log(err)
			h.is("ok 456789", "read f 100") // on the layer, or already off it
			h.ok("lseek f 4")
			h.is("ok ABC3456789", "cat %s", p)
			h.is("ok ABC", "peek M 0 3")
			h.is("ok "+r.data, "getcwd")
			r.recover(g)
			h.is("ok", "fsync f")
			h.is("ok ABC", "peek M 0 3")
			h.is("ok ABC3456789", "cat %s", p)
			same(t, before, h.snapshot())
		})
	}
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

// Two paths of one target share a keeper; a second graft on the same path is refused.
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
		r.data + "/a": "lies there already", r.data + "/a/f": "inside the layer", r.data: "lies inside it",
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

func TestErrorsChangeNothing(t *testing.T) {
	r := newRig(t)
	r.write("f", "x")
	h := r.start()
	before := h.snapshot()
	rule := "io error=EIO op=read ttl=1m"
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	pid := fmt.Sprint(h.pid())
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"no such path", []string{"--pid", pid, "--path", "/no/such/path", rule}, "/no/such/path"},
		{"relative path", []string{"--pid", pid, "--path", "data", rule}, "absolute"},
		{"root", []string{"--pid", pid, "--path", "/", rule}, "not in this version"},
		{"proc", []string{"--pid", pid, "--path", "/proc", rule}, "window into the kernel"},
		{"device", []string{"--pid", pid, "--path", "/dev/null", rule}, "neither a directory nor a regular file"},
		{"no such process", []string{"--pid", fmt.Sprint(dead.Process.Pid), "--path", r.data, rule}, "no such process"},
		{"init", []string{"--pid", "1", "--path", r.data, rule}, "init"},
		{"kernel thread", []string{"--pid", "2", "--path", r.data, rule}, "kernel thread"},
		{"own tree", []string{"--pid", fmt.Sprint(os.Getpid()), "--path", r.data, rule}, "part of its process tree"},
		{"no rule", []string{"--pid", pid, "--path", r.data}, "give a rule"},
		{"wrong errno", []string{"--pid", pid, "--path", r.data, "io error=EIOO op=read"}, "EIO"},
		{"wrong op", []string{"--pid", pid, "--path", r.data, "io error=EIO op=raed"}, "read"},
		{"rule elsewhere", []string{"--pid", pid, "--path", r.data, "io error=EIO op=read path=/elsewhere/**"}, "could never fire"},
		{"no such container", []string{"--containerd-address", r.state + "/none.sock", "nobody", "--path", r.data, rule}, "none.sock"},
		{"no such graft", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"inject"}, c.args...)
			if c.args == nil {
				args, c.want = []string{"recover", "g-12345678"}, "no such graft"
			}
			out, err := r.run(args...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("answer %q, error %v; want %q", out, err, c.want)
			}
			t.Log(err)
		})
	}
	same(t, before, h.snapshot())
}

// Without privileges and without FUSE: an error in words, and nothing changed.
func TestMissingPrivilegeAndFUSE(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "x")
	if err := os.Chmod(filepath.Dir(binaries.faultgraft), 0o755); err != nil {
		t.Fatal(err)
	}
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	args := []string{"inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=read"}
	cmd := r.command(args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "root") {
		t.Errorf("uid 65534: %v: %s", err, out)
	}
	t.Logf("%s", out)
	// A namespace whose /dev has no fuse.
	script := `mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"`
	cmd = r.command()
	cmd.Path, cmd.Args = "/usr/bin/unshare", append([]string{"unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", binaries.faultgraft}, args...)
	out, err = cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no FUSE") {
		t.Errorf("no /dev/fuse: %v: %s", err, out)
	}
	t.Logf("%s", out)
	same(t, before, h.snapshot())
}

// F4, F12: what fired, what was logged, what is counted and what the program saw are the same number.
func TestCountsAgree(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	g := r.inject(h, r.data, "io error=EIO op=read p=10% seed=7 ttl=1m")
	const n = 20000
	var ok, eio int
	if _, err := fmt.Sscanf(strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' || c == ' ' {
			return c
		}
		return ' '
	}, h.ok("spin %s %d read", p, n)), "%d %d", &eio, &ok); err != nil || ok+eio != n {
		t.Fatalf("%d + %d: %v", ok, eio, err)
	}
	// 3 sigma of a binomial with p = 0.1.
	if mean, sigma := 0.1*n, 42.43; float64(eio) < mean-3*sigma || float64(eio) > mean+3*sigma {
		t.Errorf("%d faults of %d at 10 %%", eio, n)
	}
	u := r.recover(g)
	if u.Rules[0].Fired != uint64(eio) || u.Rules[0].Matched != n {
		t.Errorf("counters %+v, the program saw %d of %d", u.Rules[0], eio, n)
	}
	logged := 0
	for _, e := range r.events() {
		if e.Type == keeper.EventFault {
			logged++
			if e.Errno != "EIO" || e.Op != "read" || e.Path != p || e.Rule != "rule" || e.PID == 0 || e.N == 0 || e.Graft != g.ID {
				t.Fatalf("event %+v", e)
			}
		}
	}
	if logged != eio {
		t.Errorf("%d faults in the log, the program saw %d", logged, eio)
	}
}

// events -f shows a fault as it happens.
func TestEventsFollow(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "x")
	h := r.start()
	g := r.inject(h, r.data, "io error=EIO op=read ttl=1m")
	cmd := r.command("events", "-f")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	h.is("EIO", "cat %s", p)
	found := make(chan string, 1)
	go func() {
		var all strings.Builder
		b := make([]byte, 4096)
		for {
			n, err := out.Read(b)
			all.Write(b[:n])
			if err != nil || strings.Contains(all.String(), "-> EIO") {
				found <- all.String()
				return
			}
		}
	}()
	select {
	case s := <-found:
		if !strings.Contains(s, p) || !strings.Contains(s, g.ID) {
			t.Errorf("events -f: %s", s)
		}
	case <-time.After(20 * time.Second):
		t.Error("events -f shows nothing")
	}
}
