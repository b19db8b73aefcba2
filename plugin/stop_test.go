package plugin

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// P8: a stop takes everything off, whoever asked for it; nothing starts until the
// release; then labels apply again for the rest of their time, and what a person
// had injected, or had taken off before, does not.
func TestStopAndRelease(t *testing.T) {
	k, n, dir := &fakeKernel{}, &node{}, t.TempDir()
	var ahead atomic.Int64 // containers are looked at in the background
	b := kernelBench(t, k, n, dir, func(r *reconciler) {
		r.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	client := NewClient(serveBench(t, b, b.log))
	a := labelled("a", map[string]string{
		"wal.faultgraft.io": dataRule, "oom.faultgraft.io": slabRule,
		"short.faultgraft.io":  "io error=EIO op=read path=/short/** ttl=1m",
		"before.faultgraft.io": "io error=EIO op=read path=/before/** ttl=5m",
	})
	b.reg.put(a)
	if got := b.settle(t, a.Key); got.State != StateActive {
		t.Fatalf("state %s (%s)", got.State, got.Reason)
	}
	user := policyRule(t, "io error=EIO op=write path=/u/** ttl=5m seed=1")
	byUser := keeper.Request{Path: "/u", Rules: []policy.Rule{user}, Origin: keeper.OriginUser}
	target := b.get(a.Key)
	if _, err := n.Inject(t.Context(), target.Target(), byUser); err != nil {
		t.Fatal(err)
	}
	ofUser := KernelRequest{Target: target.Target(), Rules: []policy.Rule{policyRule(t, slabRule)}}
	if _, err := client.InjectKernel(t.Context(), ofUser); err != nil {
		t.Fatal(err)
	}
	for _, g := range n.all() {
		if g.Path == "/before" {
			if _, err := n.Ungraft(t.Context(), g.ID); err != nil {
				t.Fatal(err)
			}
		}
	}

	for _, reason := range []string{"", "  "} {
		if _, err := client.Stop(t.Context(), reason); err == nil || !strings.Contains(err.Error(), "reason") {
			t.Errorf("stopped for the reason %q: %v", reason, err)
		}
	}
	report, err := client.Stop(t.Context(), "incident 4711")
	if err != nil || len(report.Reverted) != 5 || len(report.Failed) != 0 {
		t.Fatalf("%+v, %v; want 3 grafts and 2 kernel faults taken off", report, err)
	}
	wantLive(t, k)
	if left := n.all(); len(left) != 0 {
		t.Errorf("left after the stop: %+v", left)
	}
	if !strings.Contains(report.By, "uid 0, pid ") {
		t.Errorf("asked for by %q", report.By)
	}
	// Nothing starts, and everybody is told why.
	isStopped := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, keeper.ErrStopped) || !strings.Contains(err.Error(), "incident 4711") || !strings.Contains(err.Error(), "faultgraft release") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = client.InjectKernel(t.Context(), ofUser)
	isStopped("kernel", err)
	_, err = (&keeper.Client{StateDir: dir}).Inject(t.Context(), target.Target(), byUser)
	isStopped("inject", err)
	late := labelled("late", map[string]string{"wal.faultgraft.io": dataRule})
	late.PID = os.Getppid()
	b.reg.put(late)
	for _, c := range []Container{a, late} {
		if got := b.settle(t, c.Key); got.State != StatePending || !strings.Contains(got.Reason, "incident 4711") {
			t.Errorf("%s: %s (%s), want pending because of the stop", c.ID, got.State, got.Reason)
		}
	}
	wantLive(t, k)
	if left := n.all(); len(left) != 0 {
		t.Errorf("grafted in spite of the stop: %+v", left)
	}
	// Stopped once more, for another reason: what the first stop took off is not forgotten.
	if report, err = client.Stop(t.Context(), "still"); err != nil || len(report.Reverted) != 0 || report.Reason != "still" {
		t.Errorf("%+v, %v", report, err)
	}

	ahead.Store(int64(2 * time.Minute))
	if was, err := client.Release(t.Context()); err != nil || was.Reason != "still" {
		t.Fatalf("%+v, %v", was, err)
	}
	for _, c := range []Container{a, late} {
		if got := b.settle(t, c.Key); got.State != StateActive {
			t.Errorf("%s after the release: %s (%s)", c.ID, got.State, got.Reason)
		}
	}
	wantLive(t, k, at("oom"))
	var paths []string
	for _, g := range n.all() {
		paths = append(paths, g.Target.ID+g.Path)
		left := time.Until(g.Rules[0].Expires)
		if g.Target.ID == "a" && (left > 3*time.Minute || left < time.Minute) || g.Target.ID == "late" && left < 4*time.Minute {
			t.Errorf("%s of %s lives for another %v", g.Path, g.Target.ID, left)
		}
	}
	if len(paths) != 2 {
		t.Errorf("after the release there are %v, want /data of a and of late", paths)
	}
	if _, err := client.Release(t.Context()); !errors.Is(err, ErrNotStopped) {
		t.Errorf("released twice: %v", err)
	}
	var types []keeper.EventType
	if err := keeper.ReadEvents(t.Context(), dir, false, func(e keeper.Event) error {
		if e.Type == keeper.EventStop || e.Type == keeper.EventRelease {
			types = append(types, e.Type)
			if !strings.Contains(e.Who, "uid 0") || e.Message == "" {
				t.Errorf("event %+v", e)
			}
		}
		return nil
	}); err != nil || len(types) != 3 {
		t.Errorf("events %v, %v", types, err)
	}
}

// A stop without an agent holds for the one that comes, and what it took off is applied again after a release without one.
func TestStopWithoutAnAgent(t *testing.T) {
	n, dir := &node{}, t.TempDir()
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	first := newBench(t, n, dir, nil)
	first.reg.put(c)
	first.settle(t, c.Key)
	direct := &stopper{stateDir: dir, grafter: n, faults: newFakeFaults(t, &fakeKernel{})}
	if _, err := direct.stop(t.Context(), "maintenance", "me"); err != nil {
		t.Fatal(err)
	}
	second := newBench(t, n, dir, nil)
	second.reg.put(c)
	if got := second.settle(t, c.Key); got.State != StatePending || !strings.Contains(got.Reason, "maintenance") || n.count() != 1 {
		t.Fatalf("%s (%s), %d grafts made", got.State, got.Reason, n.count())
	}
	if was, err := (Direct{StateDir: dir}).Release("me"); err != nil || was.Reason != "maintenance" || was.By != "me" {
		t.Fatalf("%+v, %v", was, err)
	}
	third := newBench(t, n, dir, nil)
	third.reg.put(c)
	if got := third.settle(t, c.Key); got.State != StateActive || n.count() != 2 {
		t.Errorf("%s (%s), %d grafts made", got.State, got.Reason, n.count())
	}
}

// A marker that nobody can read stops, and release removes it.
func TestStopMarkerThatCannotBeRead(t *testing.T) {
	n, dir := &node{}, t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "stopped.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, n, dir, nil)
	c := labelled("a", map[string]string{"wal.faultgraft.io": dataRule})
	b.reg.put(c)
	if got := b.settle(t, c.Key); got.State != StatePending || !strings.Contains(got.Reason, "stopped.json") || n.count() != 0 {
		t.Errorf("%s (%s), %d grafts made", got.State, got.Reason, n.count())
	}
	if _, err := b.release("me"); err != nil {
		t.Fatal(err)
	}
	if got := b.settle(t, c.Key); got.State != StateActive {
		t.Errorf("after the release: %s (%s)", got.State, got.Reason)
	}
}
