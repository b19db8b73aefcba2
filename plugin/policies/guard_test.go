package policies

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

// eventually polls until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come to be within 30 s", what)
		}
	}
}

// serve runs the store with its probes until the test ends.
func (n *node) serve() (stop func()) {
	n.s.interval = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); n.s.Run(ctx) }()
	stop = func() { cancel(); <-done }
	n.t.Cleanup(stop)
	return stop
}

func (n *node) is(name string, p Phase) func() bool {
	return func() bool { st, err := n.s.Get(name); return err == nil && st.Phase == p }
}

func probed(c faultpolicy.StopCondition) func(*faultpolicy.Spec) {
	c.Interval, c.Timeout = faultpolicy.Duration(time.Minute), faultpolicy.Duration(time.Minute) // the machine may be slow
	return func(s *faultpolicy.Spec) { s.Guard.StopConditions = []faultpolicy.StopCondition{c} }
}

func TestStopConditionHTTP(t *testing.T) {
	var status atomic.Int32
	status.Store(http.StatusOK)
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) }))
	defer site.Close()
	n := newNode(t)
	n.run("a")
	stop := n.serve()
	n.apply(pg(probed(faultpolicy.StopCondition{Name: "site", HTTP: &faultpolicy.HTTPProbe{URL: site.URL}})))
	eventually(t, "the run", n.is("pg", Running))
	n.wantRules("a", "pg.1/wal 10m0s")
	status.Store(http.StatusServiceUnavailable)
	eventually(t, "the stop", n.is("pg", Stopped))
	n.wantRules("a")
	if st := n.phase("pg", Stopped); !strings.Contains(st.Reason, "stop condition site is red") || !strings.Contains(st.Reason, "503") {
		t.Errorf("the reason is %q", st.Reason)
	}
	stop()

	n.open() // the reason is kept
	n.run("a")
	n.wantRules("a")
	if st := n.phase("pg", Stopped); !strings.Contains(st.Reason, "503") {
		t.Errorf("after a restart the reason is %q", st.Reason)
	}
	// It is checked before a run begins, too.
	n.serve()
	n.types()
	n.must(n.s.Resume("pg", "root"))
	eventually(t, "the stop before the run", n.is("pg", Stopped))
	if st := n.phase("pg", Stopped); !strings.Contains(st.Reason, "no fault was injected") || st.Run != 1 {
		t.Errorf("stopped before its run: %+v", st)
	}
	if got := n.types(); slices.Contains(got, EventActivated) {
		t.Errorf("events %v", got)
	}
	status.Store(http.StatusOK)
	n.must(n.s.Resume("pg", "root"))
	eventually(t, "the run", n.is("pg", Running))
	n.wantRules("a", "pg.2/wal 10m0s")
}

func TestStopConditionCommand(t *testing.T) {
	dir := t.TempDir()
	flag := filepath.Join(dir, "green")
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	n.run("a")
	n.serve()
	n.apply(pg(probed(faultpolicy.StopCondition{Command: []string{"/bin/sh", "-c", "echo the disk is full; test -e " + flag}})))
	eventually(t, "the run", n.is("pg", Running))
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stop", n.is("pg", Stopped))
	if st := n.phase("pg", Stopped); !strings.Contains(st.Reason, "stop condition condition-1 is red") || !strings.Contains(st.Reason, "the disk is full") {
		t.Errorf("the reason is %q", st.Reason)
	}
	n.wantRules("a")
}

// TestProbeThatHangs is red, and what it started ends with it.
func TestProbeThatHangs(t *testing.T) {
	c := faultpolicy.StopCondition{Command: []string{"/bin/sh", "-c", "sleep 1000 & wait"}, Timeout: faultpolicy.Duration(100 * time.Millisecond)}
	if err := runProbe(t.Context(), &c); err == nil || !strings.Contains(err.Error(), "no answer within 100ms") {
		t.Errorf("a probe that hangs: %v", err)
	}
	c = faultpolicy.StopCondition{Command: []string{"/no/such/program"}, Timeout: faultpolicy.Duration(time.Minute)}
	if err := runProbe(t.Context(), &c); err == nil {
		t.Error("a probe that is not there is green")
	}
}

// TestFailureThreshold: single failures are forgiven, and no run begins on one.
func TestFailureThreshold(t *testing.T) {
	var asked atomic.Int32
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer site.Close()
	n := newNode(t)
	n.run("a")
	n.serve()
	n.apply(pg(probed(faultpolicy.StopCondition{HTTP: &faultpolicy.HTTPProbe{URL: site.URL}, FailureThreshold: 3})))
	eventually(t, "the run", n.is("pg", Running))
	if asked.Load() < 2 {
		t.Errorf("the run began after %d probes, the first of which failed", asked.Load())
	}
}

func TestRequiredSaysWhyThereAreNoRules(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.apply(pg(func(s *faultpolicy.Spec) {
		probed(faultpolicy.StopCondition{Command: []string{"/bin/true"}})(s)
		s.Required = true
	}))
	rules, required, reasons := n.s.Rules(Key{"default", "a"}, nil) // nobody runs the probes
	if len(rules) != 0 || !required || len(reasons) != 1 || !strings.Contains(reasons[0], "stop conditions") {
		t.Errorf("rules %v, required %v, reasons %q", rules, required, reasons)
	}
}

func TestMaxHits(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.hits["pg"] = 1000 // of an earlier policy of that name
	n.apply(pg(func(s *faultpolicy.Spec) { s.Guard.MaxHits = 10 }))
	n.pass(time.Second)
	n.wantRules("a", "pg.1/wal 9m59s")
	n.hits["pg"] = 1006
	n.pass(time.Second)
	if st := n.phase("pg", Running); st.Hits != 6 {
		t.Errorf("%d hits, want 6", st.Hits)
	}
	n.open() // the counter goes on, and then begins anew
	n.run("a")
	n.hits["pg"] = 1008
	n.pass(time.Second)
	n.hits["pg"] = 1
	n.pass(time.Second)
	n.phase("pg", Running)
	n.hits["pg"] = 2
	n.pass(time.Second)
	if st := n.phase("pg", Stopped); st.Hits != 10 || !strings.Contains(st.Reason, "guard.maxHits: 10") {
		t.Errorf("stopped with %d hits: %s", st.Hits, st.Reason)
	}
	n.wantRules("a")
	n.must(n.s.Resume("pg", "root"))
	n.pass(time.Second)
	n.phase("pg", Running)
}

func TestMaxContainers(t *testing.T) {
	n := newNode(t)
	n.run("a", "b", "c", "d")
	r := n.apply(pg(func(s *faultpolicy.Spec) { s.Guard.MaxContainers = 3; s.Guard.MaxPercent = 50 }))
	if r.Matching != 4 || r.Selected != 2 {
		t.Errorf("%d of %d are chosen, want 2 of 4", r.Selected, r.Matching)
	}
	before := n.chosen()
	n.s.Forget(Key{"default", before[0]})
	if got := n.chosen(); !slices.Equal(got, before[1:]) {
		t.Errorf("chosen are %v, and when %s is gone %v: half of three is one", before, before[0], got)
	}
}
