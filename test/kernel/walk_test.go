package kernel

import (
	"context"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	containerdapi "github.com/containerd/containerd/v2/client"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/deaths"
	"github.com/faultgraft/faultgraft/test/vm"
)

// sampled is how many deaths the usual run takes, of one to two hundred: one takes half a minute in the emulated machine.
const sampled = 2

// P4, K11: the agent is killed with -9 before and after each of its steps around kernel faults. The container's program
// goes on, the next agent brings the container to what was asked for, each rule once, no program, link, map or pin is there
// twice, no fault is counted or logged twice, and `recover --all` and `stop --all` leave nothing, with an agent and without
// one. The points are those that the program has; one that no scenario comes to fails.
//
// The usual run takes a sample, which FAULTGRAFT_TEST_SEED chooses: without it, the day does. FAULTGRAFT_TEST_WALK=agent walks
// all points of all scenarios, FAULTGRAFT_TEST_WALK=all each of them also with `recover` in the next agent's place.
func TestAgentDeathAtEachStep(t *testing.T) {
	vm.NeedFault(t)
	mode := os.Getenv("FAULTGRAFT_TEST_WALK")
	steps := deaths.Walk[*death]{
		Mode: mode, Scenarios: scenarios, AlsoRecovered: remembered,
		Own: func(p string) bool { return strings.HasPrefix(p, "kernel ") },
	}.Steps(t)
	if mode == "" {
		all := len(steps)
		seed := os.Getenv("FAULTGRAFT_TEST_SEED")
		h := fnv.New64a()
		_, _ = h.Write([]byte(seed)) // never fails
		r := rand.New(rand.NewPCG(h.Sum64(), 0))
		r.Shuffle(all, func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		steps = steps[:sampled]
		t.Logf("%d of %d deaths, by FAULTGRAFT_TEST_SEED=%s", len(steps), all, seed)
	}
	w := newWalker(t)
	for n, st := range steps {
		t.Run(st.Point+"/"+st.Name+"/"+st.Next, func(t *testing.T) { deaths.Take(w.newDeath(t, st.Point, n%2 == 1), st) })
	}
}

// walker is a container that mounts for ever.
type walker struct {
	*runtime
	*container
	api    *containerdapi.Client
	config string // the agents'
}

func newWalker(t *testing.T) *walker {
	t.Helper()
	w := &walker{runtime: containerd(t), config: filepath.Join(t.TempDir(), "config.yaml")}
	write(t, w.config, "labels: {namespaces: [default], hooks: [\"syscall:mount\"]}\n")
	w.container = w.loop("walked", "app=walked")
	var err error
	if w.api, err = containerdapi.New("/run/containerd/containerd.sock", containerdapi.WithDefaultNamespace("default")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.api.Close() })
	return w
}

// task is the container's, as containerd has it.
func (w *walker) task(t testing.TB) (containerdapi.Container, containerdapi.Task) {
	t.Helper()
	c, err := w.api.LoadContainer(t.Context(), w.id)
	if err != nil {
		t.Fatal(err)
	}
	task, err := c.Task(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, task
}

// met is how many mounts have failed.
func (w *walker) met() uint64 { return uint64(count(w.output(), noMemory)) }

// death is one death of an agent.
type death struct {
	*testing.T
	*walker
	*deaths.Agent
	ctx context.Context
	// stopping: everything is taken off by a stop where others recover, and the other way round.
	stopping bool
	labels   []string // names of those that the container carries
	rules    []string // that are to be in force
	before   uint64   // mounts that had failed
	kernel   map[string]bool
	// pinned is what was known of the pinned fault before the death.
	pinned plugin.KernelFault
}

func (w *walker) newDeath(t *testing.T, point string, stopping bool) *death {
	t.Helper()
	c := *w.container
	c.t = t
	own := &walker{runtime: &runtime{t}, container: &c, api: w.api, config: w.config}
	d := &death{T: t, walker: own, ctx: t.Context(), stopping: stopping, before: w.met(), kernel: inKernel(t)}
	d.Agent = deaths.NewAgent(t, point, deaths.How{
		Patience: patience,
		Program:  func(args ...string) *exec.Cmd { return exec.Command(os.Getenv("FAULTGRAFT_BIN"), args...) },
		Args:     []string{"plugin", "--disable-nri", "--config", d.config},
		Looked: func(c *plugin.Client) error {
			_, task := d.task(t)
			_, err := c.Start(d.ctx, plugin.StartRequest{Namespace: "default", ID: d.id, PID: int(task.Pid()), WaitMs: 25000})
			return err
		},
	})
	t.Cleanup(func() { d.label() }) // none
	return d
}

// label has the container carry these rules, "NAME=TEXT", and no others.
func (d *death) label(rules ...string) {
	d.Helper()
	set := map[string]string{}
	for _, name := range d.labels {
		set[name+".faultgraft.io"] = ""
	}
	d.labels = nil
	for _, r := range rules {
		name, text, _ := strings.Cut(r, "=")
		set[name+".faultgraft.io"], d.labels = text, append(d.labels, name)
	}
	if len(set) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience) // the test's own may be over
	defer cancel()
	c, err := d.api.LoadContainer(ctx, d.id)
	if err == nil {
		_, err = c.SetLabels(ctx, set)
	}
	if err != nil {
		d.Fatal(err)
	}
}

func (d *death) Want(rules ...string) { d.rules = slices.Sorted(slices.Values(rules)) }

