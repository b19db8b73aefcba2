package policies

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/limits"
)

func contextEnded() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx, cancel
}

func TestApplyChoosesAndEnds(t *testing.T) {
	n := newNode(t)
	n.run("a", "b")
	r := n.apply(pg())
	if r.Action != Created || r.Matching != 2 || r.Selected != 2 || r.Phase != Running || r.Seed != 7 || len(r.Targets) != 2 || len(r.Rules) != 1 {
		t.Errorf("applying said %+v", r)
	}
	if got := n.take(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("told of %v, want a and b", got)
	}
	n.wantRules("a", "pg.1/wal 10m0s")
	n.pass(4 * time.Minute)
	n.wantRules("a", "pg.1/wal 6m0s")
	if n.s.Observe(n.container("late")) != true {
		t.Error("a container that comes later has the policy's rules, and the agent was not told")
	}
	n.wantRules("late", "pg.1/wal 6m0s") // the rest, not a run of its own
	if r := n.apply(pg()); r.Action != Unchanged || r.Run != 1 {
		t.Errorf("applying the same again said %+v", r)
	}
	n.take()
	n.pass(6 * time.Minute)
	n.wantRules("a")
	if got := n.take(); !slices.Equal(got, []string{"a", "b", "late"}) {
		t.Errorf("when the time was up it told of %v", got)
	}
	st := n.phase("pg", Ended)
	if !strings.Contains(st.Reason, "time is up (10m0s)") {
		t.Errorf("the reason is %q", st.Reason)
	}
	if err := n.s.Resume("pg", "root"); err == nil || !strings.Contains(err.Error(), "apply it again") {
		t.Errorf("resuming what has ended: %v", err)
	}
	n.apply(pg())
	n.wantRules("a", "pg.2/wal 10m0s")
	n.must(n.s.Delete("pg", "root"))
	n.wantRules("a")
	if _, err := n.s.Get("pg"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a deleted policy: %v", err)
	}
	n.apply(pg()) // counts on, so that no container takes it for what it has had
	n.wantRules("a", "pg.3/wal 10m0s")
	want := []EventType{EventApplied, EventActivated, EventEnded, EventApplied, EventActivated, EventDeleted, EventApplied, EventActivated}
	if got := n.types(); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

func TestTimeIsUpWithoutRun(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.apply(pg())
	n.mu.Lock()
	n.boot += 10 * time.Minute
	n.mu.Unlock()
	n.wantRules("a") // nobody has called tick
}

func TestWaitsForTheFirstContainer(t *testing.T) {
	n := newNode(t)
	n.apply(pg())
	n.phase("pg", Pending)
	n.pass(time.Hour)
	n.run("a")
	n.wantRules("a", "pg.1/wal 10m0s")
	n.phase("pg", Running)

	if _, err := n.s.Apply(named("other", pg(func(s *faultpolicy.Spec) {
		s.Selector.MatchLabels = map[string]string{"app": "nothing"}
		s.WhenNothingMatches = faultpolicy.Fail
	})), "root"); err == nil || !strings.Contains(err.Error(), "no container") {
		t.Errorf("a policy that matches nothing and must not wait: %v", err)
	}
	if _, err := n.s.Get("other"); !errors.Is(err, ErrNotFound) {
		t.Errorf("it was kept: %v", err)
	}
}

func TestPauseAndResume(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.apply(pg())
	n.pass(4 * time.Minute)
	n.take()
	n.must(n.s.Pause("pg", "root"))
	n.wantRules("a")
	if got := n.take(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("told of %v", got)
	}
	n.must(n.s.Pause("pg", "root")) // it is
	n.pass(time.Hour)
	n.open() // and stays so over a restart
	n.run("a")
	if st := n.phase("pg", Paused); time.Duration(st.Left) != 6*time.Minute {
		t.Errorf("%v are left, want 6m", st.Left)
	}
	n.must(n.s.Resume("pg", "root"))
	n.wantRules("a", "pg.2/wal 6m0s")
	if err := n.s.Resume("pg", "root"); err == nil {
		t.Error("resumed what runs")
	}
	// The same in the manifest.
	n.pass(time.Minute)
	if r := n.apply(pg(func(s *faultpolicy.Spec) { s.Paused = true })); r.Action != Configured || r.Phase != Paused {
		t.Errorf("paused: true said %+v", r)
	}
	n.pass(time.Minute)
	n.apply(pg())
	n.wantRules("a", "pg.3/wal 5m0s")

	n.apply(named("fresh", pg(func(s *faultpolicy.Spec) { s.Paused = true })))
	n.wantRules("a", "pg.3/wal 5m0s")
	n.pass(time.Minute)
	n.must(n.s.Resume("fresh", "root"))
	n.wantRules("a", "fresh.1/wal 10m0s", "pg.3/wal 4m0s")
}

func TestRestartContinues(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.apply(pg())
	n.pass(3 * time.Minute)

	// The agent was away for two minutes, and somebody set the wall clock back by a day.
	n.now = n.now.Add(-24 * time.Hour)
	n.boot += 2 * time.Minute
	n.open()
	n.run("a")
	n.wantRules("a", "pg.1/wal 5m0s")

	// A new boot, and a clock that is right.
	n.bootID, n.boot = "second", 10*time.Second
	n.now = start.Add(7 * time.Minute)
	n.open()
	n.run("a")
	n.wantRules("a", "pg.1/wal 3m0s")

	// A new boot, and a clock that was set back: nobody knows.
	n.bootID, n.now = "third", start.Add(-time.Hour)
	n.open()
	n.run("a")
	n.wantRules("a")
	if st := n.phase("pg", Ended); !strings.Contains(st.Reason, "set back") {
		t.Errorf("the reason is %q", st.Reason)
	}
}

func TestRunIsOverWhileNoAgentRan(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.apply(pg())
	n.boot += 11 * time.Minute
	n.now = n.now.Add(11 * time.Minute)
	n.open()
	n.run("a")
	n.wantRules("a")
	n.phase("pg", Ended)
}

func TestChangedSpecIsANewRun(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.apply(pg())
	n.pass(time.Minute)
	p := pg()
	p.Metadata.Labels = map[string]string{"team": "storage"}
	if r := n.apply(p); r.Action != Configured || r.Run != 1 {
		t.Errorf("other metadata said %+v", r)
	}
	n.wantRules("a", "pg.1/wal 9m0s")
	p.Spec.Faults[0].Rule = "io error=ENOSPC op=write path=/data/**"
	n.take()
	n.apply(p)
	n.wantRules("a", "pg.2/wal 10m0s")
	if got := n.take(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("told of %v", got)
	}
}

func TestPreviewChangesNothing(t *testing.T) {
	n := newNode(t)
	n.run("a")
	r, err := n.s.Preview(pg())
	n.must(err)
	if r.Action != Created || !r.DryRun || len(r.Targets) != 1 || r.Targets[0].ID != "a" || r.Rules[0].Policy != "pg" {
		t.Errorf("the preview said %+v", r)
	}
	if len(n.s.List()) != 0 || len(n.types()) != 0 || len(n.take()) != 0 {
		t.Error("a preview left something")
	}
	if _, err := os.Stat(filepath.Join(n.dir, FileName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a preview wrote the file: %v", err)
	}
	r = n.apply(pg(func(s *faultpolicy.Spec) { s.DryRun = true }))
	if !r.DryRun || r.Selected != 1 {
		t.Errorf("dryRun: true said %+v", r)
	}
	n.wantRules("a")
	if len(n.take()) != 0 {
		t.Error("a policy that is a dry run changes containers")
	}
	if st := n.phase("pg", Running); len(st.Targets) != 1 || !strings.Contains(st.Targets[0].Reason, "dry run") {
		t.Errorf("its targets are %+v", st.Targets)
	}
}

func TestNotSavedIsNotApplied(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.apply(pg())
	n.types()
	n.take()
	good := n.s.path
	n.s.path = filepath.Join(n.dir, "missing", FileName)
	if _, err := n.s.Apply(named("other", pg()), "root"); err == nil {
		t.Error("it was applied")
	}
	if _, err := n.s.Apply(pg(func(s *faultpolicy.Spec) { s.Value = 3 }), "root"); err == nil {
		t.Error("it was changed")
	}
	if n.s.Delete("pg", "root") == nil {
		t.Error("it was deleted")
	}
	if n.s.Pause("pg", "root") == nil {
		t.Error("it was paused")
	}
	n.wantRules("a", "pg.1/wal 10m0s")
	if len(n.s.List()) != 1 || len(n.types()) != 0 || len(n.take()) != 0 {
		t.Error("what could not be saved left something")
	}
	n.pass(time.Hour) // what happens by itself happens all the same, and is saved later
	n.phase("pg", Ended)
	n.s.path = good
	n.tick()
	n.open()
	n.phase("pg", Ended)
}

func TestLimits(t *testing.T) {
	n := newNode(t)
	n.run("a")
	n.limits = limits.Limits{Policies: limits.Scope{MaxTTL: limits.Duration(5 * time.Minute)}}
	n.s.LimitsChanged()
	var refused *limits.Error
	if _, err := n.s.Apply(pg(), "root"); !errors.As(err, &refused) || !strings.Contains(refused.Limit, "maxTTL") {
		t.Errorf("a ttl beyond the limit: %v", err)
	}
	n.limits = limits.Limits{}
	n.s.LimitsChanged()
	n.apply(pg())
	n.wantRules("a", "pg.1/wal 10m0s")

	n.limits = limits.Limits{Protected: limits.Protected{Names: []limits.Glob{"a"}}}
	n.take()
	n.s.LimitsChanged()
	n.wantRules("a")
	if got := n.take(); !slices.Contains(got, "a") {
		t.Errorf("a container that is protected now: told of %v", got)
	}
	n.limits = limits.Limits{Policies: limits.Scope{Namespaces: []limits.Namespaces{"lab"}}}
	n.s.LimitsChanged()
	n.wantRules("a")
	n.limits = limits.Limits{}
	n.s.LimitsChanged()
	n.wantRules("a", "pg.1/wal 10m0s")
	n.limits = limits.Limits{Policies: limits.Scope{Actions: []limits.Action{"latency"}}}
	n.s.LimitsChanged()
	n.wantRules("a")
	if st := n.phase("pg", Stopped); !strings.Contains(st.Reason, "actions") {
		t.Errorf("the reason is %q", st.Reason)
	}
	n.open()
	n.phase("pg", Stopped)
	n.limits = limits.Limits{}
	n.s.LimitsChanged()
	n.run("a")
	n.must(n.s.Resume("pg", "root"))
	n.wantRules("a", "pg.2/wal 10m0s")
}

func TestReports(t *testing.T) {
	n := newNode(t)
	n.run("a", "b")
	n.apply(pg())
	st := n.phase("pg", Running)
	if st.States[TargetPending] != 2 {
		t.Errorf("states %v, want two pending", st.States)
	}
	k := Key{"default", "a"}
	n.s.Report(k, "pg", TargetStatus{State: TargetActive, Run: 1, PauseMS: 1.5, Hits: 3})
	since := n.s.Targets(k)[0].Since
	n.pass(time.Minute)
	n.s.Report(k, "pg", TargetStatus{State: TargetActive, Run: 1, PauseMS: 1.5, Hits: 4})
	st = n.phase("pg", Running)
	if st.States[TargetPending] != 1 || st.States[TargetActive] != 1 || len(st.Targets) != 2 {
		t.Errorf("states %v, targets %+v", st.States, st.Targets)
	}
	if got := st.Targets[0]; got.ID != "a" || got.Hits != 4 || !got.Since.Equal(since) || got.Policy != "pg" {
		t.Errorf("target a is %+v", got)
	}
	n.must(n.s.Delete("pg", "root"))
	n.s.Report(k, "pg", TargetStatus{State: TargetReverting, Run: 1})
	if got := n.s.Targets(k); len(got) != 1 || got[0].State != TargetReverting {
		t.Errorf("a deleted policy's target is %+v", got)
	}
	n.s.Report(k, "pg", TargetStatus{State: TargetReverted, Run: 1})
	if got := n.s.Targets(k); len(got) != 0 {
		t.Errorf("and when it is reverted, %+v", got)
	}
	n.s.Forget(k)
	n.s.Report(k, "pg", TargetStatus{State: TargetActive})
	if got := n.s.Targets(k); got != nil {
		t.Errorf("a container that is gone has %+v", got)
	}
}

func TestMoreRulesThanAContainerCanHave(t *testing.T) {
	n := newNode(t)
	n.run("a")
	full := pg(func(s *faultpolicy.Spec) {
		for i := len(s.Faults); i < policy.MaxRules; i++ {
			s.Faults = append(s.Faults, faultpolicy.Fault{Name: fmt.Sprintf("f%d", i), Rule: "io error=EIO op=read path=/data/**"})
		}
	})
	n.apply(full)
	n.apply(named("zzz", pg()))
	rules, _, reasons := n.s.Rules(Key{"default", "a"}, nil)
	if len(rules) != policy.MaxRules || len(reasons) != 1 || !strings.Contains(reasons[0], "policy zzz") {
		t.Errorf("%d rules, reasons %q", len(rules), reasons)
	}
	if st := n.phase("zzz", Running); st.States[TargetFailed] != 1 || !strings.Contains(st.Targets[0].Reason, "more than 64 rules") {
		t.Errorf("the target is %+v", st.Targets)
	}
}
