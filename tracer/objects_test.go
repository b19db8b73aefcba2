package tracer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

func TestSkipped(t *testing.T) {
	at := newPlace(t)
	dir, err := buildTarget()
	if err != nil {
		t.Skip(err)
	}
	copyFile(t, dir+"/target", at.a+"/program")
	if err := os.WriteFile(at.a+"/f", []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := start(t, "target", "files", at.a, "2", "1")
	// the running program itself is under the path (G13)
	q := start(t, at.a+"/program", "files", at.a, "2", "1")
	before := maps(t, q.pid())
	s := newSwapper(t, at, q.pid())
	r := swap(t, s.forward())
	exec := slices.DeleteFunc(slices.Clone(r.Skipped), func(s tracer.ObjectReport) bool { return !strings.Contains(s.Reason, "execution") })
	if len(exec) == 0 || maps(t, q.pid()) != before {
		t.Errorf("skipped %+v", r.Skipped)
	}
	q.quit()
	// without RequireAll what cannot be replaced is reported
	s2 := newSwapper(t, at, p.pid())
	o := s2.forward()
	o.RequireAll = false
	replace := o.Replace
	o.Replace = func(d *tracer.Description) (int, error) {
		if strings.HasSuffix(d.Path, "/f1") {
			return -1, errors.New("not this one")
		}
		return replace(d)
	}
	r = swap(t, o)
	if len(r.Skipped) != 1 || r.Skipped[0].Object.Path != at.a+"/f1" || r.Skipped[0].Reason != "not this one" {
		t.Errorf("skipped %+v", r.Skipped)
	}
	p.check()
	p.quit()
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

// G15: no free descriptor numbers below the limit, slots above it, and sparse numbers.
func TestDescriptorLimit(t *testing.T) {
	at := newPlace(t)
	const n = 40
	p := start(t, "target", "files", at.a, fmt.Sprint(n), "2")
	s := newSwapper(t, at, p.pid())
	for _, lim := range []unix.Rlimit{{Cur: n + 3, Max: 4096}, {Cur: 10, Max: 4096}, {Cur: 0, Max: 4096}} {
		if err := unix.Prlimit(p.pid(), unix.RLIMIT_NOFILE, &lim, nil); err != nil {
			t.Fatal(err)
		}
		before := state(t, p.pid())
		swap(t, s.forward())
		p.check()
		swap(t, s.backward())
		s.drop()
		sameState(t, before, state(t, p.pid()))
	}
	lim := unix.Rlimit{Cur: n + 3, Max: n + 3}
	if err := unix.Prlimit(p.pid(), unix.RLIMIT_NOFILE, &lim, nil); err != nil {
		t.Fatal(err)
	}
	before := state(t, p.pid())
	_, err := tracer.Swap(context.Background(), s.forward())
	if err != nil && (!strings.Contains(err.Error(), "RLIMIT_NOFILE") || !strings.HasSuffix(err.Error(), "nothing was changed")) {
		t.Errorf("error %v", err)
	}
	if err == nil { // CAP_SYS_RESOURCE
		swap(t, s.backward())
	}
	sameState(t, before, state(t, p.pid()))
	p.check()
	p.quit()
}

func TestManyFiles(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "4600", "5")
	before := state(t, p.pid())
	s := newSwapper(t, at, p.pid())
	r := swap(t, s.forward())
	if n := onMount(t, at.mntA, p.pid()); n != 0 || len(r.Swapped) != 4601 {
		t.Errorf("%d left, %d swapped", n, len(r.Swapped))
	}
	p.check()
	swap(t, s.backward())
	s.drop()
	sameState(t, before, state(t, p.pid()))
	p.check()
	p.quit()
}

// Objects that come between the live scan and the stop are swapped too.
func TestLateObjects(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "3", "1")
	q := start(t, "target", "files", at.a, "3", "1")
	s := newSwapper(t, at, p.pid())
	o := s.forward()
	asked := 0
	o.Processes = func() ([]int, error) {
		if asked++; asked == 1 {
			return []int{p.pid()}, nil
		}
		return []int{p.pid(), q.pid()}, nil
	}
	r := swap(t, o)
	if len(r.Processes) != 2 || onMount(t, at.mntA, p.pid(), q.pid()) != 0 {
		t.Errorf("report %+v", r)
	}
	p.check()
	q.check()
	p.quit()
	q.quit()
}

// A close-on-exec flag that changes between the live scan and the stop is kept.
func TestLateCloexec(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "files", at.a, "3", "1")
	s := newSwapper(t, at, p.pid())
	o := s.forward()
	replace, flipped := o.Replace, false
	o.Replace = func(d *tracer.Description) (int, error) {
		if !flipped { // before the stop
			flipped = true
			p.say("flip")
			p.want("ok")
		}
		return replace(d)
	}
	swap(t, o)
	p.check()
	p.quit()
}

func threads(t testing.TB, pid int) (tids []int) {
	t.Helper()
	dirs, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, d := range dirs {
		var tid int
		if _, err := fmt.Sscan(filepath.Base(d), &tid); err != nil {
			t.Fatal(err)
		}
		tids = append(tids, tid)
	}
	return tids
}

// G19: a process whose first thread has ended has files all the same.
func TestZombieLeader(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "leaderless", at.a)
	tids := threads(t, p.pid())
	s := newSwapper(t, at, p.pid())
	for range 3 {
		r := swap(t, s.forward())
		if n := onMount(t, at.mntA, tids...); n != 0 || len(r.Swapped) != 2 {
			t.Fatalf("%d objects left, %d swapped", n, len(r.Swapped))
		}
		p.check()
		swap(t, s.backward())
		s.drop()
		if n := onMount(t, at.mntB, tids...); n != 0 {
			t.Fatalf("%d objects left", n)
		}
		p.check()
	}
	p.quit()
}