// settles waits until the agent lists the wanted rules, each once, and there is in the kernel what they are made of, each once.
func (d *death) settles() (all []plugin.KernelFault) {
	d.Helper()
	var rules []string
	var err error
	var is, want madeOf
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		all, err = d.Client().KernelFaults(d.ctx)
		rules, want = nil, madeOf{}
		for _, f := range all {
			rules = append(rules, f.Rules[0].Name)
			want.add(f.Kernel.Outlive)
		}
		slices.Sort(rules)
		is = d.inKernel()
		if err == nil && slices.Equal(rules, d.rules) && is == want {
			return all
		}
	}
	d.Fatalf("rules %q are to be in force, and it is %q, %v, made of %+v, not of %+v", d.rules, rules, err, is, want)
	return nil
}

// madeOf counts what rules on one system call, without a call chain, are made of in the kernel.
// The rings are not among it: an agent has one, from its first fault on, and each pinned fault.
type madeOf struct{ programs, links, maps, pins int }

func (m *madeOf) add(pinned bool) {
	m.programs++
	m.links++
	m.maps += 2 // of the cgroups, of the levels
	if pinned {
		m.maps++    // what is kept of the fault
		m.pins += 5 // these three, the ring and the link
	}
}

// inKernel counts it.
func (d *death) inKernel() (m madeOf) {
	d.Helper()
	for thing := range inKernel(d.T) {
		if d.kernel[thing] {
			continue
		}
		kind, rest, _ := strings.Cut(thing, " ")
		switch {
		case kind == "program":
			m.programs++
		case kind == "link":
			m.links++
		case kind == "map" && !strings.Contains(rest, "RingBuf"):
			m.maps++
		case kind == "pin":
			m.pins++
		}
	}
	return m
}

// goesOn waits for more of the container's program.
func (d *death) goesOn() {
	d.Helper()
	had := strings.Count(d.output(), "\n")
	await(d.T, "the container's program goes on", func() bool { return strings.Count(d.output(), "\n") > had+1 })
}

// meetsFaults waits until the program has met more faults.
func (d *death) meetsFaults() {
	d.Helper()
	had := d.met()
	await(d.T, "the program meets a fault", func() bool { return d.met() > had })
}

// Recovered has the next agent leave it at that: whoever asks for that wants peace.
func (d *death) Recovered() {
	d.Helper()
	if out, err := d.Faultgraft("recover", "--all"); err != nil {
		d.Errorf("recover --all: %s, %v", out, err)
	}
	d.Want()
}

// NextAgent brings the container to what is wanted, and is ended in order.
func (d *death) NextAgent() {
	d.Helper()
	d.goesOn()
	d.StartNext()
	all := d.settles()
	if len(all) > 0 {
		d.meetsFaults()
	}
	for _, f := range all {
		if f.ID == d.pinned.ID && f.Kernel.Counters.Injected < d.pinned.Kernel.Counters.Injected {
			d.Errorf("%s has injected %d faults, and had %d", f.ID, f.Kernel.Counters.Injected, d.pinned.Kernel.Counters.Injected)
		}
	}
	if d.stopping {
		if _, err := d.Client().Stop(d.ctx, "a test"); err != nil {
			d.Errorf("stop: %v", err)
		}
	} else if out, err := d.Faultgraft("recover", "--all"); err != nil {
		d.Errorf("recover --all: %s, %v", out, err)
	}
	d.Want()
	d.settles()
	d.counted(len(all) > 0)
	d.End()
}

// counted compares the node's count of faults, and its log of them, with what the program met. There may be
// fewer: of those that ended with a killed agent nobody can tell what they did last.
func (d *death) counted(some bool) {
	d.Helper()
	d.goesOn() // it has printed what it met
	met := d.met() - d.before
	if n := d.Counted(); n > met || some && n == 0 {
		d.Errorf("the program met %d faults, and %d are counted", met, n)
	}
	type nth struct {
		fault string
		n     uint64
	}
	logged := map[nth]int{}
	err := keeper.ReadEvents(d.ctx, d.State, false, func(e keeper.Event) error {
		if e.Type == keeper.EventFault {
			if logged[nth{e.Graft, e.N}]++; logged[nth{e.Graft, e.N}] == 2 {
				d.Errorf("fault %d of %s is logged twice", e.N, e.Graft)
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) || uint64(len(logged)) > met || some && len(logged) == 0 {
		d.Errorf("the program met %d faults, and %d are logged: %v", met, len(logged), err)
	}
}

// NothingIsLeft takes all off without an agent, and looks at what is there then.
func (d *death) NothingIsLeft() {
	d.Helper()
	if !d.stopping {
		if out, err := d.Faultgraft("stop", "--all", "--reason", "a test"); err != nil {
			d.Errorf("stop --all: %s, %v", out, err)
		}
		awaitNothingBut(d.T, d.kernel)
	}
	if mark, err := keeper.ReadStopped(d.State); err != nil || mark != nil {
		if out, err := d.Faultgraft("release"); err != nil {
			d.Errorf("release: %s, %v", out, err)
		}
	}
	if out, err := d.Faultgraft("recover", "--all", "--purge"); err != nil {
		d.Errorf("recover --all --purge: %s, %v", out, err)
	}
	awaitNothingBut(d.T, d.kernel)
	d.goesOn() // what failed before is printed by then
	met := d.met()
	d.goesOn()
	if now := d.met(); now != met {
		d.Errorf("%d mounts failed after all was taken off", now-met)
	}
	if left, err := os.ReadDir("/sys/fs/bpf/faultgraft"); len(left) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		d.Errorf("pins are left: %v, %v", left, err)
	}
	d.Agent.NothingIsLeft()
}
