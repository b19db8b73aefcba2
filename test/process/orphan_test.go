package process

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/failpoint"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// P4, P15: with all that stood by a target killed at once, nobody serves its layer.
// `recover --orphans` takes it off without any of them, and gives back what is open by its path.
func TestOrphanedLayer(t *testing.T) {
	r := newRig(t)
	h := r.startFaulted("10m")
	other := r.start()
	q := r.write("q", "beside")
	other.ok("open q %s rdonly", q)
	held := r.inject(other, r.data, "io error=EIO op=fsync ttl=10m")
	r.killAll(h.graft)
	h.losesItsServer()
	out, err := r.run("recover", "--orphans", "-o", "json")
	if err != nil {
		t.Fatalf("recover --orphans: %v", err)
	}
	var off []keeper.Graft
	if err := json.Unmarshal([]byte(out), &off); err != nil || len(off) != 1 || off[0].ID != h.graft.ID || off[0].Path != r.data {
		t.Errorf("recovered: %s, %v", out, err)
	}
	h.asBefore()
	if l := r.list(); len(l) != 1 || l[0].ID != held.ID || l[0].State != keeper.StateActive {
		t.Errorf("what somebody holds: %+v", l)
	}
	other.is("EIO", "fsync q")
	if left, err := os.ReadDir(r.state + "/keepers"); err != nil || len(left) != 1 { // that of the one that lives
		t.Errorf("folders of keepers: %v, %v", left, err)
	}
}

// P4: a layer whose server is dead at the moment, while its keeper lives and is about to take it off, is not taken away from it: not by
// the `recover` of another state directory, and by that of its own only with --all. The moment is held by a stop of the keeper, the
// second one: the first had the connection open as well.
func TestLayerThatSomebodyStandsBy(t *testing.T) {
	for _, c := range []struct {
		name         string
		own, another bool
	}{
		{"its keeper goes on", false, false},
		{"its state directory recovers all", true, false},
		{"another version recovers all", true, true}, // what the keeper has open of the layer is not taken for the target's
	} {
		t.Run(c.name, func(t *testing.T) {
			other, r := newRig(t), newRig(t)
			const step = "reverting"
			r.env = []string{failing("keeper ungraft", "stop:"+step)}
			h := r.startFaulted("10m")
			if err := syscall.Kill(r.keeperOf(h.holder), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			follower, resume := r.stoppedAt("keeper ungraft." + step)
			for _, l := range r.leftovers() {
				if pid, ok := processIn(l); ok && pid != follower {
					if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
			}
			h.losesItsServer()
			leftAlone := func(asking *rig, args ...string) {
				t.Helper()
				out, err := asking.command(args...).CombinedOutput()
				if err != nil && asking == other {
					t.Errorf("%q: %v: %s", args, err, out)
				}
				for _, want := range []string{"left alone: the layer of graft " + h.graft.ID, fmt.Sprintf("process %d, of the state directory %s", follower, r.state)} {
					if strings.Count(string(out), want) != 1 {
						t.Errorf("%q says %q, want %q once", args, out, want)
					}
				}
				if !strings.Contains(h.mountinfo(), "fuse.faultgraft") {
					t.Fatalf("%q took the layer off: %s", args, out)
				}
			}
			leftAlone(other, "recover", "--orphans")
			leftAlone(other, "recover", "--all")
			leftAlone(r, "recover", "--orphans")
			if c.another {
				r.install(binaries.faultgraft)
			}
			if c.own {
				has := openOn(t, follower)
				out, err := r.command("recover", "--all").CombinedOutput()
				if err == nil || !strings.Contains(string(out), "recovered "+h.graft.ID) { // the error is about the keeper that does not answer
					t.Errorf("recover --all: %v: %s", err, out)
				}
				if strings.Contains(h.mountinfo(), "fuse.faultgraft") {
					t.Errorf("recover --all leaves the layer: %s", out)
				}
				same(t, h.before, h.snapshot())
				if is := openOn(t, follower); !slices.Equal(is, has) {
					t.Errorf("its keeper has open\n%q, and had\n%q", is, has)
				}
			}
			resume()
			r.awaitUnmounted(h.holder, time.Minute)
			r.awaitOff(time.Minute, "the keeper does not come to its end")
			h.asBefore()
		})
	}
}

// losesItsServer waits until nobody serves the layer any more.
func (o *faulted) losesItsServer() {
	o.t.Helper()
	for end := time.Now().Add(30 * time.Second); o.do("stat %s", o.file) != "ENOTCONN"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			o.t.Fatalf("stat: %s", o.do("stat %s", o.file))
		}
	}
}

// openOn lists what a process has open, with the mounts that it is on. None of it is asked for.
func openOn(t *testing.T, pid int) (open []string) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		b, err := os.ReadFile(fd)
		if err != nil {
			t.Fatal(err)
		}
		_, mount, _ := strings.Cut(string(b), "mnt_id:\t")
		mount, _, _ = strings.Cut(mount, "\n")
		open = append(open, filepath.Base(fd)+" on "+mount)
	}
	return open
}

// stoppedAt waits for the process that stops itself at a failpoint, and gives what lets it go on.
func (r *rig) stoppedAt(point string) (pid int, resume func()) {
	r.t.Helper()
	mark := filepath.Join(r.reached, failpoint.Mark("stop", point))
	for end := time.Now().Add(time.Minute); pid == 0 || state(pid) != "T"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("nobody stops at %s%s", point, r.logs())
		}
		b, _ := os.ReadFile(mark) // not there yet
		pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	resume = func() { _ = syscall.Kill(pid, syscall.SIGCONT) } // it may have ended
	r.t.Cleanup(resume)
	return pid, resume
}

// killAll kills the keeper, the server and whoever else holds a graft, at once.
func (r *rig) killAll(g keeper.Graft) {
	r.t.Helper()
	var pids []int
	for _, l := range r.leftovers() {
		if pid, ok := processIn(l); ok && r.holds(pid, g) {
			pids = append(pids, pid)
		}
	}
	if len(pids) < 2 {
		r.t.Fatalf("processes of graft %s: %v in %q", g.ID, pids, r.leftovers())
	}
	for _, pid := range pids { // stopped first, so that none does anything for another's death
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			r.t.Fatal(err)
		}
	}
}

// holds: a keeper names its target, and the others descend from it.
func (r *rig) holds(pid int, g keeper.Graft) bool {
	for range 5 {
		args, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline") // it may have ended
		if strings.Contains(string(args), fmt.Sprintf("\x00pid-%d-", g.Target.PID)) {
			return true
		}
		stat, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		_, after, found := strings.Cut(string(stat), "PPid:\t")
		parent, _, _ := strings.Cut(after, "\n")
		if pid, _ = strconv.Atoi(parent); !found || pid <= 1 {
			return false
		}
	}
	return false
}
