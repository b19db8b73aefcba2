package process

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
)

// kinds counts the reports by kind.
func kinds(all []tracer.ObjectReport) string {
	n := map[string]int{}
	for _, s := range all {
		count := 1
		// A ring is reported once, for all its files, where the kernel shows these without their folders (Linux 6.12 does).
		if _, names, ok := strings.Cut(s.Reason, "shows only the names of its "); ok {
			count = 0
			_, _ = fmt.Sscan(names, &count) // it stays 0, which is not what the test wants
		}
		n[s.Object.Kind.String()] += count
	}
	var r []string
	for k, c := range n {
		r = append(r, fmt.Sprintf("%d %s", c, k))
	}
	slices.Sort(r)
	return strings.Join(r, ", ")
}

// snapshot is without the mounts, which TestGraftAndRecover looks at.
func snapshot(p *program) map[string]string {
	s := p.h.snapshot()
	delete(s, "mountinfo")
	return s
}

// G20, G21: what the kernel holds under the path is in the report of a graft and
// goes on working; --require-all refuses, and nothing is changed.
func TestHeldByTheKernel(t *testing.T) {
	bin := buildTarget(t)
	for _, c := range []struct {
		what          []string
		skipped, kept string
	}{
		{[]string{"flight"}, "3 in flight", ""},
		{[]string{"second"}, "1 in flight", ""},
		{[]string{"unaccepted"}, "1 in flight", ""},
		{[]string{"ring"}, "2 io_uring file", ""},
		{[]string{"sqpoll"}, "2 io_uring file", ""},
		{[]string{"lostring"}, "1 io_uring file", ""},
		{[]string{"aio"}, "", "1 aio context"},
		{[]string{"inotify"}, "", "2 watch"},
		{[]string{"fanotify"}, "", "2 watch"},
		{[]string{"lease"}, "1 descriptor", ""},
		{[]string{"epoll", "worker"}, "", ""},
	} {
		t.Run(c.what[0], func(t *testing.T) {
			r := newRig(t)
			p := r.program(t, bin, append([]string{"held", r.data, "file"}, c.what...)...)
			before := snapshot(p)
			if c.skipped != "" {
				out, err := r.run("inject", "--pid", fmt.Sprint(p.h.pid()), "--path", r.data, "--require-all", "io error=EIO op=fsync p=0 ttl=2m")
				if err == nil || !strings.Contains(err.Error(), "nothing was changed") {
					t.Errorf("with --require-all: %s, %v", out, err)
				}
				if n := len(r.list()); n > 0 {
					t.Fatalf("%d grafts", n)
				}
				same(t, before, snapshot(p))
			}
			g := r.inject(p.h, r.data, "io error=EIO op=fsync p=0 ttl=2m")
			if s, k := kinds(g.Report.Skipped), kinds(g.Report.Kept); s != c.skipped || k != c.kept || len(g.Report.Swapped) != 2 {
				t.Errorf("left %q: %+v; kept %q: %+v; %d moved", s, g.Report.Skipped, k, g.Report.Kept, len(g.Report.Swapped))
			}
			for _, s := range append(g.Report.Skipped, g.Report.Kept...) {
				if s.Reason == "" {
					t.Errorf("no reason: %+v", s)
				}
			}
			p.check()
			u := r.recover(g)
			if s := kinds(u.Report.Skipped); s != "" {
				t.Errorf("left on the layer: %+v", u.Report.Skipped)
			}
			p.check()
			if c.what[0] == "flight" {
				if got := p.h.do("take"); got != "ok" {
					t.Errorf("the target says %q", got)
				}
			} else {
				same(t, before, snapshot(p))
			}
		})
	}
}

