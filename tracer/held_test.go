package tracer_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// under are the options for a swap that also takes what is known by its path
// only for a part of it.
func (s *swapper) under() tracer.Options {
	o := s.forward()
	match := o.Match
	o.Match = func(ob *tracer.Object) bool {
		switch {
		case ob.Path == "io_uring" || strings.HasPrefix(ob.Path, "socket:"): // cannot be told
			return true
		}
		switch ob.Kind {
		case tracer.RingFile, tracer.LoopDevice, tracer.SwapFile:
			return strings.HasPrefix(ob.Path, s.at.a+"/")
		case tracer.Watch:
			return ob.MountID == s.at.mntA || strings.HasPrefix(ob.Path, s.at.a)
		}
		return match(ob)
	}
	o.Locate = func(_, ino uint64, h *unix.FileHandle) (string, bool) {
		found := ""
		_ = filepath.Walk(s.at.a, func(path string, _ os.FileInfo, _ error) error {
			var st unix.Stat_t
			if unix.Lstat(path, &st) == nil && st.Ino == ino {
				found = path
			}
			return nil
		})
		return found, found != "" && h != nil
	}
	o.RequireAll = false
	return o
}

// list gives the names of reports of some kinds below the folder a.
func (s *swapper) list(all []tracer.ObjectReport, kinds ...tracer.Kind) (r []string) {
	for _, o := range all {
		if slices.Contains(kinds, o.Object.Kind) {
			r = append(r, strings.TrimPrefix(o.Object.Path, s.at.a))
		}
	}
	slices.Sort(r)
	return r
}

var pollTime = regexp.MustCompile(`Sq(TotalTime|WorkTime|Thread|ThreadCpu):\s*\S+`)

// idle takes out what the polling thread of an io_uring changes.
func idle(state string) string { return pollTime.ReplaceAllString(state, "") }

// G20, G21: what the kernel holds is found, live and in the stop, reported once
// each, and goes on working; RequireAll refuses before anything is stopped.
func TestHeldByTheKernel(t *testing.T) {
	const (
		inFlight, ringFile, aio, watch = tracer.InFlight, tracer.RingFile, tracer.AIOContext, tracer.Watch
	)
	for _, c := range []struct {
		what  string
		kind  tracer.Kind
		paths []string
		kept  bool
	}{
		{"flight", inFlight, []string{"/flight", "/flight", "/nested"}, false},
		{"second", inFlight, []string{"socket"}, false},
		{"unaccepted", inFlight, []string{"socket"}, false},
		{"ring", ringFile, []string{"/ri ng", `/ring\gone`}, false},
		{"sqpoll", ringFile, []string{"/ri ng", `/ring\gone`}, false},
		{"lostring", ringFile, []string{"io_uring"}, false},
		{"aio", aio, []string{""}, true},
		{"inotify", watch, []string{"", "/watched"}, true},
		{"fanotify", watch, []string{"", "/watched"}, true},
		{"lease", tracer.Descriptor, []string{"/lease"}, false},
		{"worker", inFlight, nil, true},
		{"epoll", inFlight, nil, true},
	} {
		for _, file := range []bool{true, false} { // with an object that is swapped, and without
			if !file && slices.Contains([]string{"aio", "worker", "epoll"}, c.what) {
				continue
			}
			name := c.what
			if !file {
				name += " alone"
			}
			t.Run(name, func(t *testing.T) {
				at := newPlace(t)
				args := []string{"held", at.a, c.what}
				if file {
					args = append(args, "file")
				}
				p := start(t, "target", args...)
				before := idle(state(t, p.pid()))
				s := newSwapper(t, at, p.pid())
				ours := openFiles(t)
				r := swap(t, s.under())
				all, other := r.Skipped, r.Kept
				if c.kept {
					all, other = other, all
				}
				got := s.list(all, c.kind)
				for i := range got {
					got[i], _, _ = strings.Cut(got[i], ":")
				}
				namesOnly := func(o tracer.ObjectReport) bool { return strings.Contains(o.Reason, "shows only the names") }
				if c.kind == ringFile && slices.ContainsFunc(all, namesOnly) { // Linux 6.12 does
					t.Logf("%+v", all)
					got, all = c.paths, make([]tracer.ObjectReport, len(c.paths))
				}
				if !slices.Equal(got, c.paths) || len(all) != len(c.paths) || len(other) != 0 {
					t.Errorf("skipped %+v, kept %+v; want %q of kind %v", r.Skipped, r.Kept, c.paths, c.kind)
				}
				if moved := len(r.Swapped) > 0; moved != file || len(r.Processes) > 0 != file {
					t.Errorf("swapped %+v, stopped %+v", r.Swapped, r.Processes)
				}
				back := s.backward()
				back.RequireAll = false
				swap(t, back)
				s.drop()
				sameState(t, before, idle(state(t, p.pid())))
				if n := openFiles(t); n != ours {
					t.Errorf("%d descriptors of ours are open, %d before", n, ours)
				}
				o := s.under()
				o.RequireAll = true
				r, err := tracer.Swap(context.Background(), o)
				if refused := !c.kept; (err != nil) != refused || refused && len(r.Processes) > 0 {
					t.Errorf("with RequireAll: %v, stopped %+v", err, r.Processes)
				}
				if err == nil {
					swap(t, back)
				}
				s.drop()
				sameState(t, before, idle(state(t, p.pid())))
				if c.what == "flight" {
					p.say("take")
					p.want("ok")
				} else {
					p.check()
				}
				p.quit()
			})
		}
	}
}

