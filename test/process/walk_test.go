package process

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/failpoint"
	_ "github.com/faultgraft/faultgraft/plugin" // has points too
	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/tracer"
)

// walkDeadline is for a machine that does other things too.
const walkDeadline = 60 * time.Second

// jobs say what brings the processes to the points of a job, and who dies there.
// Those that are not "self" are killed while the process that came to the point is stopped.
var jobs = map[string]struct {
	scenario func(*walk)
	victims  []string
}{
	"client":          {(*walk).grafting, []string{"self"}},
	"keeper start":    {(*walk).grafting, []string{"self", "command"}},
	"keeper graft":    {(*walk).grafting, []string{"self", "command"}},
	"keeper ungraft":  {(*walk).ungrafting, []string{"self", "command"}},
	"keeper change":   {(*walk).changing, []string{"self", "command"}},
	"keeper end":      {(*walk).ungrafting, []string{"self"}},
	"swapper graft":   {(*walk).grafting, []string{"self", "keeper", "command"}},
	"swapper ungraft": {(*walk).ungrafting, []string{"self", "keeper", "command"}},
	"swapper move":    {(*walk).changing, []string{"self", "keeper", "command"}},
	"server follow":   {(*walk).following, []string{"self", "keeper"}},
	"server inherit":  {(*walk).inheriting, []string{"self", "keeper"}},
	"server":          {(*walk).serving, []string{"self"}},
	"stop":            {(*walk).stopping, []string{"self"}},
	"release":         {(*walk).releasing, []string{"self"}},
	"file":            {(*walk).stopping, []string{"self"}},
}

// atRoot are the steps that only a layer over "/" has.
var atRoot = map[string]bool{graft.StepTop: true, graft.StepBottom: true, graft.StepCopied: true, graft.StepCarried: true, graft.StepRoots: true}

// P4, G22, P15: whoever is killed with -9 before or after each step of a graft, of
// an ungraft and of a change of rules, the target goes on with what it has open,
// and what is left completes, or comes off whole. The points are those that the
// processes have; one that is not reached fails.
func TestDeathAtEachStep(t *testing.T) {
	steps := map[string]int{}
	for _, point := range failpoint.All() {
		job, step, _ := strings.Cut(point, ".")
		if strings.HasPrefix(job, "agent ") || strings.HasPrefix(job, "kernel ") {
			continue // test/e2e and kernel walk these
		}
		i := steps[job]
		steps[job]++
		j, known := jobs[job]
		if !known {
			t.Errorf("%s: nobody is killed there", point)
		}
		for n, victim := range j.victims {
			if !wholeWalk() && !sampled(job, i, n) {
				continue
			}
			t.Run(point+"/"+victim, func(t *testing.T) {
				t.Parallel()
				w := &walk{rig: newRig(t), point: point, victim: victim, root: atRoot[step] && strings.HasPrefix(job, "swapper")}
				j.scenario(w)
				w.check()
			})
		}
	}
}

// wholeWalk: FAULTGRAFT_TEST_WALK=all asks for all that is a sample otherwise.
func wholeWalk() bool { return os.Getenv("FAULTGRAFT_TEST_WALK") == "all" }

// sampled picks the deaths of the usual run: who comes to a point dies there himself at every second one, and at those between the
// next victim does. Whoever asked for it dies at the keeper's steps: that is who notices, and the swapper's are between two of them.
func sampled(job string, step, victim int) bool {
	if len(jobs[job].victims) == 1 {
		return true
	}
	return victim == step%2
}

// walk is one death.
type walk struct {
	*rig
	point, victim string
	root          bool
	h             *holder
	before        map[string]string
	path, file    string // where the layer comes, and a file there
}

// target starts what is grafted: on a volume that is shared with the host, or in a container whose root is.
func (w *walk) target() {
	w.t.Helper()
	if w.root {
		w.h, _ = w.rooted()
		w.before, w.path, w.file = w.h.snapshot(), "/", "/data/f"
		return
	}
	w.h = w.sharedTarget()
	w.h.ok("open locked %s rdwr", w.write("sub/locked", "x"))
	w.h.ok("setlk locked 0 1")
	w.h.ok("mmap M f 10 shared")
	w.h.ok("chdir %s", w.data+"/sub")
	w.before, w.path, w.file = w.h.snapshot(), w.data, w.data+"/sub/f"
}

