package process

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The server dies in the middle of a graft, with the layer mounted: the layer comes off, and the target has what it had.
func TestKillServerInMidGraft(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	cmd := r.command("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=1m")
	cmd.Env = append(cmd.Env, "FAULTGRAFT_TEST_FAIL_AT=stop:swapper graft.hand over")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if r.awaitStopped() == 0 {
		t.Error("no swapper stopped")
	} else {
		r.signal("server", syscall.SIGKILL)
	}
	if err := cmd.Wait(); err == nil {
		t.Errorf("no error: %s", out.String())
	}
	t.Log(out.String())
	if strings.Contains(h.mountinfo(), "fuse.faultgraft") {
		t.Errorf("still mounted%s", r.logs())
	}
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
}

// A command that is interrupted in the middle of a graft leaves none behind.
func TestInterruptedInject(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	cmd := r.command("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=1m")
	cmd.Env = append(cmd.Env, "FAULTGRAFT_TEST_FAIL_AT=stop:swapper graft.hand over")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	swapper := r.awaitStopped()
	_ = cmd.Process.Signal(syscall.SIGINT)
	if err := cmd.Wait(); err == nil {
		t.Error("no error")
	}
	if swapper == 0 {
		t.Fatal("no stopped swapper")
	}
	if err := syscall.Kill(swapper, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); len(r.list()) > 0 && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
}
