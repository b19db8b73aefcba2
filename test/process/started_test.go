package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"golang.org/x/sys/unix"
)

// buildStarted builds test/started into the data directory: what is started from
// there during a graft comes from the layer.
func (r *rig) buildStarted() {
	r.t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		r.t.Skip("gcc is not installed: apt-get install gcc libc6-dev")
	}
	for name, flags := range map[string][]string{
		"static": {"-DSTATIC", "-static"}, "dynamic": nil, "lib.so": {"-DLIBRARY", "-shared", "-fPIC"},
	} {
		args := append([]string{"-O1", "-o", filepath.Join(r.data, name), "../started/started.c"}, flags...)
		if out, err := exec.Command(gcc, args...).CombinedOutput(); err != nil {
			r.t.Fatalf("gcc: %v\n%s", err, out)
		}
	}
	r.write("script", "#!"+r.data+"/dynamic\n")
	if err := os.Chmod(r.data+"/script", 0o755); err != nil {
		r.t.Fatal(err)
	}
}

// unprivileged takes from a program what it needs to have its executable exchanged (prctl(2), PR_SET_MM_EXE_FILE), as containers do.
var unprivileged = []string{"setpriv", "--bounding-set=-sys_admin,-sys_resource,-checkpoint_restore"}

// beside starts a program in the mount namespace of a target.
func (r *rig) beside(h *holder, args ...string) *holder {
	r.t.Helper()
	p := r.launch(append([]string{"nsenter", "-t", fmt.Sprint(h.pid()), "-m"}, args...)...)
	if got := p.line("its start"); got != "ready" {
		r.t.Fatalf("the program says %q", got)
	}
	return p
}

// fromLayer lists what of a process is on a file system that is mounted nowhere: maps and the executable, by their device.
func fromLayer(t testing.TB, pid int, dev uint64) (found []string) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/map_files/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range append(links, fmt.Sprintf("/proc/%d/exe", pid)) {
		var x unix.Statx_t
		if unix.Statx(unix.AT_FDCWD, l, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &x) == nil && unix.Mkdev(x.Dev_major, x.Dev_minor) == dev {
			found = append(found, l)
		}
	}
	return found
}

// layerDev is st_dev of the layer over the data directory.
func (r *rig) layerDev(h *holder) uint64 {
	r.t.Helper()
	for _, l := range strings.Split(h.mountinfo(), "\n") {
		f := strings.Fields(l)
		if len(f) > 4 && f[4] == r.data && strings.Contains(l, "fuse.faultgraft") {
			var major, minor uint32
			if _, err := fmt.Sscanf(f[2], "%d:%d", &major, &minor); err == nil {
				return unix.Mkdev(major, minor)
			}
		}
	}
	r.t.Fatalf("no layer in %s", h.mountinfo())
	return 0
}

// runs has a program run code of its executable and, if it is not static, of its library, on pages n and up.
func runs(p *holder, lib bool, n int) {
	p.t.Helper()
	for i := n; i < n+3; i++ {
		p.is(fmt.Sprintf("ok %d", i*1001), "call %d", i)
		if lib {
			p.is(fmt.Sprintf("ok %d", i*1001), "lib %d", i)
		}
	}
	p.is("ok data of the program marked", "marked")
}

// lingering waits for the number of layers that go on after they were taken off.
func (r *rig) lingering(want int) (left []keeper.Graft) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left = left[:0]
		for _, g := range r.list() {
			if g.State == keeper.StateLingering {
				left = append(left, g)
			}
		}
		if len(left) == want {
			return left
		}
		if time.Now().After(end) {
			r.t.Fatalf("%d layers linger, want %d: %+v%s", len(left), want, left, r.logs())
		}
	}
}

