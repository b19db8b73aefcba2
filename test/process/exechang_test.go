package process

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// withinExec waits until a process is within an execve(2) that waits to close a file: who looks at it waits too (exec_update_lock), but for
// kernels that close the files before they take that lock (begin_new_exec in fs/exec.c, seen on Linux 6.12.117).
func withinExec(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		waitsIn := make(chan string, 1)
		go func() {
			_, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
			waitsIn <- string(b)
		}()
		select {
		case function := <-waitsIn:
			if function == "request_wait_answer" { // of FUSE
				return
			}
			time.Sleep(10 * time.Millisecond)
		case <-time.After(time.Second):
			return
		}
	}
	t.Fatal("the execve does not wait")
}

// A process that is within an execve which waits to close a file, on a file system that hangs, cannot be looked at.
// Grafts of others do not wait for it; one of its own is refused, and an ungraft leaves the layer to it until it goes on.
func TestExecveThatHangs(t *testing.T) { // not beside others: whoever looks at all processes meets this one
	r := newRig(t)
	point := t.TempDir()
	fs := r.hungfs(point)
	if err := os.WriteFile(point+"/slow", []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := r.write("f", "0123456789")
	h, late, other := r.start(), r.start(), r.start()
	for _, o := range []*holder{h, late} {
		o.ok("open f %s rdwr", p)
	}
	g := r.inject(late, r.data, "io error=EIO op=fsync ttl=5m")
	for _, o := range []*holder{late, other} {
		o.ok("open slow %s/slow rdwr,cloexec", point)
	}
	fs.ok("hang closes")
	for _, o := range []*holder{late, other} {
		o.begin("exec /bin/cat")
		withinExec(t, o.pid())
	}
	before := h.snapshot()
	mine := r.inject(h, r.data, "io error=ENOSPC op=fsync ttl=5m")
	h.is("ENOSPC", "fsync f")
	r.recover(mine)
	same(t, before, h.snapshot())
	if out, err := r.run("inject", "--pid", fmt.Sprint(other.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m"); err == nil || !strings.Contains(err.Error(), "execve") {
		t.Errorf("inject into a process that cannot be looked at: %q, %v", out, err)
	}
	if out, err := r.run("recover", g.ID); err != nil || !strings.Contains(out, "lingers") {
		t.Errorf("recover while a process cannot be looked at: %q, %v", out, err)
	}
	if out, err := r.run("recover", "--orphans"); err != nil {
		t.Errorf("recover --orphans while a process cannot be looked at: %q, %v", out, err)
	}
	fs.ok("go")
	for end := time.Now().Add(60 * time.Second); len(r.list()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the layer does not come off when the process can be looked at again%s", r.logs())
		}
		_, _ = r.run("recover", g.ID) // moves what is left; there may be nothing any more
	}
	h.stop()
	late.stop()
	other.stop()
	fs.stop()
}
