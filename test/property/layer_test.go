package property

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/programs"
	"golang.org/x/sys/unix"
)

// grafted is a program in a mount namespace of its own, and a folder of it over
// which layers come and go through the faultgraft command.
type grafted struct {
	t      testing.TB
	state  string
	data   string
	dev    [2]uint32          // of the folder, major and minor
	layers map[[2]uint32]bool // devices of the layers that there were
	p      *program
	grafts int
	pauses []time.Duration
}

// inNamespace are the words before a program that give it its mount namespace.
var inNamespace = []string{"unshare", "--mount", "--propagation", "private"}

// newGrafted starts a program; DATA in its words is the folder.
func newGrafted(t testing.TB, attr *syscall.SysProcAttr, args ...string) *grafted {
	t.Helper()
	faultgraft(t)
	base, err := os.MkdirTemp("", "faultgraft-layer")
	if err != nil {
		t.Fatal(err)
	}
	g := &grafted{t: t, layers: map[[2]uint32]bool{}, state: filepath.Join(base, "state"), data: filepath.Join(base, "data")}
	if err := os.Mkdir(g.data, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{base, g.data} { // a program under another user makes files there
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if out, err := g.run("recover", "--all", "--purge"); err != nil {
			t.Errorf("recover --all --purge: %v: %s", err, out)
		}
		if _, err := os.Stat(g.state); err == nil {
			t.Error("state is left")
		}
		_ = os.RemoveAll(base)
	})
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, g.data, 0, unix.STATX_BASIC_STATS, &x); err != nil {
		t.Fatal(err)
	}
	g.dev = [2]uint32{x.Dev_major, x.Dev_minor}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "DATA", g.data)
	}
	g.p = start(t, attr, args...)
	return g
}

// run is a faultgraft command.
func (g *grafted) run(args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.Command(faultgraft(g.t), args...)
	cmd.Env = append(os.Environ(), "FAULTGRAFT_STATE="+g.state)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), err
}

func (g *grafted) change(args ...string) keeper.Graft {
	g.t.Helper()
	out, err := g.run(append(args, "-o", "json")...)
	for end := time.Now().Add(2 * time.Minute); tooBusy(err) && time.Now().Before(end); {
		out, err = g.run(append(args, "-o", "json")...)
	}
	var gs []keeper.Graft
	if err == nil {
		if strings.HasPrefix(out, "{") { // update answers for one graft, the others for several
			out = "[" + out + "]"
		}
		err = json.Unmarshal([]byte(out), &gs)
	}
	if err != nil || len(gs) != 1 {
		events, _ := g.run("events")
		g.t.Fatalf("%s: %v: %q\n%s\ntarget: %s", args[0], err, out, events, &g.p.said)
	}
	if gs[0].Report != nil {
		g.pauses = append(g.pauses, gs[0].Report.Pause)
	}
	return gs[0]
}

// tooBusy: a move of open files took so long that others, who opened the same files, could not wait for it. Nothing was changed.
func tooBusy(err error) bool {
	return err != nil && strings.Contains(err.Error(), "try it again when there is less to do")
}

// inject grafts, and checks that nothing but what the report names is on the old mount.
func (g *grafted) inject(args ...string) keeper.Graft {
	g.t.Helper()
	r := g.change(append([]string{"inject", "--pid", fmt.Sprint(g.p.pid()), "--path", g.data, "--deadline", "20s"}, args...)...)
	g.grafts++
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/root%s", g.p.pid(), g.data), 0, unix.STATX_BASIC_STATS, &x); err != nil {
		g.t.Fatal(err)
	}
	g.layers[[2]uint32{x.Dev_major, x.Dev_minor}] = true
	reported := map[uint64]bool{}
	for _, s := range r.Report.Skipped {
		reported[s.Object.Ino] = true
	}
	gone(g.t, "graft", time.Second, g.processes, func(o *object) bool {
		return g.below(o) && swappable(o) && g.outside(o) && !reported[o.stat.Ino]
	})
	undisturbed(g.t, g.processes)
	return r
}