// G13: what was started from the layer goes on when the layer is taken off: it runs pages of its executable and of a
// library that were never read before. Without the capability to give it another executable, the layer is served on for /proc/PID/exe alone.
func TestStartedFromTheLayer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, program string
		lib           bool
		with          []string
		rule          string // decides whether the kernel passes the files through, or asks the server for each page
		lingers       bool
	}{
		{name: "static", program: "static", rule: "op=read p=0"},
		{name: "dynamic", program: "dynamic", lib: true, rule: "op=read p=0"},
		{name: "passed through", program: "dynamic", lib: true, rule: "op=fsync"},
		{name: "script", program: "script", lib: true, rule: "op=read p=0"},
		{name: "unprivileged", program: "static", with: unprivileged, rule: "op=read p=0", lingers: true},
		{name: "unprivileged, passed through", program: "dynamic", lib: true, with: unprivileged, rule: "op=fsync", lingers: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.buildStarted()
			h := r.start()
			g := r.inject(h, r.data, "io error=EIO "+c.rule+" ttl=2m")
			dev := r.layerDev(h)
			p := r.beside(h, append(c.with, r.data+"/"+c.program)...)
			p.ok("mark")
			if c.lib {
				p.ok("load %s/lib.so", r.data)
			}
			runs(p, c.lib, 0)
			if len(fromLayer(t, p.pid(), dev)) == 0 {
				t.Fatal("nothing of the program is on the layer")
			}
			u := r.recover(g)
			for _, s := range u.Report.Skipped {
				t.Logf("left: %s: %s", &s.Object, s.Reason)
			}
			left := fromLayer(t, p.pid(), dev)
			switch exe := fmt.Sprintf("/proc/%d/exe", p.pid()); {
			case !c.lingers && len(left) > 0, c.lingers && (len(left) != 1 || left[0] != exe):
				t.Errorf("left on the layer: %q", left)
			}
			if c.lingers {
				l := r.lingering(1)
				want := fmt.Sprintf("process %d (static) was started from the layer", p.pid())
				if c.lib {
					want = fmt.Sprintf("process %d (dynamic) was started from the layer", p.pid())
				}
				if l[0].ID != g.ID || !strings.Contains(l[0].Reason, want) {
					t.Errorf("lingers: %q, want %q", l[0].Reason, want)
				}
			}
			runs(p, c.lib, 100)
			p.is("ok ELF", "exe")
			if got := p.do("reexec"); got != "ready" {
				t.Errorf("execution of /proc/self/exe: %q", got)
			}
			p.ok("mark")
			runs(p, false, 200)
			r.lingering(map[bool]int{true: 1}[c.lingers])
			p.stop()
			r.lingering(0)
		})
	}
}

// The server dies under a program that was started from the layer: it goes on with what lies below.
func TestStartedFromTheLayerOfAServerThatDies(t *testing.T) {
	r := newRig(t)
	r.env = noTakeover
	r.buildStarted()
	h := r.start()
	r.inject(h, r.data, "io error=EIO op=read p=0 ttl=2m")
	dev := r.layerDev(h)
	p := r.beside(h, append(unprivileged, r.data+"/dynamic")...)
	p.ok("mark")
	p.ok("load %s/lib.so", r.data)
	runs(p, true, 0)
	r.signal("server", syscall.SIGKILL)
	runs(p, true, 100) // it waits, at most
	r.awaitUnmounted(h, 20*time.Second)
	runs(p, true, 200)
	if left := fromLayer(t, p.pid(), dev); len(left) != 1 {
		t.Errorf("left on the layer: %q", left)
	}
}

// What cannot be moved is served on until it goes: a map that is sealed, whose pages the server has to read.
func TestWhatCannotBeMovedGoesOn(t *testing.T) {
	r := newRig(t)
	r.buildStarted()
	pages := make([]byte, 1<<20)
	for i := range pages {
		pages[i] = byte(i >> 12)
	}
	r.write("f", string(pages))
	h := r.start()
	g := r.inject(h, r.data, "io error=EIO op=read p=0 path=/**/f ttl=2m")
	p := r.beside(h, r.data+"/static")
	if got := p.do("seal %s/f", r.data); got == "error ENOSYS" {
		t.Skip("mseal(2) needs Linux 6.10")
	} else if got != "ok" {
		t.Fatal(got)
	}
	p.is("ok 1", "sealed 1")
	r.recover(g)
	l := r.lingering(1)
	if !strings.Contains(l[0].Reason, "sealed") || !strings.Contains(l[0].Reason, fmt.Sprint(p.pid())) {
		t.Errorf("lingers: %q", l[0].Reason)
	}
	p.is("ok 200", "sealed 200")
	// Another graft over the same place is not held up by what is left of this one, nor the other way round.
	again := r.inject(h, r.data, "io error=EIO op=fsync ttl=2m")
	p.is("ok 100", "sealed 100")
	r.recover(again)
	if out, err := r.run("recover", "--all"); err != nil || !strings.Contains(out, "lingers: ") {
		t.Errorf("recover --all: %q, %v", out, err)
	}
	p.is("ok 150", "sealed 150")
	// Without its keeper the server goes on by itself.
	r.signal("keeper", syscall.SIGKILL)
	for end := time.Now().Add(30 * time.Second); len(r.processes("keeper")) > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	p.is("ok 250", "sealed 250")
	p.stop()
	for end := time.Now().Add(20 * time.Second); len(r.processes("server")) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the server does not end%s", r.logs())
		}
	}
}

// A mount namespace that was copied during the graft has the layer still, and everything under it works.
func TestCopiedNamespaceGoesOn(t *testing.T) {
	r := newRig(t)
	r.buildStarted()
	r.write("f", "text")
	h := r.start()
	g := r.inject(h, r.data, "io error=EIO op=read ttl=2m path=/**/f")
	p := r.beside(h, "unshare", "--mount", "--propagation", "private", r.data+"/static")
	p.is("ok", "open %s/f", r.data)
	p.is("error EIO", "read")
	r.recover(g)
	p.is("ok text", "read")
	p.is("ok", "close")
	r.lingering(1)
	p.is("ok", "open %s/f", r.data)
	p.is("ok text", "read")
	p.stop()
	r.lingering(0)
}
