package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// cgroup is one of the test's own, below the one that the test is in.
type cgroup struct {
	t   testing.TB
	dir string
	v2  bool
}

// memoryGroup makes a cgroup with a memory limit in bytes, of whichever version has that controller. Without one the test is skipped.
func memoryGroup(t testing.TB, limit int64) *cgroup {
	t.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	g := &cgroup{t: t}
	for _, l := range strings.Split(strings.TrimSpace(string(own)), "\n") { // cgroups(7): id:controllers:path
		f := strings.SplitN(l, ":", 3)
		switch {
		case len(f) < 3:
		case strings.Contains(","+f[1]+",", ",memory,"):
			g.dir, g.v2 = "/sys/fs/cgroup/memory"+f[2], false
		case f[1] == "" && g.dir == "":
			g.dir, g.v2 = "/sys/fs/cgroup"+f[2], true
		}
	}
	if g.dir == "" {
		t.Skipf("no cgroups are mounted: /proc/self/cgroup has %q", own)
	}
	if g.v2 {
		// Where the test's own cgroup has processes it cannot give controllers to one below: "no internal processes", cgroups(7).
		g.dir = filepath.Dir(g.dir)
		if b, err := os.ReadFile(g.dir + "/cgroup.subtree_control"); err != nil || !strings.Contains(" "+string(b), " memory") {
			t.Skipf("no memory cgroup of the test's own: %s has %q for those below it, %v", g.dir, b, err)
		}
	}
	if g.dir, err = os.MkdirTemp(g.dir, "faultgraft-test-"); err != nil {
		t.Skipf("no memory cgroup of the test's own: %v", err)
	}
	t.Cleanup(g.removed)
	file := "memory.limit_in_bytes"
	if g.v2 {
		file = "memory.max"
	}
	g.set(file, fmt.Sprint(limit))
	return g
}

// removed takes the cgroup away.
func (g *cgroup) removed() {
	g.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := os.Remove(g.dir) // EBUSY until the kernel has let go of the processes
		if err == nil {
			return
		}
		if time.Now().After(end) {
			procs, _ := os.ReadFile(g.dir + "/cgroup.procs")
			g.t.Errorf("%v; in it: %q", err, procs)
			return
		}
	}
}

func (g *cgroup) set(file, value string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, file), []byte(value), 0); err != nil {
		g.t.Fatal(err)
	}
}

func (g *cgroup) add(pid int) { g.t.Helper(); g.set("cgroup.procs", fmt.Sprint(pid)) }

// kills is how often the OOM killer was at work there.
func (g *cgroup) kills() (n int) {
	g.t.Helper()
	file := "memory.oom_control"
	if g.v2 {
		file = "memory.events"
	}
	b, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		g.t.Fatal(err)
	}
	_, rest, _ := strings.Cut("\n"+string(b), "\noom_kill ")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		g.t.Fatalf("%s: %q", file, b)
	}
	return n
}
