package process

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// family are processes in one mount namespace that share nothing.
func (r *rig) family() []*holder {
	first := r.start()
	all := []*holder{first}
	for range 2 {
		all = append(all, r.startWith("nsenter", "--target", fmt.Sprint(first.pid()), "--mount", binaries.holder))
	}
	for i, h := range all {
		h.ok("open f %s rdwr", r.write(fmt.Sprint("f", i), "0123456789"))
		h.ok("lseek f 4")
		h.ok("chdir %s", r.data)
	}
	return all
}

func snapshots(all []*holder) (s []map[string]string) {
	for _, h := range all {
		s = append(s, h.snapshot())
	}
	return s
}

// Processes that share nothing are stopped one after another, and each only for
// its own exchange.
func TestProcessesAreStoppedOneAfterAnother(t *testing.T) {
	r := newRig(t)
	all := r.family()
	before := snapshots(all)
	g := r.inject(all[0], r.data, "io error=EIO op=fsync ttl=5m")
	check := func(what string, stops int, pause, longest float64) {
		t.Helper()
		if stops < len(all) || longest <= 0 || longest >= pause {
			t.Errorf("%s: %d stops, %v ms in all, %v ms the longest", what, stops, pause, longest)
		}
	}
	check("graft", len(g.Report.Stopped), g.PauseMs, g.LongestPauseMs)
	for _, h := range all {
		h.is("EIO", "fsync f")
		h.is("ok 456789", "read f 100")
		h.ok("lseek f 4")
		h.is("ok "+r.data, "getcwd")
	}
	u := r.recover(g)
	check("ungraft", len(u.Report.Stopped), u.PauseMs, u.LongestPauseMs)
	for i, h := range all {
		h.is("ok", "fsync f")
		same(t, before[i], h.snapshot())
	}
}

// G22: a failure when others have been let go already is rolled back for these too.
func TestRollbackBetweenProcesses(t *testing.T) {
	for _, step := range []string{"seize#2", "stopped#2", "commit#2", "check#3", "release#2", "kill:commit#2", "kill:release#3"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			all := r.family()
			before := snapshots(all)
			cmd := r.command("inject", "--pid", fmt.Sprint(all[0].pid()), "--path", r.data, "io error=EIO op=fsync ttl=1m")
			cmd.Env = append(cmd.Env, failing("swapper graft", step))
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("no error: %s", out)
			}
			for end := time.Now().Add(20 * time.Second); strings.Contains(all[0].mountinfo(), "fuse.faultgraft") && time.Now().Before(end); {
				time.Sleep(50 * time.Millisecond)
			}
			for i, h := range all {
				h.is("ok 456789", "read f 100")
				h.ok("lseek f 4")
				h.is("ok", "fsync f")
				same(t, before[i], h.snapshot())
			}
			t.Logf("%s", out)
		})
	}
}

// On the way back those that are off the layer already stay off it, and the next
// try does the rest.
func TestRecoverThatFailsBetweenProcesses(t *testing.T) {
	for _, step := range []string{"seize#2", "commit#2", "release#3", "unmount", "kill:commit#2"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.env = append(r.env, failing("swapper ungraft", step))
			all := r.family()
			before := snapshots(all)
			g := r.inject(all[0], r.data, "io error=EIO op=fsync ttl=5m")
			out, err := r.run("recover", g.ID)
			if err == nil {
				t.Fatalf("no error: %s", out)
			}
			t.Logf("%v", err)
			for _, h := range all {
				h.is("ok", "fsync f") // its rules ended
				h.is("ok 456789", "read f 100")
				h.ok("lseek f 4")
				h.is("ok "+r.data, "getcwd")
			}
			r.recover(g)
			for i, h := range all {
				same(t, before[i], h.snapshot())
			}
		})
	}
}
