package process

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// Each process that stands by can be killed: the target goes on, without its
// descriptors noticing, and the layer is taken off; with a server also where no other can follow it.
func TestKillServer(t *testing.T)      { signalled(t, "server", syscall.SIGKILL) }
func TestKillKeeper(t *testing.T)      { signalled(t, "keeper", syscall.SIGKILL) }
func TestTerminateKeeper(t *testing.T) { signalled(t, "keeper", syscall.SIGTERM) }

// A server that hangs is as good as dead to whoever wants the layer off.
func TestRecoverFromHungServer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.startFaulted("1m")
	r.signal("server", syscall.SIGSTOP)
	r.recover(h.graft)
	h.asBefore()
}

// So it is where the server hangs when its faults have ended already, and the swapper is about to begin.
func TestServerHangsInMidUngraft(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.env = []string{failing("keeper ungraft", "stop:quiet")}
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	done := make(chan error, 1)
	go func() {
		out, err := r.run("recover", g.ID)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		done <- err
	}()
	_, resume := r.stoppedAt("keeper ungraft.quiet")
	r.signal("server", syscall.SIGSTOP)
	resume()
	if err := <-done; err != nil {
		t.Errorf("recover: %v%s", err, r.logs())
	}
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
}

// A server that was stopped for longer than its keeper waits for an answer goes on, and so does its graft.
func TestServerIsStoppedForAWhile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	h.ok("open f %s rdwr", r.write("f", "0123456789"))
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	server := r.oneServer()
	r.killServer(syscall.SIGSTOP)
	r.list()                     // asks for its counters
	time.Sleep(12 * time.Second) // keeper.callDeadline, and some more
	r.list()
	if err := syscall.Kill(server, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		h.is("EIO", "fsync f")
		if l := r.list(); len(l) != 1 || l[0].State != keeper.StateActive || l[0].Takeovers != 0 {
			t.Fatalf("%+v%s", l, r.logs())
		}
		time.Sleep(100 * time.Millisecond)
	}
	if l := r.list(); l[0].Rules[0].Fired != 10 {
		t.Errorf("the counters are late: %+v", l[0].Rules)
	}
	r.recover(g)
	h.is("ok", "fsync f")
}

// processes are those of faultgraft with that role.
func (r *rig) processes(role string) (pids []int) {
	r.t.Helper()
	for _, l := range r.leftovers() {
		var pid int
		if _, err := fmt.Sscanf(l, "/proc/%d/exe", &pid); err == nil && strings.Contains(l, " "+role+" ") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// signal sends sig to the one process with that role.
func (r *rig) signal(role string, sig syscall.Signal) {
	r.t.Helper()
	pids := r.processes(role)
	if len(pids) != 1 {
		r.t.Fatalf("%d processes with role %s: %q", len(pids), role, r.leftovers())
	}
	if err := syscall.Kill(pids[0], sig); err != nil {
		r.t.Fatal(err)
	}
}

// awaitStopped waits until a swapper has stopped itself; 0: none has.
func (r *rig) awaitStopped() int { r.t.Helper(); return r.awaitOther(0) }

// awaitOther waits until a swapper has stopped itself that is not the one with this id; 0: none has.
func (r *rig) awaitOther(id int) int {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for _, pid := range r.processes("swap") {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may have ended
			if pid != id && strings.Contains(string(stat), ") T ") {
				return pid
			}
		}
	}
	return 0
}

func signalled(t *testing.T, role string, sig syscall.Signal) {
	r := newRig(t)
	r.env = noTakeover
	h := r.startFaulted("1m")
	r.signal(role, sig)
	if role == "keeper" {
		// The server hears of it when the socket closes, and ends the rules then.
		for end := time.Now().Add(30 * time.Second); h.do("fsync f") != "ok" && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
	}
	h.is("ok", "fsync f") // it waits, at most, and sees no error
	h.reads()
	r.awaitUnmounted(h.holder, 20*time.Second)
	h.ok("stat /") // the mount goes within the stop; an answer means that it is over
	h.asBefore()
}

// The keeper that a server starts when its own was killed is killed too, while it takes the layer off.
func TestKillKeeperAndTheNext(t *testing.T) {
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			r := newRig(t)
			h := r.startFaulted("1m")
			first := r.processes("keeper")
			r.signal("keeper", syscall.SIGKILL)
			killed := false
			for end := time.Now().Add(20 * time.Second); !killed && strings.Contains(h.mountinfo(), "fuse.faultgraft") && time.Now().Before(end); {
				for _, pid := range r.processes("keeper") {
					if pid != first[0] {
						time.Sleep(after)
						killed = syscall.Kill(pid, syscall.SIGKILL) == nil // it may have ended
					}
				}
			}
			t.Logf("killed the next one: %v", killed)
			for end := time.Now().Add(60 * time.Second); strings.Contains(h.mountinfo(), "fuse.faultgraft"); time.Sleep(50 * time.Millisecond) {
				h.reads()
				if time.Now().After(end) {
					t.Fatalf("still mounted%s", r.logs())
				}
			}
			h.ok("stat /") // the mount goes within the stop; an answer means that it is over
			h.asBefore()
		})
	}
}

// G22: a failure at any step rolls back whole.
func TestRollbackAtEachStep(t *testing.T) {
	for _, step := range []string{"resolve", "layer", "serve", "scan", "replace", "seize", "stopped", "inject", "stage", "mount", "commit", "check", "release", "hand over", "kill:mount", "kill:check"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			p := r.write("f", "0123456789")
			h := r.start()
			h.ok("open f %s rdwr", p)
			h.ok("lseek f 4")
			h.ok("mmap M f 10 shared")
			h.ok("chdir %s", r.data)
			before := h.snapshot()
			cmd := r.command("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=1m")
			cmd.Env = append(cmd.Env, failing("swapper graft", step))
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
	for _, step := range []string{"scan", "replace", "seize", "stopped", "unmount", "inject", "stage", "commit", "locks", "check", "release", "kill:unmount", "kill:check", "kill:release"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.env = append(r.env, failing("swapper ungraft", step))
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
