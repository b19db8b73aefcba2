package process

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"golang.org/x/sys/unix"
)

// small makes the rig's state directory one on a file system of its own, of so many KiB, and returns its mount point.
func (r *rig) small(kib int) string {
	r.t.Helper()
	dir := r.t.TempDir()
	if err := unix.Mount("state", dir, "tmpfs", 0, fmt.Sprintf("size=%dk,mode=755", kib)); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			r.t.Error(err)
		}
	})
	return dir
}

// ballast fills a file system to its last byte and returns how to make room again.
func ballast(t *testing.T, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 16; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// The disk is full for state and audit log: what is there is served on, goes by its rules, and comes off, by all ways; what is asked
// for works or is refused in words. When there is room again, everything is on record that happens then, line by line.
func TestStateDirectoryIsFull(t *testing.T) {
	r := newRig(t)
	dir := r.small(512)
	r.state = filepath.Join(dir, "state")
	h := r.start()
	h.ok("open f %s rdwr", r.write("f", "0123456789"))
	before := h.snapshot()
	r.agent()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	other := r.start()
	other.ok("open f %s rdwr", filepath.Join(r.data, "f"))
	r.inject(other, r.data, "io error=EIO op=fsync ttl=5m")
	full := ballast(t, dir)
	for range 50 {
		h.is("EIO", "fsync f")
	}
	if l := r.list(); len(l) != 2 {
		t.Errorf("ps: %+v", l)
	}
	r.recover(g)
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
	out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m")
	t.Logf("inject on a full disk: %q, %v", out, err)
	if err != nil && !strings.Contains(err.Error(), "no space left") {
		t.Errorf("it does not say why: %v", err)
	}
	if err == nil {
		h.is("EIO", "fsync f")
	}
	// In an emergency, too: everything comes off although the order cannot be written down.
	out, err = r.run("stop", "--all", "--reason", "the disk is full")
	t.Logf("stop on a full disk: %q, %v", out, err)
	if err != nil || !strings.Contains(out, "no space left") {
		t.Errorf("stop: %v", err)
	}
	if _, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m"); err == nil {
		t.Error("the node is not stopped")
	}
	r.awaitOff(30*time.Second, "left after the stop")
	h.is("ok", "fsync f")
	other.is("ok", "fsync f")
	same(t, before, h.snapshot())

	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if out, err := r.run("release"); err != nil {
		t.Errorf("release: %q, %v", out, err)
	}
	g = r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	h.is("EIO", "fsync f")
	r.recover(g)
	same(t, before, h.snapshot())
	for _, name := range []string{"events.jsonl", "audit.jsonl"} {
		hasWhole(t, filepath.Join(r.state, name), g)
	}
}

// hasWhole: a log has a graft from its beginning to its end, whatever came before it.
func hasWhole(t *testing.T, log string, g keeper.Graft) {
	t.Helper()
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	seen, bad := map[keeper.EventType]bool{}, 0
	for l := range bytes.Lines(b) {
		var e keeper.Event
		if json.Unmarshal(l, &e) != nil {
			bad++
		} else if e.Graft == g.ID {
			seen[e.Type] = true
		}
	}
	if !seen[keeper.EventGraft] || !seen[keeper.EventUngraft] {
		t.Errorf("%s does not have the graft that came with room again: %v, %d unreadable lines", log, seen, bad)
	}
	t.Logf("%s: %d unreadable lines", log, bad)
}

// The audit log's own disk is full: what is asked for is done, what is done is in the event log, and the agent says that it cannot write down who
// did it. With room again it does.
func TestAuditLogIsFull(t *testing.T) {
	r := newRig(t)
	dir := r.small(64)
	log := filepath.Join(dir, "audit.jsonl")
	if err := os.MkdirAll(r.state, 0o700); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("audit: {file: "+log+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.env = append(r.env, "FAULTGRAFT_CONFIG="+config)
	h := r.start()
	h.ok("open f %s rdwr", r.write("f", "0123456789"))
	before := h.snapshot()
	r.agent()
	r.recover(r.inject(h, r.data, "io error=EIO op=fsync ttl=5m"))
	full := ballast(t, dir)
	for range 3 {
		g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
		h.is("EIO", "fsync f")
		r.recover(g)
		h.is("ok", "fsync f")
		same(t, before, h.snapshot())
		hasWhole(t, filepath.Join(r.state, "events.jsonl"), g)
	}
	ready := func() (reason string) {
		t.Helper()
		client := httpTo(filepath.Join(r.state, plugin.SocketName))
		defer client.CloseIdleConnections()
		resp, err := client.Get("http://faultgraft/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var is plugin.Readiness
		if err := json.NewDecoder(resp.Body).Decode(&is); err != nil {
			t.Fatal(err)
		}
		for _, c := range is.Checks {
			if c.Name == "auditLog" {
				return c.Reason
			}
		}
		t.Fatalf("readiness: %+v", is)
		return ""
	}
	if why := ready(); !strings.Contains(why, log) || !strings.Contains(why, "no space left") {
		t.Errorf("readiness: %q", why)
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if why := ready(); why != "" {
		t.Errorf("readiness with room again: %q", why)
	}
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	r.recover(g)
	hasWhole(t, log, g)
}

// Without an inode left nothing is started, in words.
func TestStateDirectoryHasNoInodes(t *testing.T) {
	r := newRig(t)
	dir := r.small(512)
	r.state = filepath.Join(dir, "state")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "nr_inodes=2"); err != nil {
		t.Fatal(err)
	}
	h := r.start()
	h.ok("open f %s rdwr", r.write("f", "0123456789"))
	before := h.snapshot()
	out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m")
	if err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("inject: %q, %v", out, err)
	}
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "nr_inodes=1000"); err != nil {
		t.Fatal(err)
	}
	before = h.snapshot() // its mountinfo shows the number of inodes
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
	r.recover(g)
	same(t, before, h.snapshot())
}
