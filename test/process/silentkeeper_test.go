package process

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	if out := silent("stop", "--all", "--reason", "incident 4711"); !strings.Contains(out, "1 fault") {
		t.Errorf("stop: %q", out)
	}
	same(t, before[1], well.snapshot())
	if out, err := r.run("release"); err != nil {
		t.Errorf("release: %q, %v", out, err)
	}
	mute.is("EIO", "fsync f")

	resume() // it finds the stop, which takes everything off, and nothing else that is to be done
	r.awaitOff(30*time.Second, "the stop is not carried out when the keeper goes on")
	same(t, before[0], mute.snapshot())
	for _, e := range r.events() {
		if e.Graft == mine.ID && e.Type == keeper.EventRules || e.Type == keeper.EventGraft && e.Target == mine.Target.ID && e.Path != p {
			b, _ := json.Marshal(e)
			t.Errorf("done although it was given up: %s", b)
		}
	}
}

// A keeper that was stopped for longer than calls between faultgraft's processes may take hears afterwards what its server had to tell: it lets
// go of files that were closed meanwhile, and of the locks on them.
func TestKeeperHearsWhatItMissed(t *testing.T) {
	r := newRig(t)
	p, q := r.write("f", "0123456789"), r.write("g", "0123456789")
	h, other := r.start(), r.start()
	h.ok("open f %s rdwr", p)
	h.ok("flock f")
	h.ok("open g %s rdwr", q)
	h.ok("flock g")
	r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	resume := suspend(t, r.keeperOf(h))
	h.ok("close f")
	other.is("EAGAIN", "trylock %s", p) // the keeper has the description too
	time.Sleep(11 * time.Second)        // callDeadline is over
	h.ok("close g")
	resume()
	for _, path := range []string{p, q} {
		for end := time.Now().Add(30 * time.Second); other.do("trylock %s", path) != "ok"; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the lock of %s, which is closed, stays held", path)
			}
		}
	}
}
