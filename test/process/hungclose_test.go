package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// hungCloses is a target with files on a file system that can stop to answer closes, and a bystander with a graft of its own.
type hungCloses struct {
	*rig
	fs, h, other *holder
	before       map[string]string
	aside        keeper.Graft
}

func newHungCloses(t *testing.T) *hungCloses {
	t.Helper()
	r := newRig(t)
	r.env = append(r.env, "FAULTGRAFT_TEST_START_PATIENCE=4s")
	x := &hungCloses{rig: r, fs: r.hungfs(r.data)}
	p := r.write("f", "0123456789")
	x.h = r.start()
	x.h.ok("open f %s rdwr", p)
	x.h.ok("dup f f2")
	x.h.ok("lseek f 4")
	x.h.ok("open g %s rdwr", r.write("g", "abc"))
	x.before = x.h.snapshot()
	x.other = r.start()
	place := t.TempDir()
	q := filepath.Join(place, "q")
	if err := os.WriteFile(q, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	x.other.ok("open q %s rdwr", q)
	x.aside = r.inject(x.other, place, "io error=EIO op=fsync ttl=5m")
	return x
}

// othersGoOn: the other graft can be changed and looked at.
func (x *hungCloses) othersGoOn() {
	x.t.Helper()
	x.othersChange()
	if out, err := x.run("ps"); err != nil || !strings.Contains(out, x.aside.ID) {
		x.t.Errorf("ps: %q, %v", out, err)
	}
}

func (x *hungCloses) othersChange() {
	x.t.Helper()
	if out, err := x.run("update", x.aside.ID, "io error=ENOSPC op=fsync ttl=5m"); err != nil {
		x.t.Errorf("update: %q, %v", out, err)
	}
	x.other.is("ENOSPC", "fsync q")
}

// end has the file system answer, and compares.
func (x *hungCloses) end() {
	x.t.Helper()
	x.h.ok("stat /")
	same(x.t, x.before, x.h.snapshot())
	x.h.is("ok 456789", "read f 100")
	x.h.stop()
	x.other.stop() // its namespace has the file system too
	x.fs.stop()
}

// The file system under the path does not answer closes, for which the target would wait in the middle of the exchange: the graft is refused
// before anything is changed, and made when it answers.
func TestGraftWhereClosesHang(t *testing.T) {
	x := newHungCloses(t)
	x.fs.ok("hang closes")
	args := []string{"inject", "--pid", fmt.Sprint(x.h.pid()), "--path", x.data, "io error=EIO op=fsync ttl=5m"}
	for range 2 {
		out, err := x.run(args...)
		want := "fuse.hungfs at " + x.data + ") cannot be closed: that file system does not answer. Nothing was changed"
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("inject: %q, %v; want %q%s", out, err, want, x.logs())
		}
		untraced(t, x.h.pid())
		x.h.is("ok", "fsync f")
		same(t, x.before, x.h.snapshot())
	}
	x.othersGoOn()
	x.fs.ok("go")
	if out, err := x.run(args...); err != nil {
		t.Fatalf("inject: %q, %v", out, err)
	}
	x.h.is("EIO", "fsync f")
	if out, err := x.run("recover", "--all"); err != nil {
		t.Errorf("recover: %q, %v", out, err)
	}
	x.end()
}

// It stops to answer while there is a layer: no swapper can be started, as that would close the keeper's copies of the originals. An ungraft
// ends with words, and is done when the file system answers; the faults end at once.
func TestUngraftWhereClosesHang(t *testing.T) {
	x := newHungCloses(t)
	g := x.inject(x.h, x.data, "io error=EIO op=fsync ttl=5m")
	x.h.is("EIO", "fsync f")
	x.fs.ok("hang closes")
	const want = "does not answer when a file is closed"
	for range 2 {
		if out, err := x.run("recover", g.ID); err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("recover: %q, %v%s", out, err, x.logs())
		}
		untraced(t, x.h.pid())
		x.h.is("ok", "fsync f")
	}
	x.othersGoOn()
	if out, err := x.run("stop", "--all", "--reason", "a test"); err == nil || !strings.Contains(err.Error()+out, want) {
		t.Errorf("stop: %q, %v", out, err)
	}
	x.other.is("ok", "fsync q")
	for _, l := range x.list() {
		if l.ID != g.ID || !strings.Contains(l.Reason, want) {
			t.Errorf("ps: %s is %s: %q", l.ID, l.State, l.Reason)
		}
	}
	x.fs.ok("go")
	x.awaitOff(time.Minute, "the layer does not come off by itself")
	if out, err := x.run("release"); err != nil {
		t.Errorf("release: %q, %v", out, err)
	}
	x.end()
}

// It stops to answer in the middle of the exchange, when nothing can be done any more: the target's thread waits, as it would in a close of its own.
// Others go on, and when it answers the target has all its files, on the layer or below.
func TestClosesHangInMidGraft(t *testing.T) {
	if os.Getenv("FAULTGRAFT_TEST_LONG") == "" {
		t.Skip("takes minutes, the deadlines of two swappers: FAULTGRAFT_TEST_LONG=1")
	}
	x := newHungCloses(t)
	cmd, out := x.stopAt("commit", "inject", "--pid", fmt.Sprint(x.h.pid()), "--path", x.data, "io error=EIO op=fsync ttl=5m")
	x.fs.ok("hang closes")
	x.goOn(t)
	late := time.AfterFunc(5*time.Minute, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "does not answer") {
		t.Errorf("inject: %v: %s", err, out.String())
	}
	untraced(t, x.h.pid())
	x.othersGoOn()
	time.Sleep(15 * time.Second)
	x.fs.ok("go")
	x.h.ok("stat /")
	if out, err := x.run("recover", "--all"); err != nil {
		t.Errorf("recover: %q, %v", out, err)
	}
	x.end()
}

// The target's server is killed meanwhile: its calls wait for another one, or are answered by it. Others go on, and when the file system answers the target's calls
// end as ever, with its faults.
func TestServerIsKilledWhereClosesHang(t *testing.T) {
	x := newHungCloses(t)
	x.inject(x.h, x.data, "io error=EIO op=fsync ttl=5m")
	x.h.is("EIO", "fsync f")
	server := x.serverOf(x.keeperOf(x.h))
	x.fs.ok("hang closes")
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	x.h.ok("behind f 4 6")
	x.othersGoOn()
	untraced(t, x.h.pid())
	x.fs.ok("go")
	x.h.is("ok 456789", "result")
	x.h.is("EIO", "fsync f")
	if out, err := x.run("recover", "--all"); err != nil {
		t.Errorf("recover: %q, %v", out, err)
	}
	x.end()
}

// serverOf is the server that this keeper has started.
func (r *rig) serverOf(keeper int) int {
	r.t.Helper()
	for _, pid := range r.processes("server") {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil && strings.Contains(string(b), fmt.Sprintf("\nPPid:\t%d\n", keeper)) {
			return pid
		}
	}
	r.t.Fatalf("keeper %d has no server", keeper)
	return 0
}
