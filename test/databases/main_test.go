// Package databases tests grafts under real databases, in containers of the
// private lab: they work while layers come and go, and afterwards their own
// checks, and a model of what they were told to keep, find nothing missing.
//
//	go test ./test/databases -timeout 3h -cycles 1000
package databases

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/lab"
)

var cycles = flag.Int("cycles", 25, "how often each database is grafted and ungrafted under load")

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// scene is one database container in the lab. What is left of it fails the test.
type scene struct {
	*testing.T
	lab *lab.Lab
	ctx context.Context
	// name is the container's, data its volume on the machine, mounted on /data.
	name, data string
	// acknowledged counts what clients were told is done.
	acknowledged atomic.Int64
}

func newScene(t *testing.T, name string) *scene {
	l := lab.RequireDatabases(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute+time.Duration(*cycles)*30*time.Second)
	s := &scene{T: t, lab: l, ctx: ctx, name: name, data: t.TempDir()}
	if err := os.Chown(s.data, lab.DatabaseUID, lab.DatabaseUID); err != nil {
		t.Fatal(err)
	}
	before := s.snapshot()
	t.Cleanup(func() {
		defer cancel()
		if t.Failed() {
			log, _ := l.Run(ctx, "sh", "-c", `nerdctl logs "$0" 2>&1 | tail -n 50`, name)
			t.Logf("the log of %s ends with:\n%s", name, log)
			log, _ = l.Faultgraft(ctx, "events")
			t.Logf("the events end with:\n%s", log[max(0, len(log)-3000):])
		}
		if _, err := l.Faultgraft(ctx, "recover", "--all"); err != nil {
			t.Errorf("recover --all: %v", err)
		}
		if _, err := l.Nerdctl(ctx, "rm", "-f", name); err != nil {
			t.Errorf("remove the container: %v", err)
		}
		s.settled(before)
	})
	return s
}

// run starts the container with the options of nerdctl run, the image and its arguments.
func (s *scene) run(args ...string) {
	s.Helper()
	s.nerdctl(append([]string{"run", "-d", "--name", s.name, "--net", "none", "-v", s.data + ":/data"}, args...)...)
}

func (s *scene) nerdctl(args ...string) string {
	s.Helper()
	out, err := s.lab.Nerdctl(s.ctx, args...)
	if err != nil {
		s.Fatalf("nerdctl %s: %v", args[0], err)
	}
	return out
}

func (s *scene) pid() int {
	s.Helper()
	pid, err := strconv.Atoi(s.nerdctl("inspect", "-f", "{{.State.Pid}}", s.name))
	if err != nil {
		s.Fatal(err)
	}
	return pid
}

// confined checks that the container is as others are: not root, seccomp filter on.
func (s *scene) confined() {
	s.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid()))
	if err != nil {
		s.Fatal(err)
	}
	for _, want := range []string{"\nSeccomp:\t2\n", fmt.Sprintf("\nUid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", lab.DatabaseUID)} {
		if !strings.Contains(string(b), want) {
			s.Fatalf("no %q in the status of the container's process:\n%s", want, b)
		}
	}
}