// What the kernel has of the layer at an ungraft, the same way.
func TestHeldOnTheLayer(t *testing.T) {
	bin := buildTarget(t)
	for _, c := range []struct {
		what, left string
	}{{"flight", "3 in flight"}, {"ring", "2 io_uring file"}, {"inotify", "2 watch"}} {
		t.Run(c.what, func(t *testing.T) {
			r := newRig(t)
			h := r.start()
			g := r.inject(h, r.data, "io error=EIO op=fsync p=0 ttl=2m")
			// the program comes to the layer, in the holder's namespace
			q := r.launch("nsenter", "--mount", "--target", fmt.Sprint(h.pid()), bin, "held", r.data, "file", c.what)
			if got := q.line("its start"); got != "ready" {
				t.Fatalf("the target says %q", got)
			}
			u := r.recover(g)
			if s := kinds(u.Report.Skipped); s != c.left || len(u.Report.Swapped) < 2 {
				t.Errorf("left %q: %+v; %d moved", s, u.Report.Skipped, len(u.Report.Swapped))
			}
			command := "check"
			if c.what == "flight" {
				command = "take"
			}
			if got := q.do("%s", command); got != "ok" {
				t.Errorf("what is left on the layer does not work: the target says %q", got)
			}
			q.do("quit")
			r.awaitOff(20*time.Second, "the layer lingers without a user") // served on until now
		})
	}
}

// G20: watches from before a graft see what is done through the layer, whether the
// server does it or the kernel (passthrough); those that were set on the layer end
// with it, which the program is told.
func TestWatchesAreKept(t *testing.T) {
	for _, mode := range []struct{ name, rule string }{
		{"through the server", "io error=EIO op=all p=0 ttl=1m"},
		{"passthrough", "io error=EIO op=fsync path=DATA/nothing ttl=1m"},
	} {
		t.Run(mode.name, func(t *testing.T) {
			r := newRig(t)
			f := r.write("f", "0123456789")
			r.write("gone", "x")
			h := r.start()
			h.ok("open before %s rdwr", f)
			h.is("ok 1", "watch w %s", r.data)
			h.is("ok 2", "watch w %s", f)
			// work does one of everything, and returns what the watches saw, once they
			// saw all that is wanted: the layer closes a file below when it hears of it.
			work := func(open, want string) string {
				t.Helper()
				h.ok("events w")
				if open == "after" {
					h.ok("open after %s rdwr", f)
				}
				h.ok("pread %s 0 3", open)
				h.ok("pwrite %s 0 new", open)
				h.ok("ftruncate %s 5", open)
				h.ok("open made %s/made rdwr,creat", r.data)
				h.ok("write made text")
				h.ok("close made")
				h.ok("rename %s/made %s/named", r.data, r.data)
				h.ok("unlink %s/named", r.data)
				if open == "after" {
					h.ok("close after")
				}
				var seen []string
				for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
					if got := h.ok("events w"); got != "" {
						seen = append(seen, strings.Split(got, ",")...)
					}
					slices.Sort(seen)
					seen = slices.Compact(seen)
					missing := slices.ContainsFunc(strings.Split(want, ","), func(e string) bool { return !slices.Contains(seen, e) })
					if want == "" || !missing || time.Now().After(end) {
						return strings.Join(seen, ",")
					}
				}
			}
			want := work("after", "")
			var onlyOpen []string // what a file from before does not do again
			for _, e := range strings.Split(want, ",") {
				if e != "1:open:f" && e != "2:open:" && e != "1:close_write:f" && e != "2:close_write:" {
					onlyOpen = append(onlyOpen, e)
				}
			}
			g := r.inject(h, r.data, strings.ReplaceAll(mode.rule, "DATA", r.data))
			if k := kinds(g.Report.Kept); k != "2 watch" {
				t.Errorf("kept %q: %+v", k, g.Report.Kept)
			}
			if got := work("after", want); got != want {
				t.Errorf("the watch sees %s, before %s", got, want)
			}
			got := work("before", strings.Join(onlyOpen, ","))
			for _, e := range onlyOpen {
				if !strings.Contains(","+got+",", ","+e+",") {
					t.Errorf("of what is done through a file from before the watch does not see %s: %s", e, got)
				}
			}
			for _, e := range strings.Split(got, ",") { // a file below may be closed later, and twice
				if !strings.Contains(","+want+",", ","+e+",") {
					t.Errorf("the watch sees %s", e)
				}
			}
			h.is("ok 1", "watch on %s", r.data)
			h.is("ok 2", "watch on %s", f)
			h.ok("events on")
			u := r.recover(g)
			if s := kinds(u.Report.Skipped); s != "2 watch" {
				t.Errorf("left %q: %+v", s, u.Report.Skipped)
			}
			if got := h.ok("events on"); !strings.Contains(got, "1:ignored:,1:unmount:") || !strings.Contains(got, "2:ignored:,2:unmount:") {
				t.Errorf("watches on the layer end with %s", got)
			}
			h.ok("events w")
			if got := work("after", want); got != want {
				t.Errorf("after the ungraft the watch sees %s, before %s", got, want)
			}
		})
	}
}

