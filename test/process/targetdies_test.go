package process

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// awaitEnd waits until a target has ended that something else than the test ends.
func (h *holder) awaitEnd() {
	h.t.Helper()
	done := make(chan struct{})
	go func() { _ = h.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		h.t.Fatalf("the target does not end: %s", h.where())
	}
}

// where says what the threads of a target do in the kernel.
func (h *holder) where() string {
	var b strings.Builder
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", h.pid()))
	for _, f := range files {
		stat, _ := os.ReadFile(f)
		wchan, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "wchan"))
		fmt.Fprintf(&b, "%.40s in %s; ", stat, wchan)
	}
	return b.String()
}

// awaitNone waits until no graft is left, and no process of faultgraft.
func (r *rig) awaitNone() {
	r.t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left := r.list()
		// A server whose keeper has died starts another one: it is the last to go.
		if len(left) == 0 && len(r.processes("keeper")) == 0 && len(r.processes("server")) == 0 && len(r.processes("keeper")) == 0 {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("left: %+v%s", left, r.logs())
		}
	}
}

// A target that dies while it is grafted, at any step of it, leaves nothing behind, and another one that
// shares its files does not notice.
func TestTargetIsKilledInMidGraft(t *testing.T) {
	for _, step := range some("layer", "stopped", "mount", "hand over").or("scan", "seize", "inject", "stage", "commit", "check", "release") {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			h, other := r.pair()
			before := other.snapshot()
			cmd, out := r.stopAt(step, "inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m")
			if err := h.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			r.goOn(t)
			h.awaitEnd()
			if err := ended(cmd); err == nil {
				t.Logf("grafted before the end was seen: %s", out.String())
			} else {
				t.Logf("%s", out.String())
			}
			r.awaitNone()
			other.is("ok", "fsync f")
			other.is("ok 456789", "read f 100")
			other.ok("lseek f 4")
			same(t, before, other.snapshot())
		})
	}
}

// The same on the way back.
func TestTargetIsKilledInMidUngraft(t *testing.T) {
	for _, step := range some("stopped", "unmount").or("scan", "seize", "stage", "commit", "check", "release") {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.env = append(r.env, failing("swapper ungraft", "stop:"+step))
			h, other := r.pair()
			before := other.snapshot()
			g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
			cmd, out := r.stopAt("", "recover", g.ID)
			if err := h.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			r.goOn(t)
			h.awaitEnd()
			err := ended(cmd)
			t.Logf("%v: %s", err, out.String())
			r.awaitNone()
			other.is("ok", "fsync f")
			same(t, before, other.snapshot())
		})
	}
}

// stopAt starts a command whose swapper stops itself at a step ("": at that which the rig's environment names), and waits until it has.
func (r *rig) stopAt(step string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	r.t.Helper()
	var out bytes.Buffer
	cmd := r.command(args...)
	if step != "" {
		cmd.Env = append(cmd.Env, failing("swapper graft", "stop:"+step))
	}
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	if r.swapper = r.awaitStopped(); r.swapper == 0 {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		r.t.Fatalf("no swapper stopped: %s", out.String())
	}
	return cmd, &out
}

// goOn has the swapper that stopped go on.
func (r *rig) goOn(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(r.swapper, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// ended waits for the end of a command; one that does not come to it is an error of its own.
func ended(cmd *exec.Cmd) error {
	late := time.AfterFunc(90*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	return cmd.Wait()
}

// pair are a target and a bystander in namespaces of their own, with the same files.
func (r *rig) pair() (target, bystander *holder) {
	p := r.write("f", "0123456789")
	target, bystander = r.start(), r.start()
	for _, h := range []*holder{target, bystander} {
		h.ok("open f %s rdwr", p)
		h.ok("lseek f 4")
		h.ok("chdir %s", r.data)
	}
	target.ok("mmap M f 10 shared")
	return target, bystander
}

// A target that is killed while its threads wait in the layer, of a fault and of none, ends at once, and its graft with it.
func TestTargetIsKilledOnTheLayer(t *testing.T) {
	for name, rule := range map[string]string{"hang": "io hang op=read ttl=5m", "latency": "io latency=1h op=read ttl=2h"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			h, other := r.pair()
			before := other.snapshot()
			r.inject(h, r.data, rule)
			h.ok("behind f 0 100")
			stuck(t, h.pid())
			if err := h.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			h.awaitEnd()
			r.awaitNone()
			other.is("ok 456789", "read f 100")
			other.ok("lseek f 4")
			same(t, before, other.snapshot())
		})
	}
}

// The kernel's OOM killer takes a target with maps, dirty pages and a waiting thread on the layer.
func TestTargetIsOOMKilled(t *testing.T) {
	r := newRig(t)
	h, other := r.pair()
	before := other.snapshot()
	h.ok("open slow %s rdwr", r.write("slow", "content"))
	r.inject(h, r.data, "io latency=1h op=read path=/**/slow ttl=2h", "io error=EIO op=fsync ttl=1h")
	h.ok("open g %s/g rdwr,creat", r.data)
	h.ok("ftruncate g 1048576")
	h.ok("mmap G g 1048576 shared")
	h.ok("poke G 4096 dirty")
	h.ok("poke M 0 ABC")
	h.ok("behind slow 0 100")
	stuck(t, h.pid())
	group := memoryGroup(t, 64<<20)
	group.add(h.pid())
	answer := h.begin("eat 256")
	h.awaitEnd()
	if got := <-answer; got != "EOF" {
		t.Errorf("the target had the memory: %q", got)
	}
	if kills := group.kills(); kills == 0 {
		t.Error("the kernel did not kill it for want of memory")
	}
	r.awaitNone()
	other.is("ok ABC3", "pread f 0 4") // what it wrote to its map is in the file
	other.is("ok", "fsync f")
	same(t, before, other.snapshot())
	if b, err := os.ReadFile(filepath.Join(r.data, "g")); err != nil || len(b) != 1<<20 || !bytes.HasPrefix(b[4096:], []byte("dirty")) {
		t.Errorf("the file of its map: %d bytes, %v", len(b), err)
	}
}

// steps are those at which something happens to a target.
type steps []string

func some(s ...string) steps { return s }

// or adds steps where the time for all of them is given: FAULTGRAFT_TEST_LONG=1.
func (s steps) or(others ...string) steps {
	if os.Getenv("FAULTGRAFT_TEST_LONG") == "" {
		return s
	}
	return append(s, others...)
}
