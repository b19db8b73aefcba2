package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/failpoint"
)

// A keeper is killed whose target has layers with names as long as they get, and as JSON likes them least, or more layers than
// descriptors go into one message: another one takes them all off.
func TestKillKeeperOfLongNames(t *testing.T) { killKeeperOf(t, 13, "<", 230) }

// Each has three descriptors, since its mount has peers: these are more than the 253 that the kernel takes in one message.
func TestKillKeeperOfManyLayers(t *testing.T) { killKeeperOf(t, 88, "d", 3) }

func killKeeperOf(t *testing.T, layers int, letter string, length int) {
	t.Parallel()
	r := newRig(t)
	h := r.sharedTarget()
	name := strings.Repeat(letter, length)
	deep := filepath.Join(r.data, name, name, name)
	for n := range layers {
		dir := filepath.Join(deep, fmt.Sprintf("%s%03d", name, n))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("0123456789"), 0o644); err != nil {
			t.Fatal(err)
		}
		h.ok("open f%d %s/f rdwr", n, dir)
	}
	before := h.snapshot()
	for n := range layers {
		r.inject(h, filepath.Join(deep, fmt.Sprintf("%s%03d", name, n)), "io error=EIO op=fsync ttl=30m")
	}
	h.is("EIO", "fsync f%d", layers-1)
	r.signal("keeper", syscall.SIGKILL)
	r.awaitUnmounted(h, 2*time.Minute)
	h.ok("stat /")
	for n := range layers {
		h.is("ok", "fsync f%d", n)
		h.is("ok 0123456789", "pread f%d 0 100", n)
	}
	same(t, before, h.snapshot())
}

// No keeper that a server starts can have what it hands over: the server leaves its layers to its holder, after some tries.
func TestServerCannotHandItsLayersOver(t *testing.T) {
	r := newRig(t)
	r.env = []string{failing("server inherit", "page"), failpoint.Times + "=100"}
	h := r.startFaulted("10m")
	server := r.oneServer()
	r.signal("keeper", syscall.SIGKILL)
	r.awaitUnmounted(h.holder, time.Minute)
	h.ok("stat /")
	h.asBefore()
	if _, err := os.Stat(filepath.Join(r.reached, failpoint.MarkOf("fail", "server inherit.page", 3))); err != nil {
		t.Errorf("not after three tries: %v", err)
	}
	if left := r.processes("server"); slices.Contains(left, server) {
		t.Errorf("the server goes on: %v", left)
	}
}

// ps knows nothing of the layers of a server whose keeper was killed and has no successor yet: it says so, with who that is.
func TestPsNamesServersWithoutAKeeper(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.startFaulted("10m")
	server := r.oneServer()
	resume := suspend(t, server)
	r.signal("keeper", syscall.SIGKILL)
	for _, format := range []string{"table", "json"} {
		out, err := r.run("ps", "-o", format)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d (server)", server)) || !strings.Contains(err.Error(), "kill -CONT") {
			t.Errorf("ps -o %s: %s, %v", format, out, err)
		}
		if format == "json" && out != "[]" {
			t.Errorf("ps -o json: %q", out)
		}
	}
	resume()
	r.awaitUnmounted(h.holder, 20*time.Second)
	h.asBefore()
	r.awaitOff(10*time.Second, "the graft stays on the list")
}
