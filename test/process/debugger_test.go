package process

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// debugger is a program that traces the target, in its container.
type debugger struct {
	t   *testing.T
	cmd *exec.Cmd
}

// debug has a program of the machine trace a target. hold: the target stands still meanwhile.
func (r *rig) debug(t *testing.T, h *holder, hold bool) *debugger {
	t.Helper()
	args := []string{"strace", "-f", "-o", "/dev/null", "-p", fmt.Sprint(h.pid())}
	if hold {
		args = []string{"gdb", "-nx", "-batch", "-p", fmt.Sprint(h.pid()), "-ex", "shell echo held; exec sleep 600"}
	}
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Skip(err)
	}
	d := &debugger{t: t, cmd: exec.Command("nsenter", append([]string{"--mount", "--target", fmt.Sprint(h.pid()), "--"}, args...)...)}
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stdout = out
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.end)
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		said, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		if traced := d.traces(h); traced && !hold || strings.Contains(string(said), "held") {
			return d
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not trace the target: %s", args[0], said)
		}
	}
}

// traces: all threads of the target are traced, by this debugger.
func (d *debugger) traces(h *holder) bool {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", h.pid()))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", h.pid(), task.Name()))
		if err == nil && !strings.Contains(string(b), fmt.Sprintf("TracerPid:\t%d\n", d.cmd.Process.Pid)) {
			return false
		}
	}
	return true
}

// end kills it, which lets go of what it traces (ptrace(2)).
func (d *debugger) end() {
	if d.cmd.ProcessState != nil {
		return
	}
	_ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	_ = d.cmd.Wait()                                      // killed
}

// A target that a debugger traces is refused in words, and neither of the two notices; so is a change of rules that has to stop it. What came onto a
// layer before comes off when the debugger has gone, by itself, and faults end at once.
func TestTargetWithADebugger(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	words := func(d *debugger, args ...string) {
		t.Helper()
		out, err := r.run(args...)
		want := fmt.Sprintf("is traced by process %d (strace)", d.cmd.Process.Pid)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "detach") {
			t.Errorf("%q: %q, %v; want %q", args, out, err, want)
		}
		if !d.traces(h) {
			t.Errorf("%q took the target from its debugger", args)
		}
	}
	inject := []string{"inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m"}

	d := r.debug(t, h, false)
	words(d, inject...)
	h.is("ok 0123456789", "pread f 0 100")
	same(t, before, h.snapshot())
	d.end()

	g := r.inject(h, r.data, "io error=EACCES op=mkdir ttl=5m")
	d = r.debug(t, h, false)
	h.is("EACCES", "mkdir %s/new", r.data)
	words(d, "update", g.ID, "io corrupt=zero op=read ttl=5m") // for which the open file has to be moved
	h.is("EACCES", "mkdir %s/new", r.data)
	h.is("ok 0123456789", "pread f 0 100")
	words(d, "recover", g.ID)
	h.is("ok 0123456789", "pread f 0 100")
	h.is("ok", "mkdir %s/new", r.data) // its rules have ended
	d.end()
	r.awaitOff(60*time.Second, "the layer does not come off when the debugger has gone")
	same(t, before, h.snapshot())
}

// The same with a debugger that has stopped the target.
func TestTargetIsStoppedByADebugger(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	second := t.TempDir()
	h.ok("open f %s rdwr", p)
	h.ok("open second %s/f rdwr,creat", second)
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	d := r.debug(t, h, true)
	answer := h.begin("fsync f")
	for _, args := range [][]string{
		{"inject", "--pid", fmt.Sprint(h.pid()), "--path", second, "io error=EIO op=fsync ttl=5m"},
		{"recover", g.ID},
	} {
		if out, err := r.run(args...); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("is traced by process %d (gdb)", d.cmd.Process.Pid)) {
			t.Errorf("%q: %q, %v", args, out, err)
		}
		if !d.traces(h) {
			t.Errorf("%q took the target from its debugger", args)
		}
	}
	select {
	case got := <-answer:
		t.Errorf("the target goes on, in spite of its debugger: %q", got)
	default:
	}
	d.end()
	if got := <-answer; got != "ok" {
		t.Errorf("fsync, after the rules ended: %q", got)
	}
	r.awaitOff(60*time.Second, "the layer does not come off when the debugger has gone")
	same(t, before, h.snapshot())
}
