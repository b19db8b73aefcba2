package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/failpoint"
	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/test/lab"
)

// walkDeadline is for a machine that does other things too.
const walkDeadline = 60 * time.Second

// P4, P15: the agent is killed with -9 before and after each of its steps. The
// container's program goes on, the next agent brings the container to what labels
// and policies say, each rule once, no fault is counted twice, and `recover --all`
// leaves nothing, with an agent and without one. The points are those that the
// program has; one that no scenario comes to fails.
//
// Each point is walked once, and each scenario. FAULTGRAFT_TEST_WALK=agent walks all points of all
// scenarios, FAULTGRAFT_TEST_WALK=all each of them also with `recover` in the next agent's place.
func TestAgentDeathAtEachStep(t *testing.T) {
	mode := os.Getenv("FAULTGRAFT_TEST_WALK")
	s := newSceneFor(t, 25*time.Minute) // for all of them
	steps := walkSteps(t, mode)
	program := buildRecorder(t)
	queue := make(chan walkStep, len(steps))
	for _, st := range steps {
		queue <- st
	}
	close(queue)
	t.Run("walkers", func(t *testing.T) { // ends when all do, before the scene looks for what is left
		for n := range 3 {
			t.Run(strconv.Itoa(n), func(t *testing.T) {
				t.Parallel()
				w := newWalker(s.ctx, t, s, fmt.Sprint("e2e-walk-", n), program)
				for st := range queue {
					t.Run(st.point+"/"+st.name+"/"+st.next, func(t *testing.T) {
						d := w.newDeath(t, st.point)
						d.want(st.run(d)...)
						if st.next == thenRecoverAndAgent {
							d.recovered()
						}
						if st.next != thenRecover {
							d.nextAgent()
						}
						d.nothingIsLeft()
					})
				}
			})
		}
	})
}

// walkStep is one death, and what comes after it.
type walkStep struct {
	point, next string
	scenario
}

const (
	thenAgent           = "agent"
	thenRecover         = "recover"
	thenRecoverAndAgent = "recover, agent"
)

// walkSteps lists the deaths of a run, and fails if there is a point that has none.
func walkSteps(t *testing.T, mode string) (steps []walkStep) {
	t.Helper()
	left := slices.DeleteFunc(failpoint.All(), func(p string) bool { return !strings.HasPrefix(p, "agent ") })
	seen := map[string]bool{}
	for _, sc := range scenarios {
		first := true
		for i, p := range sc.points {
			if !slices.Contains(failpoint.All(), p) {
				t.Fatalf("%s: there is no point %s", sc.name, p)
			}
			left = slices.DeleteFunc(left, func(l string) bool { return l == p })
			if mode == "" && seen[p] && (!first || i != len(sc.points)-1) {
				continue
			}
			first, seen[p] = false, true
			steps = append(steps, walkStep{p, thenAgent, sc})
			if mode == "all" || mode == "agent" && sc.alone {
				steps = append(steps, walkStep{p, thenRecover, sc})
			}
			if slices.Contains(afterAGraft, p) && !sc.recurs {
				steps = append(steps, walkStep{p, thenRecoverAndAgent, sc})
			}
		}
	}
	for _, p := range left {
		t.Errorf("%s: nobody is killed there", p)
	}
	return steps
}

// buildRecorder builds the soak's program that knows what must come of its calls.
func buildRecorder(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "recorder")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/faultgraft/faultgraft/test/soak/recorder")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the recorder: %v\n%s", err, out)
	}
	return path
}

// walker is a container in a containerd namespace of its own, so that agents of
// other walkers do not look at it.
type walker struct {
	lab       *lab.Lab
	ctx       context.Context
	namespace string
	pid       int
	config    string // the agents'
	status    string // the recorder's file
	data      string // its volume
	mounts    string // of the container
	labels    map[string]bool
}

// revive starts the container's program anew if a death that failed has left it ended: the next one is not to fail for that.
func (w *walker) revive(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/environ", w.pid)); err == nil {
		return
	}
	t.Logf("the container's program, process %d, has ended; it is started anew", w.pid)
	w.restart(t)
}

