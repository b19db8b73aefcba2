package process

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// freezer is a cgroup that can be frozen, of whichever version there is.
func freezer(t testing.TB) (g *cgroup, freeze, thaw func()) {
	t.Helper()
	for _, c := range []struct {
		base, file, freeze, thaw, state string
		v2                              bool
	}{
		{"/sys/fs/cgroup", "cgroup.freeze", "1", "0", "cgroup.events", true},
		{"/sys/fs/cgroup/unified", "cgroup.freeze", "1", "0", "cgroup.events", true},
		{"/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED", "freezer.state", false},
	} {
		if _, err := os.Stat(c.base + "/cgroup.procs"); err != nil {
			continue
		}
		dir, err := os.MkdirTemp(c.base, "faultgraft-test-")
		if err != nil {
			continue
		}
		g := &cgroup{t: t, dir: dir, v2: c.v2}
		t.Cleanup(func() {
			g.set(c.file, c.thaw)
			g.removed()
		})
		return g, func() { g.set(c.file, c.freeze) }, func() { g.set(c.file, c.thaw) }
	}
	t.Skip("no cgroup of the test's own that can be frozen")
	return nil, nil, nil
}

// A target that is paused in the middle of a graft, as a container is by `nerdctl pause`: the graft comes to
// an end by its deadline, with words or without, and when the target goes on, it is on the layer or not, whole.
func TestTargetIsPausedInMidGraft(t *testing.T) {
	for _, step := range some("scan", "check").or("layer", "seize", "stopped", "inject", "stage", "mount", "commit", "release", "hand over") {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			group, freeze, thaw := freezer(t)
			h, _ := r.pair()
			group.add(h.pid())
			before := h.snapshot()
			cmd, out := r.stopAt(step, "inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=5m")
			freeze()
			r.goOn(t)
			err := ended(cmd)
			t.Logf("paused: %v: %s", err, out.String())
			if err != nil && !strings.Contains(out.String(), "frozen") && !strings.Contains(out.String(), "did not") {
				t.Errorf("it does not say why: %s", out.String())
			}
			thaw()
			if err == nil {
				h.is("EIO", "fsync f")
				r.recover(r.list()[0])
			}
			r.awaitNone()
			h.is("ok", "fsync f")
			h.is("ok 456789", "read f 100")
			h.ok("lseek f 4")
			h.is("ok 0123", "peek M 0 4")
			h.is("ok "+r.data, "getcwd")
			untraced(t, h.pid())
			same(t, before, h.snapshot())
			g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
			h.is("EIO", "fsync f")
			r.recover(g)
			same(t, before, h.snapshot())
		})
	}
}

// The same on the way back: when the target goes on, the layer comes off, at the latest with the next try.
func TestTargetIsPausedInMidUngraft(t *testing.T) {
	for _, step := range some("unmount").or("scan", "seize", "stopped", "stage", "commit", "check", "release") {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.env = append(r.env, failing("swapper ungraft", "stop:"+step))
			group, freeze, thaw := freezer(t)
			h, _ := r.pair()
			group.add(h.pid())
			before := h.snapshot()
			g := r.inject(h, r.data, "io error=EIO op=fsync ttl=5m")
			cmd, out := r.stopAt("", "recover", g.ID)
			freeze()
			r.goOn(t)
			err := ended(cmd)
			t.Logf("paused: %v: %s", err, out.String())
			thaw()
			r.awaitNone()
			h.is("ok", "fsync f")
			h.is("ok 456789", "read f 100")
			h.ok("lseek f 4")
			h.is("ok "+r.data, "getcwd")
			untraced(t, h.pid())
			same(t, before, h.snapshot())
		})
	}
}
