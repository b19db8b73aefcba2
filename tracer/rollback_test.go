package tracer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

var allSteps = []string{tracer.StepScan, tracer.StepReplace, tracer.StepSeize, tracer.StepStopped, tracer.StepInject, tracer.StepStage, tracer.StepCommit, tracer.StepCheck, tracer.StepRelease}

// G22: a failure at each step, and at each time a step is passed, rolls back
// whole; when groups before it were let go, the caller can swap these back.
func TestRollbackAtEachStep(t *testing.T) {
	for name, together := range map[string]bool{"hold": false, "tables": false, "hold together": true} {
		mode, _, _ := strings.Cut(name, " ")
		t.Run(name, func(t *testing.T) {
			at := newPlace(t)
			p := start(t, "target", mode, at.a)
			q := start(t, "target", "files", at.a, "300", "3")
			p.check()
			s := newSwapper(t, at, p.pid())
			boom := errors.New("boom")
			var passed []string
			for n := 1; ; n++ {
				pids, err := tree(p.pid())
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, q.pid())
				// a first failure may leave harmless traces that later ones do not
				// add to: adjacent maps that the kernel merges, or no longer
				before := state(t, pids...)
				stopped, undone, at, i := 0, 0, "", 0
				ours := openFiles(t)
				o := s.forward()
				o.Processes = func() ([]int, error) { return pids, nil }
				o.Stopped = func() error { stopped++; return nil }
				o.Undo = func() error { undone++; return nil }
				o.Together = together
				o.Step = func(step string) error {
					if i++; i == n {
						at = step
						return boom
					}
					return nil
				}
				r, err := tracer.Swap(context.Background(), o)
				partly := errors.Is(err, tracer.ErrPartly)
				if partly {
					if len(r.Swapped) == 0 || together {
						t.Fatalf("step %d, %s: %v; swapped are %v", n, at, err, r.Swapped)
					}
					undone++ // that is on us
					b := s.backward()
					b.Processes = o.Processes
					swap(t, b)
				}
				s.drop()
				if at == "" { // more than there are
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				passed = append(passed, at)
				if !errors.Is(err, boom) || !strings.Contains(err.Error(), "at step "+at) || !partly && !strings.HasSuffix(err.Error(), "nothing was changed") {
					t.Fatalf("step %d, %s: error %v", n, at, err)
				}
				if stopped != undone {
					t.Errorf("step %d, %s: Stopped %d times, Undo %d times", n, at, stopped, undone)
				}
				sameState(t, before, state(t, pids...))
				if k := openFiles(t); k != ours {
					t.Errorf("step %d, %s: %d descriptors of ours, %d before", n, at, k, ours)
				}
				p.check()
				q.check()
			}
			if got := slices.Compact(slices.Clone(passed)); len(got) < len(allSteps) {
				t.Errorf("steps %v", got)
			}
			for _, step := range allSteps {
				if !slices.Contains(passed, step) {
					t.Errorf("step %s was never passed", step)
				}
			}
			t.Logf("%d failures, each rolled back", len(passed))
		})
	}
}

// A failure inside the exchange itself: a lock that another process took on the
// new file.
func TestRollbackWhenLockIsTaken(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "hold", at.a)
	p.check()
	before := state(t, p.pid())
	s := newSwapper(t, at, p.pid())
	// another file in its place, in which the range is locked by us
	copyFile(t, at.a+"/lock", at.a+"/lock.copy")
	fd, err := unix.Open(at.b+"/lock.copy", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 20}); err != nil {
		t.Fatal(err)
	}
	o := s.forward()
	replace := o.Replace
	o.Replace = func(d *tracer.Description) (int, error) {
		if strings.HasSuffix(d.Path, "/lock") {
			return unix.Open(at.b+"/lock.copy", d.Flags|unix.O_CLOEXEC, 0)
		}
		return replace(d)
	}
	_, err = tracer.Swap(context.Background(), o)
	if !errors.Is(err, syscall.EAGAIN) || !strings.HasSuffix(err.Error(), "nothing was changed") {
		t.Fatalf("error %v", err)
	}
	sameState(t, before, state(t, p.pid()))
	p.check() // sees its lock
	p.quit()
}

// The code in the target gives its thread back when we are silent for 3 s; the
// transaction notices and rolls back.
func TestSilence(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 6 s")
	}
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "50", "3")
	before := state(t, p.pid())
	s := newSwapper(t, at, p.pid())
	o := s.forward()
	o.Step = func(step string) error {
		if step == tracer.StepCommit {
			time.Sleep(6 * time.Second)
		}
		return nil
	}
	_, err := tracer.Swap(context.Background(), o)
	if err == nil || !strings.Contains(err.Error(), "lost contact") || !strings.HasSuffix(err.Error(), "nothing was changed") {
		t.Fatalf("error %v", err)
	}
	sameState(t, before, state(t, p.pid()))
	p.check()
	swap(t, s.forward())
	p.check()
	p.quit()
}

// A replacement that is not like the file it replaces is refused.
func TestReplacementIsChecked(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "3", "1")
	before := state(t, p.pid())
	s := newSwapper(t, at, p.pid())
	o := s.forward()
	o.Replace = func(d *tracer.Description) (int, error) {
		return unix.Open(at.b+strings.TrimPrefix(d.Path, at.a), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	_, err := tracer.Swap(context.Background(), o)
	if err == nil || !strings.Contains(err.Error(), "was opened with flags") {
		t.Errorf("error %v", err)
	}
	sameState(t, before, state(t, p.pid()))
	p.check()
	p.quit()
}

func TestOptions(t *testing.T) {
	needRoot(t)
	if _, err := tracer.Swap(context.Background(), tracer.Options{}); err == nil {
		t.Error("no error")
	}
	// nothing to swap: the hooks run all the same
	stopped := false
	r, err := tracer.Swap(context.Background(), tracer.Options{
		Processes: func() ([]int, error) { return []int{1 << 30, -1}, nil },
		Match:     func(*tracer.Object) bool { return true },
		Replace:   func(*tracer.Description) (int, error) { return -1, fmt.Errorf("none") },
		Stopped:   func() error { stopped = true; return nil },
	})
	if err != nil || !stopped || len(r.Processes) != 0 {
		t.Errorf("%+v, %v, stopped %v", r, err, stopped)
	}
}
