package tracer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
)

// several starts targets with a folder each; shared is a descriptor that all have.
func several(t *testing.T, at *place, n int, shared ...*os.File) (all []*process, pids []int) {
	t.Helper()
	for i := range n {
		dir := filepath.Join(at.a, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		p := startWith(t, &syscall.SysProcAttr{}, shared, "target", "files", dir, "20", "3")
		all, pids = append(all, p), append(pids, p.pid())
	}
	return all, pids
}

// Processes that share nothing are stopped one after another: while one stands the
// others run.
func TestRolling(t *testing.T) {
	at := newPlace(t)
	all, pids := several(t, at, 5)
	s := newSwapper(t, at, 0)
	before := state(t, pids...)
	traced := func() (n int) {
		for _, pid := range pids {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil && !strings.Contains(string(b), "TracerPid:\t0\n") {
				n++
			}
		}
		return n
	}
	commits, exchanged := 0, 0
	for _, o := range []tracer.Options{s.forward(), s.backward()} {
		o.Processes = func() ([]int, error) { return pids, nil }
		o.Step = func(step string) error {
			if step == tracer.StepCommit {
				commits++
				if n := traced(); n != 1 {
					return fmt.Errorf("%d processes stand at once", n)
				}
			}
			return nil
		}
		o.Exchanged = func() error {
			exchanged++
			if n := traced(); n != 0 {
				return fmt.Errorf("%d processes stand at the end", n)
			}
			return nil
		}
		r := swap(t, o)
		if r.Groups != len(pids) || len(r.Processes) != len(pids) {
			t.Errorf("%d groups, %d processes", r.Groups, len(r.Processes))
		}
		for _, p := range r.Processes {
			if p.Pause <= 0 || p.Pause > r.Pause {
				t.Errorf("process %d stood still for %v of %v", p.PID, p.Pause, r.Pause)
			}
		}
		if sum := r.Phases.Stop + r.Phases.Inject + r.Phases.Exchange + r.Phases.Resume; sum <= 0 || sum > r.Pause {
			t.Errorf("phases %+v of a pause of %v", r.Phases, r.Pause)
		}
	}
	if commits != 2*len(pids) || exchanged != 2 {
		t.Errorf("%d exchanges, %d times at the end", commits, exchanged)
	}
	sameState(t, before, state(t, pids...))
	for _, p := range all {
		p.check()
		p.quit()
	}
}

// Those that share a description stand together.
func TestSharersAreStoppedTogether(t *testing.T) {
	at := newPlace(t)
	f, err := os.Create(filepath.Join(at.a, "shared"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	all, pids := several(t, at, 3, f)
	lone := start(t, "target", "files", mkdir(t, at, "lone"), "5", "1")
	pids = append(pids, lone.pid())
	s := newSwapper(t, at, 0)
	for _, o := range []tracer.Options{s.forward(), s.backward()} {
		o.Processes = func() ([]int, error) { return pids, nil }
		if r := swap(t, o); r.Groups != 2 || len(r.Processes) != 4 {
			t.Errorf("%d groups, %d processes", r.Groups, len(r.Processes))
		}
	}
	for _, p := range append(all, lone) {
		p.check()
		p.quit()
	}
}

// Nobody runs with old files while one has a map of new ones that it writes to: it may
// open the file that is mapped, as nobody has seen yet.
func TestMapsToWriteAreStoppedWithAll(t *testing.T) {
	at := newPlace(t)
	maps := start(t, "target", "hold", mkdir(t, at, "maps"))
	files := start(t, "target", "files", mkdir(t, at, "files"), "5", "1")
	s := newSwapper(t, at, 0)
	for _, o := range []tracer.Options{s.forward(), s.backward()} {
		o.Processes = func() ([]int, error) { return []int{maps.pid(), files.pid()}, nil }
		if r := swap(t, o); r.Groups != 1 || len(r.Processes) != 2 {
			t.Errorf("%d groups, %d processes", r.Groups, len(r.Processes))
		}
	}
	for _, p := range []*process{maps, files} {
		p.check()
		p.quit()
	}
}

func mkdir(t *testing.T, at *place, name string) string {
	t.Helper()
	dir := filepath.Join(at.a, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What comes to a process between the groups is found at the end: here a program
// that is started when the first group has been let go, with a file that the
// second has.
func TestLateProcess(t *testing.T) {
	at := newPlace(t)
	all, pids := several(t, at, 2)
	s := newSwapper(t, at, 0)
	o := s.forward()
	var late *process
	o.Processes = func() ([]int, error) {
		if late != nil {
			return append([]int{late.pid()}, pids...), nil
		}
		return pids, nil
	}
	seizes := 0
	o.Step = func(step string) error {
		if step == tracer.StepSeize {
			if seizes++; seizes == 2 {
				late = start(t, "target", "files", mkdir(t, at, "late"), "7", "2")
			}
		}
		return nil
	}
	if r := swap(t, o); r.Groups != 3 {
		t.Errorf("%d groups", r.Groups)
	}
	all = append(all, late)
	for _, p := range all {
		if n := onMount(t, at.mntA, p.pid()); n != 0 {
			t.Errorf("process %d has %d objects on the old mount", p.pid(), n)
		}
		p.check()
		p.quit()
	}
}

// A process that stands still for longer than its budget is put back.
func TestBudget(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "50", "4")
	s := newSwapper(t, at, p.pid())
	before := state(t, p.pid())
	o := s.forward()
	o.Budget = time.Second
	o.Deadline = time.Minute
	o.Step = func(step string) error {
		if step == tracer.StepInject { // the machine may be slow, but this is slower
			time.Sleep(1100 * time.Millisecond)
		}
		return nil
	}
	_, err := tracer.Swap(context.Background(), o)
	if err == nil || !strings.Contains(err.Error(), "longer than its budget of 1s; nothing was changed") || errors.Is(err, tracer.ErrPartly) {
		t.Fatalf("error %v", err)
	}
	sameState(t, before, state(t, p.pid()))
	o.Budget, o.Step = 0, nil
	o.Deadline = time.Second
	o.Step = func(step string) error {
		if step == tracer.StepInject {
			time.Sleep(1100 * time.Millisecond)
		}
		return nil
	}
	if _, err := tracer.Swap(context.Background(), o); err == nil || !strings.Contains(err.Error(), "not begun within 1s; nothing was changed") {
		t.Fatalf("error %v", err)
	}
	sameState(t, before, state(t, p.pid()))
	s.drop()
	p.check()
	p.quit()
}

// A process that was let go, and then goes back to where it was taken from, or may do so,
// stands still when what it was taken from goes (StepExchanged); the others run.
func TestRollingThatComesBack(t *testing.T) {
	at := newPlace(t)
	shell := func(dir string) *process {
		p := start(t, "/bin/sh", "-c", `echo ready; while read -r c; do eval "$c"; echo ok; done`)
		tell(t, p, "cd "+dir)
		return p
	}
	for name, to := range map[string]string{"back": at.a, "elsewhere": at.b} {
		t.Run(name, func(t *testing.T) {
			if err := os.MkdirAll(filepath.Join(at.a, "sub"), 0o755); err != nil {
				t.Fatal(err)
			}
			var all []*process
			var pids []int
			for range 3 {
				all = append(all, shell(at.a))
				pids = append(pids, all[len(all)-1].pid())
			}
			o := newSwapper(t, at, 0).forward()
			o.Processes = func() ([]int, error) { return pids, nil }
			seized, exchanged := 0, 0
			o.Step = func(step string) error {
				if step == tracer.StepSeize {
					seized++
				}
				if step == tracer.StepSeize && seized == 2 {
					tell(t, all[0], "cd "+filepath.Join(to, "sub"))
				}
				return nil
			}
			o.Exchanged = func() error {
				exchanged++
				for i, p := range all {
					if stands := tracerOf(t, p.pid()) != 0; stands != (i == 0) {
						return fmt.Errorf("process %d stands: %v", i, stands)
					}
					if got := mountID(t, fmt.Sprintf("/proc/%d/cwd/.", p.pid())); got != at.mntB {
						return fmt.Errorf("process %d is on mount %d, not %d", i, got, at.mntB)
					}
				}
				return nil
			}
			swap(t, o)
			if exchanged != 1 {
				t.Errorf("at the end %d times", exchanged)
			}
		})
	}
}

func tell(t *testing.T, p *process, command string) {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, command); err != nil {
		t.Fatal(err)
	}
	p.want("ok")
}