// recover ungrafts, and checks that nothing is left on the layer.
func (g *grafted) recover(of keeper.Graft) keeper.Graft {
	g.t.Helper()
	r := g.change("recover", of.ID)
	gone(g.t, "ungraft", time.Second, g.processes, g.onLayer)
	undisturbed(g.t, g.processes)
	return r
}

func (g *grafted) processes() []int { return group(g.p.pid()) }

func (g *grafted) below(o *object) bool { return strings.HasPrefix(o.link, g.data) }

// onLayer: also on one that is off, and without a path.
func (g *grafted) onLayer(o *object) bool {
	return g.below(o) && !g.outside(o) || g.layers[[2]uint32{o.stat.Dev_major, o.stat.Dev_minor}]
}

// outside: on the file system below, not on a layer.
func (g *grafted) outside(o *object) bool {
	return o.stat.Dev_major == g.dev[0] && o.stat.Dev_minor == g.dev[1]
}

// Rules that never fire: for the first the kernel serves files by itself, for the
// second each read and write asks the layer.
const (
	elsewhere = "io error=EACCES op=mkdir path=%s/none/** ttl=10m"
	never     = "io error=EIO op=read+write+fsync p=0 ttl=10m"
)

// G19: the same storms as in TestStormsBetweenMounts, under real layers.
func TestStormsOnLayers(t *testing.T) {
	for _, kind := range []string{"exec", "clone"} {
		t.Run(kind, func(t *testing.T) {
			g := newGrafted(t, &syscall.SysProcAttr{}, append(inNamespace, programs.C(t, "storms"), kind, "DATA", "3")...)
			for again := runFor(t, 4*time.Second); again(); {
				for _, rule := range []string{fmt.Sprintf(elsewhere, g.data), never} {
					of := g.inject(rule)
					g.p.ask("check")
					g.recover(of)
					g.p.ask("check")
				}
			}
			answer := g.p.quit()
			t.Logf("%d grafts, %s, target: %s", g.grafts, spread(g.pauses), answer)
		})
	}
}

// G1: 10,000 open files and 200 threads are moved whole, and the report tells how
// long the target and each of its processes was stopped. Swapper and server need two
// descriptors for each file; where the hard limit is lower, and CAP_SYS_RESOURCE is
// missing, there are fewer files.
func TestManyFilesManyThreads(t *testing.T) {
	const threads = 200
	files := 10000
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, caps, _ := strings.Cut(string(status), "CapEff:\t")
	var have uint64
	if _, err := fmt.Sscanf(caps, "%x", &have); err != nil {
		t.Fatal(err)
	}
	const others = 1000 // descriptors that are not of these files
	if most := (int(lim.Max) - others) / 2; have&(1<<unix.CAP_SYS_RESOURCE) == 0 && most < files {
		files = most
		t.Logf("%d files: RLIMIT_NOFILE is %d, and may not be raised", files, lim.Max)
	}
	limit := fmt.Sprintf("--nofile=%d", files+others)
	g := newGrafted(t, &syscall.SysProcAttr{}, append(append([]string{"prlimit", limit}, inNamespace...), programs.C(t, "target"), "files", "DATA", fmt.Sprint(files), fmt.Sprint(threads))...)
	// One that would take longer than it may is given up, and changes nothing.
	out, err := g.run("inject", "--pid", fmt.Sprint(g.p.pid()), "--path", g.data, "--deadline", "1ms", never)
	if err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("a graft that may stop its target for 1 ms: %q, %v", out, err)
	}
	t.Log(err)
	g.p.ask("check")
	if left := census(g.processes(), func(o *object) bool { return g.below(o) && !g.outside(o) }); len(left) > 0 {
		t.Errorf("%d objects are on a layer: %s", len(left), left[0])
	}
	undisturbed(t, g.processes)

	of := g.inject(fmt.Sprintf(elsewhere, g.data))
	whole := func(what string, k keeper.Graft) {
		t.Helper()
		r := k.Report
		if len(r.Swapped) < files || len(r.Skipped) > 0 {
			t.Errorf("%s: %d objects moved, not %+v", what, len(r.Swapped), r.Skipped)
		}
		if r.Pause <= 0 || len(r.Stopped) != 1 || r.Stopped[0].Threads != threads || r.Stopped[0].Pause <= 0 || r.Stopped[0].Pause > r.Pause {
			t.Errorf("%s: pause %v, of processes %+v", what, r.Pause, r.Stopped)
		}
		t.Logf("%s: %d objects, %d threads: prepared in %v, stopped for %v", what, len(r.Swapped), threads, r.Prepare, r.Pause)
	}
	whole("graft", of)
	g.p.ask("check")
	whole("ungraft", g.recover(of))
	g.p.ask("check")
	g.p.quit()
}