// What comes to a socket between the live look and the stop is seen by the next
// swap; what was in its queue and is not any more is not reported.
func TestQueueChangesBeforeTheStop(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "held", at.a, "file", "flight")
	s := newSwapper(t, at, p.pid())
	o := s.under()
	o.Step = func(step string) error {
		if step == tracer.StepSeize {
			p.say("take") // the descriptors are slots now
			p.want("ok")
		}
		return nil
	}
	r := swap(t, o)
	if got := s.list(r.Skipped, tracer.InFlight); len(got) > 0 || len(r.Swapped) != 5 { // with the working directory
		t.Errorf("skipped %+v, swapped %+v", r.Skipped, r.Swapped)
	}
	if n := onMount(t, at.mntA, p.pid()); n != 0 {
		t.Errorf("%d objects are left on the old mount", n)
	}
	p.check()
	p.quit()
}

// With RequireAll a queue that is soon empty is waited for.
func TestRequireAllWaitsForQueues(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "held", at.a, "file", "flight")
	s := newSwapper(t, at, p.pid())
	o := s.under()
	o.RequireAll = true
	match, taken := o.Match, false
	o.Match = func(ob *tracer.Object) bool {
		if ob.Kind == tracer.InFlight && !taken {
			taken = true
			p.say("take")
			p.want("ok")
		}
		return match(ob)
	}
	r := swap(t, o)
	if len(r.Skipped) > 0 || !taken {
		t.Errorf("skipped %+v", r.Skipped)
	}
	p.check()
	p.quit()
}

// A peek of a socket whose program peeks too would move its place.
func TestPeekOffsetIsLeftAlone(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "held", at.a, "file", "peeker")
	s := newSwapper(t, at, p.pid())
	r := swap(t, s.under())
	if len(r.Skipped) != 1 || !strings.Contains(r.Skipped[0].Reason, "SO_PEEK_OFF") {
		t.Errorf("skipped %+v", r.Skipped)
	}
	p.check()
	p.quit()
}

// Files behind loop devices and swap files belong to no process.
func TestHeldForNobody(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "held", at.a, "file")
	s := newSwapper(t, at, p.pid())
	image := at.a + "/image file"
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	want := 0
	if out, err := exec.Command("losetup", "-f", "--show", image).CombinedOutput(); err != nil {
		t.Logf("no loop device: %v: %s", err, out)
	} else {
		want++
		t.Cleanup(func() {
			if out, err := exec.Command("losetup", "-d", strings.TrimSpace(string(out))).CombinedOutput(); err != nil {
				t.Errorf("losetup -d: %v: %s", err, out)
			}
		})
	}
	swapFile := at.a + "/swap file"
	if err := os.WriteFile(swapFile, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-c", `mkswap "$1" && swapon -p 0 "$1"`, "sh", swapFile).CombinedOutput(); err != nil {
		t.Logf("no swap file: %v: %s", err, out)
	} else {
		want++
		t.Cleanup(func() {
			if out, err := exec.Command("swapoff", swapFile).CombinedOutput(); err != nil {
				t.Errorf("swapoff: %v: %s", err, out)
			}
		})
	}
	if want == 0 {
		t.Skip("neither loop devices nor swap files can be made here")
	}
	o := s.under()
	r := swap(t, o)
	if got := s.list(r.Skipped, tracer.LoopDevice, tracer.SwapFile); len(got) != want || len(r.Skipped) != want {
		t.Errorf("skipped %+v", r.Skipped)
	}
	swap(t, s.backward())
	s.drop()
	o.RequireAll = true
	if r, err := tracer.Swap(context.Background(), o); err == nil || len(r.Processes) > 0 {
		t.Errorf("with RequireAll: %v, stopped %+v", err, r.Processes)
	}
	p.check()
	p.quit()
}

// A worker thread of an io_uring is a thread of the process that runs no code of
// the program: where the program's own computes, it must not be taken for ours.
func TestRingWorkerRunsNoCode(t *testing.T) {
	at := newPlace(t)
	p := start(t, "target", "held", at.a, "file", "worker", "busy")
	s := newSwapper(t, at, p.pid())
	for range 5 {
		swap(t, s.forward())
		p.check()
		swap(t, s.backward())
		s.drop()
		p.check()
	}
	p.quit()
}