func (w *walk) grafting() {
	w.target()
	w.die("inject", "--pid", fmt.Sprint(w.h.pid()), "--path", w.path, "io error=EIO op=fsync ttl=10m")
}

func (w *walk) ungrafting() {
	w.target()
	w.arm()
	g := w.inject(w.h, w.path, "io error=EIO op=fsync ttl=10m")
	w.h.is("EIO", "fsync f")
	w.die("recover", g.ID)
}

func (w *walk) changing() {
	o := openInEveryWay(w.rig)
	w.h = o.h
	w.before, w.path, w.file = w.h.snapshot(), w.data, o.file
	w.arm()
	g := w.inject(w.h, w.data, "io error=EIO op=mkdir ttl=10m")
	w.die("update", g.ID, "io error=EIO op=read path="+o.file+" ttl=10m")
}

// following is a server that follows one that was killed.
func (w *walk) following() {
	w.target()
	w.arm()
	w.inject(w.h, w.path, "io error=EIO op=fsync ttl=10m")
	w.env = nil
	w.h.is("EIO", "fsync f")
	var servers []string
	for end := time.Now().Add(walkDeadline); len(servers) != 1; time.Sleep(10 * time.Millisecond) { // its holder has its name for a moment
		if time.Now().After(end) {
			w.t.Fatalf("servers: %q", servers)
		}
		servers = slices.DeleteFunc(w.leftovers(), func(l string) bool { return !strings.Contains(l, " server ") })
	}
	pid, _ := processIn(servers[0])
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		w.t.Fatal(err)
	}
	at := w.await()
	if w.victim != "self" {
		w.kill(0, at)
	}
}

// inheriting is a server whose keeper was killed, and that has another one take the layer off.
func (w *walk) inheriting() {
	w.target()
	w.arm()
	w.inject(w.h, w.path, "io error=EIO op=fsync ttl=10m")
	w.env = nil
	w.h.is("EIO", "fsync f")
	w.signal("keeper", syscall.SIGKILL)
	at := w.await()
	if w.victim != "self" {
		w.kill(0, at)
	}
}

// serving is a server that dies in the middle of an order.
func (w *walk) serving() {
	w.target()
	w.arm()
	g := w.inject(w.h, w.path, "io error=EIO op=fsync ttl=10m")
	w.h.is("EIO", "fsync f")
	w.die("release", g.ID)
}

// stopping is a stop of the node that does not come to its end. The next one does, and the release
// knows what there was.
func (w *walk) stopping() {
	w.target()
	g := w.inject(w.h, w.path, "io error=EIO op=fsync ttl=10m")
	w.die("stop", "--all", "--reason", "a test")
	if out, err := w.run("stop", "--all", "--reason", "a test"); err != nil {
		w.t.Errorf("stop once more: %s, %v", out, err)
	}
	if out, err := w.run("inject", "--pid", fmt.Sprint(w.h.pid()), "--path", w.path, "io error=EIO op=fsync ttl=10m"); err == nil || !strings.Contains(err.Error(), "stopped") {
		w.t.Errorf("inject on a stopped node: %s, %v", out, err)
	}
	mark, err := keeper.ReadStopped(w.state)
	step, late := strings.CutPrefix(w.point, "stop.")
	if err != nil || mark == nil || late && step != "forbidden" && !slices.Contains(mark.Grafts, g.ID) {
		w.t.Errorf("%s was taken off for the stop, of which this is known: %+v, %v", g.ID, mark, err)
	}
	if out, err := w.run("release"); err != nil {
		w.t.Errorf("release: %s, %v", out, err)
	}
}

// releasing is a release that does not come to its end.
func (w *walk) releasing() {
	w.target()
	if out, err := w.run("stop", "--all", "--reason", "a test"); err != nil {
		w.t.Fatalf("stop: %s, %v", out, err)
	}
	w.die("release")
	if _, err := w.run("release"); err != nil && !strings.Contains(err.Error(), "not stopped") {
		w.t.Errorf("release once more: %v", err)
	}
	w.inject(w.h, w.path, "io error=EIO op=fsync ttl=10m")
}

func (w *walk) how() string {
	if w.victim == "self" {
		return "kill"
	}
	return "stop"
}

// arm has the point do its work in whatever is started from here on.
func (w *walk) arm() { w.env = []string{failpoint.At + "=" + w.how() + ":" + w.point} }

