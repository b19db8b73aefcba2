package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/test/deaths"
	"github.com/faultgraft/faultgraft/test/lab"
	"github.com/faultgraft/faultgraft/test/programs"
	"github.com/faultgraft/faultgraft/test/soak/recorded"
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
	s := newSceneFor(t, 25*time.Minute) // for all of them
	steps := deaths.Walk[*death]{
		Mode: os.Getenv("FAULTGRAFT_TEST_WALK"), Scenarios: scenarios, AlsoRecovered: afterAGraft,
		Own: func(p string) bool { return strings.HasPrefix(p, "agent ") },
	}.Steps(t)
	recorder := programs.MustGo(t, "test/soak/recorder")
	queue := make(chan deaths.Step[*death], len(steps))
	for _, st := range steps {
		queue <- st
	}
	close(queue)
	t.Run("walkers", func(t *testing.T) { // ends when all do, before the scene looks for what is left
		for n := range 3 {
			t.Run(strconv.Itoa(n), func(t *testing.T) {
				t.Parallel()
				w := newWalker(s.ctx, t, s, fmt.Sprint("e2e-walk-", n), recorder)
				for st := range queue {
					t.Run(st.Point+"/"+st.Name+"/"+st.Next, func(t *testing.T) { deaths.Take(w.newDeath(t, st.Point), st) })
				}
			})
		}
	})
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

func newWalker(ctx context.Context, t *testing.T, s *scene, namespace, recorder string) *walker {
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
		"--mount", "type=bind,src="+recorder+",dst=/recorder,options=rbind:ro",
		"--mount", "type=bind,src="+filepath.Dir(w.status)+",dst=/status,options=rbind:rw",
		lab.Image, walked, "/recorder", "/data", "/status/status.json", "EIO")
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

// recorded is what the program has seen by now.
func (w *walker) recorded(t *testing.T) recorded.Status {
	t.Helper()
	now, err := recorded.ReadNow(w.status, walkDeadline)
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// death is one death of an agent.
type death struct {
	*testing.T
	*walker
	*deaths.Agent
	rules  []string // that are to be in force
	before recorded.Status
	// restarted: the program's own count has begun anew, and lacks what it met last.
	restarted bool
	wrong     sync.Once
}

func (w *walker) newDeath(t *testing.T, point string) *death {
	t.Helper()
	w.revive(t)
	d := &death{T: t, walker: w, before: w.recorded(t)}
	d.Agent = deaths.NewAgent(t, point, deaths.How{
		Patience: walkDeadline, Program: d.program, Looked: d.known,
		Args: []string{"plugin", "--disable-nri", "--config", d.config, "--namespace", d.namespace},
	})
	t.Cleanup(func() { d.label() }) // none
	return d
}

func (d *death) program(args ...string) *exec.Cmd {
	d.Helper()
	cmd, err := d.lab.FaultgraftCommand(d.ctx, args...)
	if err != nil {
		d.Fatal(err)
	}
	return cmd
}

// known: an agent answers, and has looked at the container. A dry run waits until all containers are known; a start has the container looked at.
func (d *death) known(c *plugin.Client) error {
	_, err := c.ApplyPolicies(d.ctx, "-", []byte(d.policy()), true)
	if err != nil {
		return err
	}
	return d.looked()
}

// looked has the agent look at the container, and waits for that.
func (d *death) looked() error {
	_, err := d.Client().Start(d.ctx, plugin.StartRequest{Namespace: d.namespace, ID: walked, PID: d.pid, WaitMs: 30000})
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
