package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/failpoint"
	"github.com/faultgraft/faultgraft/test/programs"
)

// heir is a process that has got the number of one that has ended, and has nothing to do with any target. It sleeps.
type heir struct {
	t      testing.TB
	pid    int
	before string
}

// inherits starts one, in the place of a process that has ended, or is about to. It has a file open, if there is a path.
func (r *rig) inherits(pid int, path string) *heir {
	r.t.Helper()
	script := "exec sleep 10000"
	if path != "" {
		script += " 3<>" + path
	}
	cmd := exec.Command(programs.MustGo(r.t, "test/withpid"), fmt.Sprint(pid), "sh", "-c", script)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	x := &heir{t: r.t, pid: pid}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if string(comm) == "sleep\n" && strings.Contains(string(b), "nanosleep") {
			break
		}
		if time.Now().After(end) {
			r.t.Fatalf("process %d is %q in %q", pid, comm, b)
		}
	}
	x.before = x.look()
	return x
}

// look is all that could have been done to it. A thread that was stopped, got a signal or ran code of ours has been scheduled.
func (x *heir) look() string {
	x.t.Helper()
	var all strings.Builder
	for _, f := range []string{"stat", "status", "mountinfo", "fdinfo/3", "limits"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", x.pid, f))
		if err != nil && (f != "fdinfo/3" || !errors.Is(err, os.ErrNotExist)) {
			x.t.Errorf("process %d is gone: %v", x.pid, err)
		}
		for l := range strings.Lines(string(b)) {
			switch {
			case f == "mountinfo" && !strings.Contains(l, "fuse.faultgraft"): // tests beside this one mount
			case f == "mountinfo" && strings.Contains(l, os.TempDir()+"/Test") && !strings.Contains(l, filepath.Base(x.t.TempDir())):
			case f == "stat":
				fields := strings.Fields(l)
				all.WriteString(strings.Join(fields[:4], " ") + " " + fields[21] + "\n") // number, name, state, parent, start
			case f != "status" || strings.HasPrefix(l, "TracerPid") || strings.HasPrefix(l, "voluntary_ctxt_switches") || strings.HasPrefix(l, "Sig") && !strings.HasPrefix(l, "SigQ"): // that is the user's
				all.WriteString(l)
			}
		}
	}
	link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", x.pid))
	return all.String() + link
}

// untouched: it lives, and nothing was done to it.
func (x *heir) untouched() {
	x.t.Helper()
	if now := x.look(); now != x.before {
		x.t.Errorf("process %d, which is none of ours, was\n%s\nand is\n%s", x.pid, x.before, now)
	}
}

// A process of the target ends while it is grafted or ungrafted, after it was looked at and before it is stopped, and its number is given to
// another one at once: to one that does not belong to the target, to which nothing is done, or to a new one of the target, which has what it
// opened on the layer like all others.
func TestProcessIDIsGivenAway(t *testing.T) {
	for _, job := range []string{"graft", "ungraft"} {
		for _, step := range some("seize").or("scan", "replace") {
			for _, who := range []string{"stranger", "of the target"} {
				t.Run(strings.Join([]string{job, step, who}, "/"), func(t *testing.T) {
					t.Parallel()
					r := newRig(t)
					f, other := r.write("f", "0123456789"), r.write("g", "abcdef")
					h := r.start()
					inside := []string{"nsenter", "--target", fmt.Sprint(h.pid()), "--mount", binaries.holder}
					doomed := r.startWith(inside...)
					h.ok("open f %s rdwr", f)
					doomed.ok("open f %s rdwr", f)
					before := h.snapshot()
					const rule = "io error=EIO op=fsync ttl=5m"
					args := []string{"inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, rule}
					if job == "ungraft" {
						r.env = []string{failing("swapper ungraft", "stop:"+step)}
						args = []string{"recover", r.inject(h, r.data, rule).ID}
					} else {
						r.env = []string{failing("swapper graft", "stop:"+step)}
					}
					cmd, out := r.stopAt("", args...)
					pid := doomed.pid()
					doomed.stop()
					var next *holder
					var stranger *heir
					if who == "stranger" {
						stranger = r.inherits(pid, other)
					} else {
						next = r.startWith(append([]string{programs.MustGo(t, "test/withpid"), fmt.Sprint(pid)}, inside...)...)
						next.ok("open g %s rdwr", other)
					}
					r.goOn(t)
					if err := ended(cmd); err != nil {
						t.Fatalf("%s: %v: %s%s", job, err, out.String(), r.logs())
					}
					want := "ok"
					if job == "graft" {
						want = "EIO"
					}
					h.is(want, "fsync f")
					if next != nil {
						next.is(want, "fsync g")
						if out, err := r.run("recover", "--all"); err != nil {
							t.Errorf("recover: %v: %s", err, out)
						}
						next.is("ok", "fsync g")
						next.is("ok abcdef", "read g 100")
						next.stop()
					} else {
						stranger.untouched()
						if out, err := r.run("recover", "--all"); err != nil {
							t.Errorf("recover: %v: %s", err, out)
						}
						stranger.untouched()
					}
					same(t, before, h.snapshot())
				})
			}
		}
	}
}

// The process that a target is named by ends in the middle of a graft, and another one has its number: it is refused in words, and nothing is done to that one.
func TestFirstProcessIDIsGivenAway(t *testing.T) {
	for _, point := range some("swapper graft.resolve", "keeper start.ready", "client.ready").or("keeper graft.listed", "keeper graft.swapper", "swapper graft.layer", "swapper graft.served", "swapper graft.seize") {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			inNamespace := slices.Contains([]string{"swapper graft.layer", "swapper graft.served", "swapper graft.seize"}, point)
			r := newRig(t)
			f := r.write("f", "0123456789")
			h := r.start()
			h.ok("open f %s rdwr", f)
			cmd := r.command("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m")
			cmd.Env = append(cmd.Env, failpoint.At+"=stop:"+point)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_, resume := r.stoppedAt(point)
			pid := h.pid()
			h.stop()
			stranger := r.inherits(pid, f)
			resume()
			// Once the swapper is in the target's namespace, the layer may come to it, and goes when the end is seen.
			if err := ended(cmd); err != nil && !strings.Contains(out.String(), "has ended") || err == nil && !inNamespace {
				t.Errorf("inject: %v: %s", err, out.String())
			}
			stranger.untouched()
			r.awaitNone()
			stranger.untouched()
		})
	}
}