// die runs the command in which somebody dies.
func (w *walk) die(args ...string) {
	w.t.Helper()
	w.arm()
	cmd := w.command(args...)
	w.env = nil // who comes later is not hit
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	at := w.await()
	if w.victim != "self" {
		w.kill(cmd.Process.Pid, at)
	}
	select {
	case err := <-ended:
		w.t.Logf("the command: %v: %s", err, strings.TrimSpace(out.String()))
	case <-time.After(walkDeadline):
		_ = cmd.Process.Kill()
		w.t.Errorf("the command does not end")
	}
}

// await waits until a process has come to the point, and gives its id.
func (w *walk) await() int {
	w.t.Helper()
	mark := filepath.Join(w.reached, failpoint.Mark(w.how(), w.point))
	for end := time.Now().Add(walkDeadline); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		b, err := os.ReadFile(mark)
		if err != nil || !strings.HasSuffix(string(b), "\n") {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			w.t.Fatal(err)
		}
		if w.victim == "self" || stopped(pid) {
			return pid
		}
	}
	w.t.Fatalf("nobody came to %s%s", w.point, w.logs())
	return 0
}

func stopped(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may have ended
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "T")
}

// kill ends the victim and lets the process at the point go on.
func (w *walk) kill(command, at int) {
	w.t.Helper()
	victim := command
	if w.victim != "command" {
		victim = 0
		for _, l := range w.leftovers() {
			if strings.Contains(l, " "+w.victim+" ") {
				_, _ = fmt.Sscanf(l, "/proc/%d/exe", &victim)
			}
		}
	}
	if victim == 0 {
		w.t.Fatalf("no %s", w.victim)
	}
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		w.t.Errorf("kill %s: %v", w.victim, err)
	}
	if err := syscall.Kill(at, syscall.SIGCONT); err != nil {
		w.t.Errorf("let process %d go on: %v", at, err)
	}
}

// check looks at the target at once, waits until all is settled, and has it recovered without an agent.
func (w *walk) check() {
	w.t.Helper()
	works := func() {
		w.t.Helper()
		w.h.ok("stat /")
		w.h.ok("getcwd")
		w.h.ok("stat %s", w.file)
	}
	works()
	end := time.Now().Add(walkDeadline)
	for ; ; time.Sleep(20 * time.Millisecond) {
		if w.settled() {
			break
		}
		if time.Now().After(end) {
			w.t.Fatalf("not settled: %+v; %q%s", w.list(), w.leftovers(), w.logs())
		}
	}
	works()
	logs := w.logs()
	if out, err := w.run("recover", "--all", "--purge"); err != nil {
		w.t.Errorf("recover --all --purge: %v: %s%s", err, out, logs)
	}
	w.h.ok("stat /") // not in the middle of a stop
	after := w.h.snapshot()
	if w.victim == "self" && strings.HasSuffix(w.point, "."+tracer.StepLocks) {
		for k := range w.before { // in that moment it has a read lock: docs/swap.md, "POSIX locks"
			w.before[k], after[k] = strings.ReplaceAll(w.before[k], " WRITE ", " READ "), strings.ReplaceAll(after[k], " WRITE ", " READ ")
		}
	}
	same(w.t, w.before, after)
}

// settled: nothing is half done. Either there is no graft and no layer, or one with its rules and its processes.
func (w *walk) settled() bool {
	layers := strings.Contains(w.h.mountinfo(), "fuse.faultgraft")
	grafts, err := (&keeper.Client{StateDir: w.state}).List(context.Background())
	if err != nil {
		return false
	}
	for _, g := range grafts {
		if g.State != keeper.StateActive && g.State != keeper.StateFailed { // one that failed to come off is tried again by the keeper, or now by recover
			return false
		}
	}
	for _, l := range w.leftovers() {
		// A server whose keeper was killed is about to start another one.
		if strings.Contains(l, " swap ") || len(grafts) == 0 && (strings.Contains(l, " server ") || strings.Contains(l, " --inherit ")) {
			return false
		}
	}
	return layers == (len(grafts) > 0)
}

// processIn is the process of a line of leftovers; false: it is a mount.
func processIn(leftover string) (pid int, ok bool) {
	_, err := fmt.Sscanf(leftover, "/proc/%d/exe", &pid)
	return pid, err == nil
}