// restart has the container's program begin anew, in an empty folder.
func (w *walker) restart(t *testing.T) {
	t.Helper()
	w.ctr(t, "task", "rm", "-f", walked)
	for _, path := range []string{filepath.Join(w.data, "clean"), filepath.Join(w.data, "faulty"), w.status} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	w.ctr(t, "task", "start", "-d", walked)
	w.look(t)
}

func newWalker(ctx context.Context, t *testing.T, s *scene, namespace, program string) *walker {
	t.Helper()
	w := &walker{lab: s.lab, ctx: ctx, namespace: namespace, labels: map[string]bool{}}
	dir := t.TempDir()
	w.config, w.status, w.data = filepath.Join(dir, "config.yaml"), filepath.Join(dir, "status", "status.json"), filepath.Join(dir, "data")
	for _, d := range []string{"status", "data"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(w.config, fmt.Appendf(nil, "labels: {namespaces: [%s]}\n", namespace), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.ctr(t, "task", "rm", "-f", walked)
		w.ctr(t, "container", "rm", walked)
		w.ctr(t, "image", "rm", "--sync", lab.Image)
		if _, err := s.lab.Ctr(w.ctx, "namespaces", "rm", namespace); err != nil {
			t.Logf("the containerd namespace stays, and is empty: %v", err)
		}
	})
	w.ctr(t, "image", "import", "--local", filepath.Join(s.lab.Dir(), "img", "busybox.tar"))
	w.ctr(t, "run", "-d", "--label", "app=e2e-policy",
		// A signal ends a wait of the layer with EINTR (docs/faults.md), and Go's scheduler signals its own threads.
		"--env", "GODEBUG=asyncpreemptoff=1",
		"--mount", "type=bind,src="+w.data+",dst=/data,options=rbind:rw",
		"--mount", "type=bind,src="+filepath.Dir(program)+",dst=/opt,options=rbind:ro",
		"--mount", "type=bind,src="+filepath.Dir(w.status)+",dst=/status,options=rbind:rw",
		lab.Image, walked, "/opt/recorder", "/data", "/status/status.json", "EIO")
	w.look(t)
	return w
}

// walked is the container of a walker.
const walked = "walked"

// ctr runs ctr in the walker's namespace.
func (w *walker) ctr(t *testing.T, args ...string) string {
	t.Helper()
	out, err := w.lab.Ctr(w.ctx, append([]string{"--namespace", w.namespace}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// look takes the container as it is now, without faults, for how it is to be.
func (w *walker) look(t *testing.T) {
	t.Helper()
	list := w.ctr(t, "task", "ls") // TASK PID STATUS
	w.pid = 0
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == walked {
			w.pid, _ = strconv.Atoi(f[1]) // looked at below
		}
	}
	if w.pid == 0 {
		t.Fatalf("no task: %s", list)
	}
	w.mounts = w.mountinfo(t)
}

func (w *walker) mountinfo(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", w.pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (w *walker) recorded(t *testing.T) (now recorded) {
	t.Helper()
	b, err := os.ReadFile(w.status)
	if err == nil {
		err = json.Unmarshal(b, &now)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the recorder's status: %v", err)
	}
	return now
}

// death is one death of an agent.
type death struct {
	*testing.T
	*walker
	point, mark string
	dir         string // of the state directory and of the mark
	log         *os.File
	agent       *exec.Cmd
	ended       chan struct{}
	rules       []string // that are to be in force
	before      recorded
	// restarted: the program's own count has begun anew, and lacks what it met last.
	restarted bool
	wrong     sync.Once
}

func (w *walker) newDeath(t *testing.T, point string) *death {
	t.Helper()
	w.revive(t)
	dir, err := os.MkdirTemp("", "fg-walk-") // t.TempDir is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	d := &death{T: t, walker: w, point: point, dir: dir, before: w.recorded(t)}
	d.mark = filepath.Join(dir, "reached", failpoint.Mark("kill", point))
	if err := os.Mkdir(filepath.Dir(d.mark), 0o700); err != nil {
		t.Fatal(err)
	}
	if d.log, err = os.Create(filepath.Join(dir, "agent.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.agent != nil {
			_ = d.agent.Process.Kill() // it may have ended
			<-d.ended
		}
		if t.Failed() {
			b, _ := os.ReadFile(d.log.Name())
			t.Logf("the agents said:\n%s", b[max(0, len(b)-6000):])
			if out, err := d.run("recover", "--all", "--purge"); err != nil {
				t.Logf("recover --all --purge: %s, %v", out, err)
			}
		}
		d.label() // none
		_ = d.log.Close()
		_ = os.RemoveAll(dir)
	})
	return d
}

func (d *death) state() string                      { return filepath.Join(d.dir, "state") }
func (d *death) client() *plugin.Client             { return plugin.NewClient(d.state()) }
func (d *death) run(args ...string) (string, error) { return d.output(d.command(nil, args...)) }

// command prepares a faultgraft that works with the death's state directory.
func (d *death) command(env []string, args ...string) *exec.Cmd {
	d.Helper()
	cmd, err := d.lab.FaultgraftCommand(d.ctx, args...)
	if err != nil {
		d.Fatal(err)
	}
	cmd.Env = append(append(os.Environ(), "FAULTGRAFT_STATE="+d.state()), env...)
	return cmd
}

func (d *death) output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// start starts an agent that will die at the point once arm was called.
func (d *death) start() {
	d.Helper()
	if err := os.WriteFile(d.mark, nil, 0o600); err != nil { // as if it had died already
		d.Fatal(err)
	}
	d.startWith(failpoint.At+"=kill:"+d.point, failpoint.Reached+"="+filepath.Dir(d.mark))
	d.ready()
}

func (d *death) startWith(env ...string) {
	d.Helper()
	d.agent = d.command(env, "plugin", "--disable-nri", "--config", d.config, "--namespace", d.namespace)
	d.agent.Stdout, d.agent.Stderr = d.log, d.log
	if err := d.agent.Start(); err != nil {
		d.Fatal(err)
	}
	agent, ended := d.agent, make(chan struct{})
	d.ended = ended
	go func() { _ = agent.Wait(); close(ended) }()
}

// startArmed starts an agent that dies at the point on its way.
func (d *death) startArmed() {
	d.Helper()
	d.arm()
	d.startWith(failpoint.At+"=kill:"+d.point, failpoint.Reached+"="+filepath.Dir(d.mark))
	d.dies()
}

func (d *death) arm() {
	d.Helper()
	if err := os.Remove(d.mark); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.Fatal(err)
	}
}

