package process

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An execve closes close-on-exec files of the layer while nobody may look at its process. Rules for closes that would have to look, because
// they are for a process tree or name an executable, leave it alone: the layer would wait for the execve, and the execve for the layer.
func TestExecveClosesFilesOfTheLayer(t *testing.T) { // not beside others: whoever looks at all processes meets this one
	for name, c := range map[string]struct {
		tree bool
		rule string
	}{
		"any process":    {false, "io latency=1ms op=flush ttl=5m"},
		"an executable":  {false, "io latency=1ms op=flush exe=/bin/** ttl=5m"},
		"a process tree": {true, "io latency=1ms op=all ttl=5m"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			p := r.write("f", "0123456789")
			h := r.startWith(binaries.holder)
			if !c.tree {
				h.stop()
				h = r.start()
			}
			h.ok("open f %s rdwr,cloexec", p)
			h.ok("open g %s rdwr,cloexec", p)
			g := r.inject(h, r.data, c.rule)
			if _, err := fmt.Fprintln(h.in, "exec /bin/cat"); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(20 * time.Second); !h.isCalled("cat"); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					_ = unix.Kill(r.keeperOf(h), unix.SIGKILL) // else nothing can be cleaned up
					t.Fatal("the execve does not come to its end")
				}
			}
			if got := h.do("hello"); got != "hello" {
				t.Errorf("the program says %q", got)
			}
			r.recover(g)
			h.stop()
		})
	}
}

// isCalled compares the name of a process, which can be had at any time; an execve sets it after it has closed files.
func (h *holder) isCalled(comm string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", h.pid()))
	return err == nil && strings.TrimSpace(string(b)) == comm
}

// The keeper dies while its target is within an execve that hangs, somewhere else: faults end, nothing waits for the execve but what has to be moved
// in that process, and the layer comes off when it goes on.
func TestKeeperDiesWhileItsTargetExecs(t *testing.T) { // not beside others: whoever looks at all processes meets this one
	r := newRig(t)
	point := t.TempDir()
	fs := r.hungfs(point)
	if err := os.WriteFile(point+"/slow", []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	h.ok("open slow %s/slow rdwr,cloexec", point)
	r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	fs.ok("hang closes")
	echo := h.begin("exec /bin/cat")
	withinExec(t, h.pid())
	if err := unix.Kill(r.keeperOf(h), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) { // until another one says what it has
		if out, err := r.run("ps"); err == nil && !strings.Contains(out, "active") {
			break
		} else if time.Now().After(end) {
			t.Fatalf("ps: %q, %v%s", out, err, r.logs())
		}
	}
	fs.ok("go")
	if _, err := fmt.Fprintln(h.in, "hello"); err != nil {
		t.Fatal(err)
	}
	if got := <-echo; got != "hello" {
		t.Errorf("the program says %q", got)
	}
	for end := time.Now().Add(60 * time.Second); len(r.list()) > 0 || strings.Contains(h.mountinfo(), "fuse.faultgraft"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the layer does not come off: %+v%s", r.list(), r.logs())
		}
	}
	if left := onLayer(t, h.pid(), r.data); left != "" {
		t.Errorf("on a layer still: %s", left)
	}
	h.stop()
	fs.stop()
}