// G20: a lease stays with the file that it was taken on, below the layer, and is
// broken by who opens the file through the layer.
func TestLeaseIsLeftAlone(t *testing.T) {
	r := newRig(t)
	f := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdonly", f)
	h.ok("open other %s rdonly", f)
	h.ok("lease f")
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync p=0 ttl=1m")
	if s := kinds(g.Report.Skipped); s != "1 descriptor" || !strings.Contains(g.Report.Skipped[0].Reason, "lease") || len(g.Report.Swapped) != 1 {
		t.Errorf("left %q: %+v; moved %+v", s, g.Report.Skipped, g.Report.Swapped)
	}
	h.is("ok 0", "leased f")
	// an open that would break it does not wait
	if got := h.do("open w %s wronly,nonblock", f); got != "EAGAIN" {
		t.Errorf("open for writing: %s", got)
	}
	h.is("ok 2", "leased f") // F_UNLCK: what it is being broken to
	h.ok("unlease f")
	h.ok("open w %s wronly,nonblock", f)
	h.ok("close w")
	for end := time.Now().Add(20 * time.Second); h.do("lease f") != "ok"; time.Sleep(10 * time.Millisecond) { // the layer closes the file below a little later
		if time.Now().After(end) {
			t.Fatal("no lease although nobody writes")
		}
	}
	r.recover(g)
	h.is("ok 0", "leased f")
	after := h.snapshot()
	delete(before, "mountinfo")
	delete(after, "mountinfo")
	same(t, before, after)
}

// FUSE lets its files into epoll, the file systems below do not: the entry ends
// with the layer. Entries for FIFOs and the like stay, see "epoll" above.
func TestPolledOnTheLayer(t *testing.T) {
	r := newRig(t)
	f := r.write("f", "0123456789")
	h := r.start()
	h.ok("open before %s rdwr", f)
	h.is("EPERM", "poll e before")
	g := r.inject(h, r.data, "io error=EIO op=fsync p=0 ttl=1m")
	h.ok("open after %s rdwr", f)
	h.ok("poll e before")
	h.ok("poll e after")
	h.is("ok 2", "ready e")
	u := r.recover(g)
	if s := kinds(u.Report.Skipped); s != "2 epoll entry" {
		t.Errorf("left %q: %+v", s, u.Report.Skipped)
	}
	h.is("ok 0", "ready e")
	h.is("ok 0123456789", "pread after 0 10")
}

// A loop device over a file under the path belongs to no process of the target.
func TestLoopDevice(t *testing.T) {
	r := newRig(t)
	image := r.write("disk image", strings.Repeat("x", 1<<20))
	out, err := exec.Command("losetup", "-f", "--show", image).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	h := r.start()
	h.ok("open f %s rdwr", r.write("f", "x"))
	if out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "--require-all", "io error=EIO op=fsync ttl=2m"); err == nil || !strings.Contains(err.Error(), device) {
		t.Errorf("with --require-all: %s, %v", out, err)
	}
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=2m")
	if s := kinds(g.Report.Skipped); s != "1 loop device" || len(g.Report.Swapped) != 1 {
		t.Errorf("left %q: %+v; moved %+v", s, g.Report.Skipped, g.Report.Swapped)
	}
	u := r.recover(g)
	if s, k := kinds(u.Report.Skipped), kinds(u.Report.Kept); s != "" || k != "1 loop device" {
		t.Errorf("left %q: %+v, kept %q", s, u.Report.Skipped, k)
	}
}