// dies waits for the agent's death.
func (d *death) dies() {
	d.Helper()
	select {
	case <-d.ended:
	case <-time.After(walkDeadline):
		d.Fatalf("the agent does not come to %s", d.point)
	}
	b, err := os.ReadFile(d.mark)
	ws, _ := d.agent.ProcessState.Sys().(syscall.WaitStatus)
	if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(d.agent.Process.Pid) || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		d.Fatalf("the agent (process %d) did not die at %s, but by itself: %s; %q, %v", d.agent.Process.Pid, d.point, d.agent.ProcessState, b, err)
	}
	d.agent = nil
}

// ready waits until an agent answers and has looked at the container.
func (d *death) ready() {
	d.Helper()
	var err error
	for end := time.Now().Add(walkDeadline); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case <-d.ended:
			d.Fatalf("the agent has ended: %s", d.agent.ProcessState)
		default:
		}
		// A dry run waits until all containers are known; a start has the container looked at.
		if _, err = d.client().ApplyPolicies(d.ctx, "-", []byte(d.policy()), true); err == nil {
			if err = d.looked(); err == nil {
				return
			}
		}
	}
	d.Fatalf("the agent does not answer: %v", err)
}

// looked has the agent look at the container, and waits for that.
func (d *death) looked() error {
	_, err := d.client().Start(d.ctx, plugin.StartRequest{Namespace: d.namespace, ID: walked, PID: d.pid, WaitMs: 30000})
	return err
}

// label has the container carry these rules, "NAME=TEXT", and no others.
func (d *death) label(rules ...string) {
	d.Helper()
	now := map[string]bool{}
	var args []string
	for _, r := range rules {
		name, text, _ := strings.Cut(r, "=")
		args, now[name] = append(args, name+".faultgraft.io="+text), true
	}
	for name := range d.labels {
		if !now[name] {
			args = append(args, name+".faultgraft.io=")
		}
	}
	d.labels = now
	if len(args) == 0 {
		return
	}
	d.ctr(d.T, append([]string{"containers", "label", walked}, args...)...)
}