// log is what the database wrote to both streams.
func (s *scene) log() string {
	s.Helper()
	out, err := s.lab.Run(s.ctx, "sh", "-c", `nerdctl logs "$0" 2>&1`, s.name)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

func (s *scene) snapshot(pids ...int) *lab.Snapshot {
	s.Helper()
	snap, err := s.lab.Snapshot(pids...)
	if err != nil {
		s.Fatal(err)
	}
	return snap
}

// settled waits until the lab is as it was, and fails the test where it is not.
func (s *scene) settled(before *lab.Snapshot) {
	s.Helper()
	wait, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	left, err := s.lab.Settle(wait, before)
	if err != nil {
		s.Errorf("look at the lab: %v", err)
	}
	for _, d := range left {
		s.Errorf("not as before: %s", d)
	}
}

// rules of a cycle, in turn: files pass through the layer to the kernel, or
// every read, write and sync asks the layer, whose rule never fires.
var rules = []string{
	"io error=EIO op=all path=/data/nothing/** ttl=10m",
	"io error=EIO op=data+sync p=0 ttl=10m",
}

// cycle puts a layer over /data and takes it off again.
func (s *scene) cycle(i int) (graft, ungraft keeper.Graft) {
	s.Helper()
	answer := func(args ...string) keeper.Graft {
		out, err := s.lab.Faultgraft(s.ctx, append(args, "-o", "json")...)
		if err != nil {
			s.Fatalf("cycle %d: %v", i, err)
		}
		var g []keeper.Graft
		if err := json.Unmarshal([]byte(out), &g); err != nil || len(g) != 1 || g[0].Report == nil {
			s.Fatalf("cycle %d: %s: %v in %q", i, args[0], err, out)
		}
		for _, o := range g[0].Report.Skipped {
			s.Errorf("cycle %d: %s left %s: %s", i, args[0], &o.Object, o.Reason)
		}
		if len(g[0].Report.Swapped) == 0 {
			s.Errorf("cycle %d: %s moved nothing", i, args[0])
		}
		return g[0]
	}
	// Not a test of how long it takes: the machine may be busy with other things.
	graft = answer("inject", s.name, "--path", "/data", "--deadline", "1m", rules[i%len(rules)])
	ungraft = answer("recover", graft.ID)
	return graft, ungraft
}

// cyclesUnder runs all cycles while load works. What load does wrong it
// reports by itself. It ends when the context that it gets does.
func (s *scene) cyclesUnder(load func(ctx context.Context)) {
	s.Helper()
	ctx, stop := context.WithCancel(s.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		load(ctx)
	}()
	defer func() {
		stop()
		<-ended
	}()
	var there, back []float64
	stopped, moved := 0, 0
	start := time.Now()
	for i := 0; i < *cycles && !s.Failed(); i++ {
		done := s.acknowledged.Load()
		g, u := s.cycle(i)
		there, back = append(there, g.PauseMs), append(back, u.PauseMs)
		stopped, moved = stopped+len(g.Report.Stopped), moved+len(g.Report.Swapped)
		// A cycle under a database that does nothing shows nothing.
		for end := time.Now().Add(time.Minute); s.acknowledged.Load() == done && !s.Failed(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				s.Fatalf("cycle %d: the clients get no answer any more", i)
			}
		}
	}
	s.Logf("%d cycles in %s: %d objects moved and %d processes stopped per graft; median pause %.1f ms to graft, %.1f ms to ungraft; %d requests were answered",
		len(there), time.Since(start).Round(time.Second), moved/max(1, len(there)), stopped/max(1, len(there)), median(there), median(back), s.acknowledged.Load())
}

// nothingLeft checks that no graft is left, in faultgraft's own words and in its state.
func (s *scene) nothingLeft() {
	s.Helper()
	out, err := s.lab.Faultgraft(s.ctx, "ps", "-o", "json")
	if err != nil {
		s.Fatal(err)
	}
	var g []keeper.Graft
	if err := json.Unmarshal([]byte(out), &g); err != nil || len(g) > 0 {
		s.Errorf("ps: %v: %s", err, out)
	}
	state, err := s.lab.Path("/run/faultgraft/keepers")
	if err != nil {
		s.Fatal(err)
	}
	var left []string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if left, err = filepath.Glob(filepath.Join(state, "[^.]*")); err != nil { // but the lock on the folder
			s.Fatal(err)
		}
		if len(left) == 0 { // keepers end a moment after their last graft
			return
		}
	}
	s.Errorf("keepers are left: %v", left)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// eventually asks until it is so.
func (s *scene) eventually(what string, so func() error) {
	s.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && s.ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if err = so(); err == nil {
			return
		}
	}
	s.Fatalf("%s: %v", what, err)
}

// crash kills the whole container without a warning and starts it again.
func (s *scene) crash() {
	s.Helper()
	s.nerdctl("kill", "-s", "KILL", s.name)
	s.eventually("the container ends", func() error {
		out, err := s.lab.Nerdctl(s.ctx, "inspect", "-f", "{{.State.Running}}", s.name)
		if err == nil && out != "false" {
			err = fmt.Errorf("running: %s", out)
		}
		return err
	})
	s.nerdctl("start", s.name)
}

// inData runs a program of the image over the volume, with the container stopped.
func (s *scene) inData(image, program string, args ...string) {
	s.Helper()
	out, err := s.lab.Nerdctl(s.ctx, append([]string{"run", "--rm", "--net", "none", "-v", s.data + ":/data", "--entrypoint", program, image}, args...)...)
	if err != nil {
		s.Errorf("%s: %v\n%s", program, err, out)
		return
	}
	s.Logf("%s: %s", filepath.Base(program), out[strings.LastIndexByte(out, '\n')+1:])
}
