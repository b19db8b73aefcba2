package process

import (
	"fmt"
	"os"
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
	cmd.Env = append(cmd.Env, "FAULTGRAFT_TEST_FAIL_AT=stop:hand over")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	server, swapper := 0, 0
	for end := time.Now().Add(20 * time.Second); swapper == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for _, l := range leftovers(t) {
			var pid int
			if _, err := fmt.Sscanf(l, "/proc/%d/exe", &pid); err != nil {
				continue
			}
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may have ended
			switch {
			case strings.Contains(l, " server "):
				server = pid
			case strings.Contains(l, " swap ") && strings.Contains(string(stat), ") T "):
				swapper = pid
			}
		}
	}
	if server == 0 || swapper == 0 {
		t.Errorf("server %d, stopped swapper %d", server, swapper)
	} else if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Error(err)
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
	cmd.Env = append(cmd.Env, "FAULTGRAFT_TEST_FAIL_AT=stop:hand over")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	swapper := 0
	for end := time.Now().Add(20 * time.Second); swapper == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for _, l := range leftovers(t) {
			var pid int
			if _, err := fmt.Sscanf(l, "/proc/%d/exe", &pid); err != nil {
				continue
			}
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may have ended
			if strings.Contains(l, " swap ") && strings.Contains(string(stat), ") T ") {
				swapper = pid
			}
		}
	}
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
