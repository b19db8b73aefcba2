package tracer_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// G16: a filter that kills for every call that a swap makes is suspended.
func TestSeccomp(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "seccomp", at.a)
	p.say("go")
	p.want("ready")
	s := newSwapper(t, at, p.pid())
	for range 3 {
		swap(t, s.forward())
		p.check()
		swap(t, s.backward())
		s.drop()
		p.check()
	}
	p.quit()
}

func inheritedFile(t testing.TB, name string) *os.File {
	t.Helper()
	b := make([]byte, 4096)
	for i := range b {
		b[i] = byte(i*31 + i/256) // the page of the target
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// G14: a process that dropped its privileges keeps what it opened before. The
// working directory it could not enter again is left and reported.
func TestDroppedPrivileges(t *testing.T) {
	at := newPlace(t)
	f := inheritedFile(t, at.a+"/secret")
	dir, err := buildTarget()
	if err != nil {
		t.Skip(err)
	}
	program := t.TempDir() + "/target"
	copyFile(t, dir+"/target-static", program)
	for d := program; d != "/tmp" && d != "/"; d = d[:max(1, strings.LastIndexByte(d, '/'))] {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(at.a[:strings.LastIndexByte(at.a, '/')], 0o755); err != nil {
		t.Fatal(err)
	}
	p := startWith(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, []*os.File{f}, program, "inherit", at.a)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(at.a, 0o700); err != nil {
		t.Fatal(err)
	}
	s := newSwapper(t, at, p.pid())
	o := s.forward()
	before := state(t, p.pid())
	if _, err := tracer.Swap(t.Context(), o); err == nil || !strings.Contains(err.Error(), "may not enter") || !strings.HasSuffix(err.Error(), "nothing was changed") {
		t.Errorf("error %v", err)
	}
	sameState(t, before, state(t, p.pid()))
	o.RequireAll = false
	r := swap(t, o)
	if len(r.Swapped) != 1 || r.Swapped[0].Object.FD != 3 || len(r.Skipped) != 1 || r.Skipped[0].Object.Kind != tracer.Cwd || !strings.Contains(r.Skipped[0].Reason, "may not enter") {
		t.Errorf("report %+v", r)
	}
	p.check()
	p.quit()
}

// The root directory, with and without the working directory.
func TestRoot(t *testing.T) {
	at := newPlace(t)
	dir, err := buildTarget()
	if err != nil {
		t.Skip(err)
	}
	copyFile(t, dir+"/target-static", at.a+"/program")
	f := inheritedFile(t, at.a+"/file")
	p := startWith(t, &syscall.SysProcAttr{Chroot: at.a}, []*os.File{f}, "/program", "inherit", "/")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	where := func(link string) uint64 { return mountID(t, fmt.Sprintf("/proc/%d/%s", p.pid(), link)) }
	s := newSwapper(t, at, p.pid())
	before := state(t, p.pid())
	swap(t, s.forward())
	if where("root") != at.mntB || where("cwd") != at.mntB {
		t.Error("root and cwd are not swapped")
	}
	p.check()
	swap(t, s.backward())
	s.drop()
	sameState(t, before, state(t, p.pid()))
	o := s.forward()
	match := o.Match
	o.Match = func(ob *tracer.Object) bool { return ob.Kind == tracer.Root && match(ob) }
	r := swap(t, o)
	if where("root") != at.mntB || where("cwd") != at.mntA || len(r.Swapped) != 1 {
		t.Errorf("only the root was to be swapped: %+v", r)
	}
	p.check()
	p.quit()
}

// OFD locks and flocks belong to the description: swapped to and fro they are
// held all the time (G6, G7).
func TestDescriptionLocks(t *testing.T) {
	at := newPlace(t)
	f := inheritedFile(t, at.a+"/file")
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Len: 7}); err != nil {
		t.Fatal(err)
	}
	p := startWith(t, &syscall.SysProcAttr{}, []*os.File{f}, "target", "inherit", at.a)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	other, err := os.OpenFile(at.a+"/file", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	held := func(when string) {
		t.Helper()
		if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			t.Errorf("%s: another process takes the flock", when)
		}
		if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Len: 7}); err == nil {
			t.Errorf("%s: another process takes the OFD lock", when)
		}
	}
	s := newSwapper(t, at, p.pid())
	for range 3 {
		for _, o := range []tracer.Options{s.forward(), s.backward()} {
			o.Step = func(step string) error { held(step); return nil }
			swap(t, o)
			held("after")
			p.check()
		}
		s.drop()
		held("at the end")
	}
	p.quit()
}
