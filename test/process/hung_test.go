package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/programs"
	"golang.org/x/sys/unix"
)

// hungfs mounts a file system that can hang, over a folder that it shows the files of; see test/hungfs.
func (r *rig) hungfs(point string) *holder {
	r.t.Helper()
	h := r.launch(programs.MustGo(r.t, "test/hungfs"), r.t.TempDir(), point)
	if got := h.line("its start"); got != "ready" {
		r.t.Fatalf("hungfs says %q", got)
	}
	return h
}

// stuck waits until a thread of a process is in uninterruptible sleep, or has been asleep in FUSE for a moment.
func stuck(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", pid))
		for _, f := range files {
			if b, _ := os.ReadFile(f); string(b) == "request_wait_answer" {
				return
			}
		}
	}
	t.Fatal("no thread waits for a FUSE server")
}

// untraced checks that no thread of a process is traced.
func untraced(t *testing.T, pid int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && !strings.Contains(string(b), "TracerPid:\t0\n") {
			t.Errorf("%s is traced", f)
		}
	}
}

var uninterruptible = regexp.MustCompile(`thread \d+ \(holder\) is in uninterruptible sleep \(.+\) for \S+; nothing was changed`)

// G3: a thread that waits for a file system which hangs, be it another or the one under the path, makes the graft give
// up; all go on, and when the file system answers, the thread has its data and the graft works.
func TestGraftWithAHungThread(t *testing.T) {
	for _, under := range []bool{false, true} {
		t.Run(map[bool]string{false: "elsewhere", true: "under the path"}[under], func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			point := r.t.TempDir()
			if under {
				point = r.data
			}
			fs := r.hungfs(point)
			if err := os.WriteFile(point+"/slow", []byte("late data"), 0o644); err != nil {
				t.Fatal(err)
			}
			p := r.write("f", "0123456789")
			h := r.start()
			h.ok("open f %s rdwr", p)
			h.ok("open slow %s/slow rdwr", point)
			before := h.snapshot()
			fs.ok("hang")
			h.ok("behind slow 0 100")
			stuck(t, h.pid())
			for range 2 {
				out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "--deadline", "500ms", "io error=EIO op=fsync ttl=2m")
				if err == nil || !uninterruptible.MatchString(err.Error()) {
					t.Fatalf("inject: %q, %v", out, err)
				}
				untraced(t, h.pid())
				h.is("ok", "fsync f") // the other threads go on
				same(t, before, h.snapshot())
			}
			fs.ok("go")
			h.is("ok late data", "result")
			g := r.inject(h, r.data, "io error=EIO op=fsync ttl=2m")
			h.is("EIO", "fsync f")
			r.recover(g)
			h.is("ok", "fsync f")
			same(t, before, h.snapshot())
			h.ok("close f")
			h.ok("close slow")
			h.stop()
			fs.stop()
		})
	}
}

// A file that is in flight between two other programs, and is looked at for that, may be of a file system that answers
// no close: that is nothing to a graft elsewhere.
func TestGraftBesideAHungClose(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	point, plain := filepath.Join(r.data, "hung"), filepath.Join(r.data, "plain")
	if err := errors.Join(os.Mkdir(point, 0o755), os.Mkdir(plain, 0o755)); err != nil {
		t.Fatal(err)
	}
	fs := r.hungfs(point)
	h := r.start()
	h.ok("open f %s rdwr", r.write("plain/f", "0123456789"))
	sent, err := unix.Open(r.write("hung/sent", "data"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(unix.Close(ends[0]), unix.Close(ends[1])) }()
	if err := errors.Join(unix.Sendmsg(ends[0], []byte{1}, unix.UnixRights(sent), nil, 0), unix.Close(sent)); err != nil {
		t.Fatal(err)
	}
	fs.ok("hang closes")
	g := r.inject(h, plain, "io error=EIO op=fsync ttl=5m")
	h.is("EIO", "fsync f")
	r.recover(g)
	h.is("ok 0123456789", "pread f 0 10")
	fs.ok("go")
}

// G26: what lies under the layer hangs. The ungraft ends with words, other grafts of the target and ps are not held
// up, and the layer comes off when the file system answers again, by itself.
func TestUngraftWithAHungFile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	point, plain := filepath.Join(r.data, "hung"), filepath.Join(r.data, "plain")
	for _, d := range []string{point, plain} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fs := r.hungfs(point)
	slow, quick := r.write("hung/slow", "late data"), r.write("plain/f", "0123456789")
	h := r.start()
	h.ok("open slow %s rdwr", slow)
	h.ok("open f %s rdwr", quick)
	before := h.snapshot()
	g := r.inject(h, point, "io error=EIO op=fsync ttl=5m", "io hang op=fsync path=/**/never ttl=5m")
	other := r.inject(h, plain, "io error=EIO op=fsync ttl=5m")
	fs.ok("hang")
	h.ok("behind slow 0 100")
	stuck(t, h.pid())
	out, err := r.run("recover", g.ID)
	if err == nil || !strings.Contains(err.Error(), "is in uninterruptible sleep") {
		t.Fatalf("recover: %q, %v", out, err)
	}
	untraced(t, h.pid())
	if l := r.list(); len(l) != 2 {
		t.Errorf("ps: %+v", l)
	} else if l[0].State != keeper.StateFailed && l[0].State != keeper.StateReverting || !strings.Contains(l[0].Reason, "uninterruptible") {
		t.Errorf("ps says %s: %q", l[0].State, l[0].Reason)
	}
	if out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", point, "io error=EIO op=fsync ttl=5m"); err == nil || !strings.Contains(err.Error(), "is being taken off") {
		t.Errorf("inject over it: %q, %v", out, err)
	}
	if out, err := r.run("release", g.ID); err != nil {
		t.Errorf("release: %q, %v", out, err)
	}
	h.is("EIO", "fsync f")
	out, err = r.run("update", other.ID, "io error=ENOSPC op=fsync ttl=5m")
	if err != nil {
		t.Errorf("update: %q, %v", out, err)
	}
	h.is("ENOSPC", "fsync f")
	fs.ok("go")
	h.is("ok late data", "result")
	for end := time.Now().Add(30 * time.Second); len(r.list()) > 1; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the layer does not come off by itself%s", r.logs())
		}
	}
	r.recover(other)
	same(t, before, h.snapshot())
	h.stop()
	fs.stop()
}

