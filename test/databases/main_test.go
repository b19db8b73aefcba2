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
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/lab"
	"github.com/faultgraft/faultgraft/test/workload"
)

var cycles = flag.Int("cycles", 25, "how often each database is grafted and ungrafted under load; servers of its layer are killed a quarter as often")

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// scene is one database container in the lab. What is left of it fails the test.
type scene struct {
	*testing.T
	*workload.Database
	ctx context.Context
}

func newScene(t *testing.T, name string) *scene {
	l := lab.RequireDatabases(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute+time.Duration(*cycles)*30*time.Second)
	s := &scene{T: t, ctx: ctx, Database: &workload.Database{Lab: l, Name: name, Data: t.TempDir(), Report: t.Errorf}}
	before := s.snapshot()
	t.Cleanup(func() {
		defer cancel()
		if t.Failed() {
			log, _ := s.Log(ctx)
			t.Logf("the log of %s ends with:\n%s", name, log[max(0, len(log)-5000):])
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

// must fails the test at once.
func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *scene) pid() int {
	s.Helper()
	pid, err := s.PID(s.ctx)
	s.must(err)
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

// logged is how much the database has written to its log.
func (s *scene) logged() int {
	s.Helper()
	log, err := s.Log(s.ctx)
	s.must(err)
	return len(log)
}

// calm checks that a database complained of nothing.
func (s *scene) calm(complaints []string, err error) {
	s.Helper()
	s.must(err)
	if len(complaints) > 0 {
		s.Errorf("its log has:\n%s", strings.Join(complaints, "\n"))
	}
}

func (s *scene) snapshot(pids ...int) *lab.Snapshot {
	s.Helper()
	snap, err := s.Lab.Snapshot(pids...)
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
	left, err := s.Lab.Settle(wait, before)
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

// answer is what a command says of the one graft that it was for.
func (s *scene) answer(i int, args ...string) keeper.Graft {
	s.Helper()
	out, err := s.Lab.Faultgraft(s.ctx, append(args, "-o", "json")...)
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

// inject puts a layer over /data. How long that takes is not tested: the machine may be busy with other things.
func (s *scene) inject(i int, rules ...string) keeper.Graft {
	s.Helper()
	return s.answer(i, append([]string{"inject", s.Name, "--path", "/data", "--deadline", "1m"}, rules...)...)
}

// cycle puts a layer over /data and takes it off again.
func (s *scene) cycle(i int) (graft, ungraft keeper.Graft) {
	s.Helper()
	graft = s.inject(i, rules[i%len(rules)])
	return graft, s.answer(i, "recover", graft.ID)
}

// under does something so many times while load works, and sees each time that
// load goes on. What load does wrong it reports by itself. It ends when the
// context that it gets does.
func (s *scene) under(load func(ctx context.Context), times int, do func(i int)) {
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
	for i := 0; i < times && !s.Failed(); i++ {
		done := s.Acknowledged.Load()
		do(i)
		// A cycle under a database that does nothing shows nothing.
		for end := time.Now().Add(time.Minute); s.Acknowledged.Load() == done && !s.Failed(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				s.Fatalf("cycle %d: the clients get no answer any more", i)
			}
		}
	}
}

// cyclesUnder runs all cycles while load works.
func (s *scene) cyclesUnder(load func(ctx context.Context)) {
	s.Helper()
	var there, back []float64
	stopped, moved := 0, 0
	start := time.Now()
	s.under(load, *cycles, func(i int) {
		g, u := s.cycle(i)
		there, back = append(there, g.PauseMs), append(back, u.PauseMs)
		stopped, moved = stopped+len(g.Report.Stopped), moved+len(g.Report.Swapped)
	})
	s.Logf("%d cycles in %s: %d objects moved and %d processes stopped per graft; median pause %.1f ms to graft, %.1f ms to ungraft; %d requests were answered",
		len(there), time.Since(start).Round(time.Second), moved/max(1, len(there)), stopped/max(1, len(there)), median(there), median(back), s.Acknowledged.Load())
}

// grafts are those that `faultgraft ps` lists.
func (s *scene) grafts() (g []keeper.Graft) {
	s.Helper()
	out, err := s.Lab.Faultgraft(s.ctx, "ps", "-o", "json")
	s.must(err)
	if err := json.Unmarshal([]byte(out), &g); err != nil {
		s.Fatalf("ps: %v: %s", err, out)
	}
	return g
}

// nothingLeft checks that no graft is left, in faultgraft's own words and in its state.
func (s *scene) nothingLeft() {
	s.Helper()
	if g := s.grafts(); len(g) > 0 {
		s.Errorf("grafts are left: %+v", g)
	}
	state, err := s.Lab.Path("/run/faultgraft/keepers")
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
