package tracer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// priority is what the kernel schedules a thread by: its own policy, and the priority that it has at this moment.
type priority struct{ now, nice, policy int }

// priorities lists those of all threads, from /proc/PID/task/TID/stat (proc_pid_stat(5)).
func priorities(t testing.TB, pid int) (r []priority) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])) // from the third on
		var p priority
		if _, err := fmt.Sscan(fields[18-3]+" "+fields[19-3]+" "+fields[41-3], &p.now, &p.nice, &p.policy); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		r = append(r, p)
	}
	return r
}

// realTime is the priority that is lent, as stat shows it.
const realTime = -3

// What is stopped has a real-time priority as long as it is, of its own policy nothing is changed,
// and each process has its own priority when it goes on: also when processes are stopped one after another,
// when more threads make calls of ours than there are to lend, and when the swap fails.
func TestPriorityIsLent(t *testing.T) {
	at := newPlace(t)
	one := start(t, "target", "files", at.a, "20", "2")
	many := start(t, "target", "tables", at.a)
	all := []*process{one, many}
	for i, p := range all {
		tids, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p.pid()))
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range tids {
			var tid int
			if _, err := fmt.Sscan(filepath.Base(dir), &tid); err != nil {
				t.Fatal(err)
			}
			if err := unix.Setpriority(unix.PRIO_PROCESS, tid, 3+i); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := [][]priority{priorities(t, one.pid()), priorities(t, many.pid())}
	for _, failing := range []bool{false, true} {
		lent := map[string]int{} // by step, to how many at most
		s := newSwapper(t, at, one.pid())
		o := s.forward()
		o.Processes = func() ([]int, error) { return []int{one.pid(), many.pid()}, nil }
		o.Step = func(step string) error {
			for i, p := range all {
				if tracerOf(t, p.pid()) == 0 { // it has been let go, or was not stopped yet
					waitFor(t, func() bool { return slices.Equal(priorities(t, p.pid()), before[i]) })
				}
				now := priorities(t, p.pid())
				n := 0
				for j := range now {
					if now[j].now == realTime {
						n++
						now[j].now = before[i][j].now
					}
				}
				if !slices.Equal(now, before[i]) {
					t.Errorf("at step %s: %v, and before %v", step, now, before[i])
				}
				lent[step] = max(lent[step], n)
			}
			if failing && step == tracer.StepCheck {
				return fmt.Errorf("for the test")
			}
			return nil
		}
		if failing {
			if _, err := tracer.Swap(t.Context(), o); err == nil {
				t.Error("the swap did not fail")
			}
		} else if r := swap(t, o); r.NoPriority != "" {
			t.Fatalf("nothing was lent: %s", r.NoPriority)
		}
		for _, step := range []string{tracer.StepStopped, tracer.StepInject, tracer.StepStage, tracer.StepCommit} {
			if lent[step] == 0 {
				t.Errorf("at step %s no thread had a real-time priority", step)
			}
		}
		if lent[tracer.StepScan]+lent[tracer.StepReplace] > 0 {
			t.Errorf("a process that runs was lent priority: %v", lent)
		}
		for i, p := range all {
			waitFor(t, func() bool { return slices.Equal(priorities(t, p.pid()), before[i]) })
			p.check()
		}
		s.drop()
		if !failing {
			swap(t, newSwapper(t, &place{a: at.b, b: at.a, mntA: at.mntB, mntB: at.mntA}, one.pid()).forward())
		}
	}
	one.quit()
	many.quit()
}