// Processes into which others may not look, or whose user is another one: by a
// set-ID bit, by prctl(2), by their user namespace. The kernel lets our ptrace(2) in all the same.
func TestPrivateProcesses(t *testing.T) {
	const nobody = 65534
	words := func(before ...string) []string {
		return append(append(before, inNamespace...), programs.C(t, "target"), "files", "DATA", "20", "3")
	}
	setID := func(t *testing.T) []string {
		path := programs.C(t, "target") + "-set-id"
		b, err := os.ReadFile(programs.C(t, "target"))
		if err == nil {
			err = os.WriteFile(path, b, 0o755)
		}
		if err == nil {
			err = os.Chown(path, nobody, nobody)
		}
		if err == nil {
			err = os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid)
		}
		if err != nil {
			t.Fatal(err)
		}
		return append(append([]string{}, inNamespace...), path, "files", "DATA", "20", "3")
	}
	status := func(t *testing.T, pid int, line string) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "\n"+line+":")
		rest, _, _ = strings.Cut(rest, "\n")
		return strings.Join(strings.Fields(rest), " ")
	}
	owner := func(t *testing.T, pid int) uint32 {
		var s unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/environ", pid), &s); err != nil {
			t.Fatal(err)
		}
		return s.Uid
	}
	userNamespace := func(t *testing.T, pid int) string {
		l, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for name, c := range map[string]struct {
		words  []string
		really func(t *testing.T, pid int) bool
	}{
		"set-user-ID": {setID(t), func(t *testing.T, pid int) bool {
			return status(t, pid, "Uid") == "0 65534 65534 65534" && status(t, pid, "CapEff") == "0000000000000000"
		}},
		"not dumpable": {words("env", "TARGET_NOT_DUMPABLE=1"), func(t *testing.T, pid int) bool { return true }},
		"another user, not dumpable, no capabilities": {
			append(append([]string{}, inNamespace...), "env", "TARGET_NOT_DUMPABLE=1", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
				"--bounding-set=-all", "--no-new-privs", programs.C(t, "target"), "files", "DATA", "20", "3"),
			func(t *testing.T, pid int) bool {
				return status(t, pid, "Uid") == "65534 65534 65534 65534" && status(t, pid, "CapBnd") == "0000000000000000" && owner(t, pid) == 0
			},
		},
		"user namespace": {words("unshare", "--user", "--map-root-user"), func(t *testing.T, pid int) bool {
			return userNamespace(t, pid) != userNamespace(t, os.Getpid())
		}},
		"user namespace in another": {words("unshare", "--user", "--map-root-user", "unshare", "--user", "--map-root-user"), func(t *testing.T, pid int) bool {
			return userNamespace(t, pid) != userNamespace(t, os.Getpid())
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGrafted(t, &syscall.SysProcAttr{}, c.words...)
			if !c.really(t, g.p.pid()) {
				t.Fatalf("the target is not what it should be: uid %s, capabilities %s", status(t, g.p.pid(), "Uid"), status(t, g.p.pid(), "CapEff"))
			}
			for range 2 {
				of := g.inject("--require-all", never)
				if len(of.Report.Swapped) < 21 { // and the working directory
					t.Errorf("moved %d objects: %+v", len(of.Report.Swapped), of.Report)
				}
				g.p.ask("check")
				g.recover(of)
				g.p.ask("check")
			}
			g.p.quit()
		})
	}
}
