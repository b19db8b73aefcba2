package process

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/failpoint"
	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// keeperOf gives the process that keeps the grafts of a target: who listens on its socket.
func (r *rig) keeperOf(h *holder) int {
	r.t.Helper()
	sockets, err := filepath.Glob(filepath.Join(r.state, "keepers", fmt.Sprintf("pid-%d-*", h.pid()), "control.sock"))
	if err != nil || len(sockets) != 1 {
		r.t.Fatalf("sockets of keepers of %d: %q, %v", h.pid(), sockets, err)
	}
	c, err := wire.DialUnix(sockets[0])
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	peer, err := wire.PeerOf(c.(*net.UnixConn))
	if err != nil {
		r.t.Fatal(err)
	}
	return peer.PID
}

// suspend stops a process until the function that it returns is called, or the test ends.
func suspend(t *testing.T, pid int) (resume func()) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); state(pid) != "T"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d does not stop: %s", pid, state(pid))
		}
	}
	resume = func() {
		if err := unix.Kill(pid, unix.SIGCONT); err != nil && err != syscall.ESRCH {
			t.Error(err)
		}
	}
	t.Cleanup(resume)
	return resume
}

func state(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err.Error()
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1]
}

// A keeper that is stopped does not hold up a command: each ends with words, of which process it is and what to do, and does for other
// targets what it is asked for. The target works on, with its faults. When the keeper goes on, nothing that was given up is done late.
func TestKeeperIsStopped(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.write("f", "0123456789")
	other := filepath.Join(r.data, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	q := r.write("other/f", "0123456789")
	mute, well := r.start(), r.start()
	mute.ok("open f %s rdwr", p)
	mute.ok("open g %s rdwr", q)
	well.ok("open f %s rdwr", q)
	before := [2]map[string]string{mute.snapshot(), well.snapshot()}
	mine := r.inject(mute, p, "io error=EIO op=fsync ttl=5m")
	its := r.inject(well, other, "io error=EIO op=fsync ttl=5m")
	pid := r.keeperOf(mute)
	resume := suspend(t, pid)
	const rule = "io error=ENOSPC op=fsync ttl=5m"
	silent := func(args ...string) string {
		t.Helper()
		begin := time.Now()
		out, err := r.run(args...)
		if took := time.Since(begin); took > time.Minute { // a deadline was missed, not only a busy machine
			t.Errorf("%q took %v", args, took)
		}
		for _, want := range []string{fmt.Sprintf("keeper pid-%d-", mute.pid()), fmt.Sprintf("(process %d) does not answer", pid), fmt.Sprintf("kill -CONT %d", pid)} {
			if err == nil || strings.Count(err.Error(), want) != 1 {
				t.Errorf("%q: %q, %v; want %q once", args, out, err, want)
			}
		}
		return out
	}
	silent("inject", "--pid", fmt.Sprint(mute.pid()), "--path", other, rule)
	silent("update", mine.ID, rule)
	silent("release", mine.ID)
	silent("recover", mine.ID)
	if out := silent("ps", "-o", "json"); !strings.Contains(out, its.ID) || strings.Contains(out, mine.ID) {
		t.Errorf("ps: %s", out)
	}
	silent("show", mine.ID)
	mute.is("EIO", "fsync f")
	mute.ok("close f")
	mute.ok("open f %s rdwr", p)
	mute.is("ok 0123456789", "pread f 0 100")

	// The other target's are found and done at once.
	if out, err := r.run("update", its.ID, rule); err != nil {
		t.Errorf("update: %q, %v", out, err)
	}
	well.is("ENOSPC", "fsync f")
	if out, err := r.run("release", its.ID); err != nil {
		t.Errorf("release: %q, %v", out, err)
	}
	r.recover(its)
	same(t, before[1], well.snapshot())
	r.inject(well, other, rule)
	silent("recover", "--all")
	same(t, before[1], well.snapshot())
	its = r.inject(well, other, rule)
	if out, err := r.run("recover", "--orphans"); err != nil || strings.Contains(out, "recovered") { // they are nobody's orphans
		t.Errorf("recover --orphans: %q, %v", out, err)
	}
	well.is("ENOSPC", "fsync f")
	mute.is("EIO", "fsync f")

	resume() // it finds what it is asked for, and nothing else that is to be done
	r.recover(its)
	r.recover(mine)
	same(t, before[0], mute.snapshot())
	for _, e := range r.events() {
		if e.Graft == mine.ID && e.Type == keeper.EventRules || e.Type == keeper.EventGraft && e.Target == mine.Target.ID && e.Path != p {
			b, _ := json.Marshal(e)
			t.Errorf("done although it was given up: %s", b)
		}
	}
}

// P8: no fault outlives a stop of the node. A keeper that stands still is killed, and the layer taken off by whom its server starts; where
// that stands still too, by whom the holder starts.
func TestStopWithASilentKeeper(t *testing.T) {
	for _, still := range [][]string{{"keeper"}, {"keeper", "server"}} {
		t.Run(strings.Join(still, " and "), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			p := r.write("f", "0123456789")
			mute, well := r.start(), r.start()
			mute.ok("open f %s rdwr", p)
			mute.ok("lseek f 4")
			before := [2]map[string]string{mute.snapshot(), well.snapshot()}
			mine := r.inject(mute, r.data, "io error=EIO op=fsync ttl=5m")
			mute.is("EIO", "fsync f")
			server := r.oneServer()
			its := r.inject(well, r.data, "io error=EIO op=fsync ttl=5m")
			pid := r.keeperOf(mute)
			if len(still) == 2 {
				suspend(t, server)
			}
			suspend(t, pid)
			out, err := r.run("stop", "--all", "--reason", "incident 4711", "-o", "json")
			var report plugin.StopReport
			if jerr := json.Unmarshal([]byte(out), &report); err != nil || jerr != nil || !slices.Contains(report.Reverted, mine.ID) || !slices.Contains(report.Reverted, its.ID) {
				t.Fatalf("stop: %q, %v, %v%s", out, err, jerr, r.logs())
			}
			if f := report.Forced; len(f) != 1 || f[0].ID != mine.ID || !strings.Contains(f[0].Reason, fmt.Sprintf("(process %d) did not answer", pid)) {
				t.Errorf("what it says of the layer that it took off by force: %+v", f)
			}
			mute.is("ok", "fsync f")
			mute.is("ok 456789", "read f 100")
			mute.ok("lseek f 4")
			same(t, before[0], mute.snapshot())
			same(t, before[1], well.snapshot())
			if mark, err := keeper.ReadStopped(r.state); err != nil || mark == nil || !slices.Contains(mark.Grafts, mine.ID) {
				t.Errorf("known of the stop: %+v, %v", mark, err)
			}
			if out, err := r.run("release"); err != nil {
				t.Errorf("release: %q, %v", out, err)
			}
			g := r.inject(mute, r.data, "io error=EIO op=fsync ttl=5m")
			mute.is("EIO", "fsync f")
			r.recover(g)
		})
	}
}