// Keeper, server and holder of a graft are killed, and their numbers given to others. Whatever is done to find what
// they left and to take it off, nothing is done to those.
func TestOurProcessIDsAreGivenAway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	f := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", f)
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	h.is("EIO", "fsync f")
	var pids []int
	for _, l := range r.leftovers() {
		if pid, ok := processIn(l); ok {
			pids = append(pids, pid)
		}
	}
	if len(pids) != 3 {
		t.Fatalf("keeper, server and holder: %q", r.leftovers())
	}
	r.killAll(g)
	var heirs []*heir
	for _, pid := range pids {
		heirs = append(heirs, r.inherits(pid, ""))
	}
	agent := r.agent()
	for _, args := range [][]string{{"ps"}, {"recover", "--orphans"}, {"recover", "--all"}, {"stop", "--all", "--reason", "a test"}, {"release"}} {
		if out, err := r.run(args...); err != nil {
			t.Errorf("%q: %v: %s", args, err, out)
		}
		for _, x := range heirs {
			x.untouched()
		}
	}
	same(t, before, h.snapshot())
	h.is("ok", "fsync f")
	r.recover(r.inject(h, r.data, "io error=EIO op=fsync ttl=5m"))
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); alive(agent.Process.Pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the agent does not end")
		}
	}
	if out, err := r.run("recover", "--all", "--purge"); err != nil {
		t.Errorf("recover --all --purge: %v: %s", err, out)
	}
	for _, x := range heirs {
		x.untouched()
	}
}

// alive: the number is a process's that has not ended.
func alive(pid int) bool { s := state(pid); return len(s) == 1 && s != "Z" }

// A server is killed, and its number given away before the next one waits for its end.
func TestServerIDIsGivenAway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	h.ok("open f %s rdwr", r.write("f", "0123456789"))
	before := h.snapshot()
	r.env = []string{failing("server follow", "stop:started")}
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	h.is("EIO", "fsync f")
	server := r.oneServer()
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, resume := r.stoppedAt("server follow.started")
	stranger := r.inherits(server, "")
	resume()
	r.awaitTakeovers(1)
	stranger.untouched()
	h.is("EIO", "fsync f")
	r.recover(g)
	stranger.untouched()
	same(t, before, h.snapshot())
}

// The server of a keeper that does not answer ends by itself after the keeper was killed for that, and its number is given away: `stop --all`,
// which kills that server if it does nothing, leaves the other one alone.
func TestServerIDIsGivenAwayWhileStopping(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	h.ok("open f %s rdwr", r.write("f", "0123456789"))
	before := h.snapshot()
	r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	h.is("EIO", "fsync f")
	server, mute := r.oneServer(), r.keeperOf(h)
	holder := 0
	for _, l := range r.leftovers() {
		if pid, ok := processIn(l); ok && pid != server && pid != mute {
			holder = pid
		}
	}
	for _, pid := range []int{server, holder, mute} {
		suspend(t, pid)
	}
	cmd := r.command("stop", "--all", "--reason", "a test")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); alive(mute); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the keeper is not killed")
		}
	}
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	stranger := r.inherits(server, "")
	if err := ended(cmd); err == nil || !strings.Contains(out.String(), "that the layer comes off is tried on") {
		t.Errorf("stop: %v: %s", err, out.String()) // by the holder, which does nothing yet
	}
	stranger.untouched()
	if err := syscall.Kill(holder, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	r.awaitUnmounted(h, time.Minute)
	h.ok("stat /")
	stranger.untouched()
	same(t, before, h.snapshot())
}