// G26: a latency of an hour is over when the layer goes.
func TestUngraftEndsLongLatencies(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	g := r.inject(h, r.data, "io latency=1h op=read ttl=2h")
	h.ok("behind f 0 100")
	stuck(t, h.pid())
	r.recover(g)
	h.is("ok 0123456789", "result")
	same(t, before, h.snapshot())
}

// G26: descriptors that are busy all the time, and a pipe that is full, do not keep a graft or an ungraft from its end.
func TestBusyDescriptors(t *testing.T) {
	r := newRig(t)
	h := r.start()
	h.ok("busy %s/f 16", r.data)
	for range 5 {
		g := r.inject(h, r.data, "io error=EIO op=fsync ttl=2m")
		u := r.recover(g)
		if len(g.Report.Swapped) == 0 || len(u.Report.Swapped) == 0 || len(u.Report.Skipped) > 0 {
			t.Errorf("grafted: %+v; recovered: %+v", g.Report, u.Report)
		}
	}
	if n := h.ok("idle"); n == "0" {
		t.Error("the threads did nothing")
	}
}

// A paused container is told to be resumed first, and nothing hangs: cgroups of both versions.
func TestFrozenTarget(t *testing.T) {
	for name, c := range map[string]struct{ base, file, freeze, thaw string }{
		"v2": {"/sys/fs/cgroup/unified", "cgroup.freeze", "1", "0"},
		"v1": {"/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "v2" {
				if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err == nil {
					c.base = "/sys/fs/cgroup"
				}
			}
			if _, err := os.Stat(c.base + "/cgroup.procs"); err != nil {
				t.Skipf("no cgroup %s here", name)
			}
			r := newRig(t)
			p := r.write("f", "0123456789")
			h := r.start()
			h.ok("open f %s rdwr", p)
			before := h.snapshot()
			group, err := os.MkdirTemp(c.base, "faultgraft-test-")
			if err != nil {
				t.Skipf("no cgroup of our own: %v", err)
			}
			set := func(file, value string) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(group, file), []byte(value), 0); err != nil {
					t.Error(err)
				}
			}
			defer func() {
				set(c.file, c.thaw)
				h.stop()
				if err := os.Remove(group); err != nil {
					t.Error(err)
				}
			}()
			set("cgroup.procs", fmt.Sprint(h.pid()))
			want := fmt.Sprintf("process %d (holder) is frozen by its cgroup /%s: resume it first", h.pid(), filepath.Base(group))
			set(c.file, c.freeze)
			out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=2m")
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "nothing was changed") {
				t.Errorf("inject: %q, %v; want %q", out, err, want)
			}
			untraced(t, h.pid())
			set(c.file, c.thaw)
			same(t, before, h.snapshot())
			g := r.inject(h, r.data, "io error=EIO op=fsync ttl=2m")
			h.is("EIO", "fsync f")
			set(c.file, c.freeze)
			out, err = r.run("recover", g.ID)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("recover: %q, %v; want %q", out, err, want)
			}
			set(c.file, c.thaw)
			r.recover(g)
			h.is("ok", "fsync f")
			same(t, before, h.snapshot())
		})
	}
}

// A keeper that cannot end yet takes no graft: who asks for one is told so, and what to do, when its patience is over.
func TestKeeperIsEnding(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	fs := r.hungfs(r.data)
	slow := r.write("slow", "late data")
	h := r.start()
	h.ok("open slow %s rdwr", slow)
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m", "io hang op=fsync path=/**/never ttl=5m")
	fs.ok("hang")
	h.ok("behind slow 0 100")
	stuck(t, h.pid())
	if err := syscall.Kill(r.keeperOf(h), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) { // another one, that is there to take it off
		if l := r.list(); len(l) == 1 && l[0].ID == g.ID && strings.Contains(l[0].Reason, "uninterruptible") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no keeper takes it off: %+v%s", r.list(), r.logs())
		}
	}
	out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", t.TempDir(), "io error=EIO op=fsync ttl=5m")
	for _, want := range []string{"has been ending for 10s", "Nothing was grafted: try again", "--deadline"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("inject: %q, %v; want %q", out, err, want)
		}
	}
	fs.ok("go")
	h.is("ok late data", "result")
	r.awaitOff(time.Minute, "the layer does not come off by itself")
	same(t, before, h.snapshot())
	h.stop()
	fs.stop()
}