// A command that is suspended while it starts a keeper holds up nobody who has to do with another target. Who wants one for the same is
// told which command it is.
func TestCommandIsSuspended(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.write("f", "0123456789")
	h, other := r.start(), r.start()
	other.ok("open f %s rdwr", p)
	const rule = "io error=EIO op=fsync ttl=5m"
	cmd := r.command("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, rule)
	cmd.Env = append(cmd.Env, failpoint.At+"=stop:client.folder")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for end := time.Now().Add(20 * time.Second); state(cmd.Process.Pid) != "T"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the command does not come to the point")
		}
	}
	g := r.inject(other, r.data, rule)
	other.is("EIO", "fsync f")
	r.recover(g)
	if out, err := r.run("recover", "--orphans"); err != nil {
		t.Errorf("recover --orphans: %q, %v", out, err)
	}
	out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, rule)
	for _, want := range []string{fmt.Sprintf("process %d (", cmd.Process.Pid), " inject --pid ", fmt.Sprintf("kill -CONT %d", cmd.Process.Pid)} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("inject: %q, %v; want %q", out, err, want)
		}
	}
	if err := unix.Kill(cmd.Process.Pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); len(r.list()) != 1; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the command that goes on has not grafted%s", r.logs())
		}
	}
}

// A keeper that was stopped for longer than calls between faultgraft's processes may take hears afterwards what its server had to tell: it lets
// go of files that were closed meanwhile, and of the locks on them. They are so many that the news of them does not fit into a socket.
func TestKeeperHearsWhatItMissed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.write("f", "0123456789")
	h, other := r.start(), r.start()
	h.ok("open f %s rdwr", p)
	h.ok("flock f")
	const many = 6000
	name := func(i int) string { return fmt.Sprintf("many%d", i) }
	for i := range many {
		h.ok("open %s %s rdwr", name(i), r.write(name(i), ""))
	}
	last := filepath.Join(r.data, name(many-1))
	h.ok("flock %s", name(many-1))
	r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	resume := suspend(t, r.keeperOf(h))
	h.ok("close f")
	told := time.Now()                  // that was the first call; what is closed from here on is told by the second
	other.is("EAGAIN", "trylock %s", p) // the keeper has the description too
	for i := range many {
		h.ok("close %s", name(i))
	}
	time.Sleep(time.Until(told.Add(22 * time.Second))) // callDeadline of both would be over
	resume()
	for _, path := range []string{p, last} {
		for end := time.Now().Add(30 * time.Second); other.do("trylock %s", path) != "ok"; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the lock of %s, which is closed, stays held%s", path, r.logs())
			}
		}
	}
}
