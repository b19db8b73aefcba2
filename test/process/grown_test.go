package process

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A file may grow after it was opened on the layer and before its descriptors
// lead there. The kernel knows the size of now when they do: it does not ask the
// layer each time that it uses it, and PostgreSQL takes an old one for a
// broken kernel ("unexpected data beyond EOF").
func TestFileGrowsDuringGraft(t *testing.T) {
	for _, rule := range []string{"io error=EIO op=read p=0 ttl=5m", "io error=EIO op=unlink ttl=5m"} {
		r := newRig(t)
		p := r.write("f", "0123456789")
		h := r.start()
		fd := strings.TrimPrefix(h.do("open f %s rdwr", p), "ok ")
		cmd := r.command("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, rule)
		cmd.Env = append(cmd.Env, "FAULTGRAFT_TEST_FAIL_AT=stop:swapper graft.seize")
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		swapper := r.awaitStopped()
		if swapper == 0 {
			t.Fatal("no swapper stopped")
		}
		h.ok("pwrite f 10 grown")
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for waiting := true; waiting; {
			_ = syscall.Kill(swapper, syscall.SIGCONT) // at each of its passes; it may have ended
			select {
			case err := <-ended:
				if err != nil {
					t.Fatalf("%v: %s", err, out.String())
				}
				waiting = false
			case <-time.After(20 * time.Millisecond):
			}
		}
		var x unix.Statx_t
		link := fmt.Sprintf("/proc/%d/fd/%s", h.pid(), fd)
		if err := unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, unix.STATX_SIZE, &x); err != nil || x.Size != 15 {
			t.Errorf("rule %q: the kernel has %d bytes for the size, %v; want 15", rule, x.Size, err)
		}
		h.is("ok 15", "stat %s", p)
	}
}
