package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

// Without an agent the commands that need one say how to start it; ps and stop work all the same.
func TestPoliciesWithoutAnAgent(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "p.yaml")
	if err := os.WriteFile(file, []byte("kind: FaultPolicy\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		root := newRootCommand()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(append([]string{"--state-dir", filepath.Join(dir, "state")}, args...))
		err := root.ExecuteContext(t.Context())
		return out.String(), err
	}
	for _, args := range [][]string{{"apply", "-f", file}, {"apply", "-f", file, "--dry-run"}, {"delete", "x"}, {"pause", "x"}, {"resume", "x"}} {
		if out, err := run(args...); !errors.Is(err, plugin.ErrNoAgent) || !strings.Contains(err.Error(), "systemctl start faultgraft") {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
	if out, err := run("apply"); err == nil || !strings.Contains(err.Error(), "-f") {
		t.Errorf("apply without a file: %q, %v", out, err)
	}
	if out, err := run("apply", "-f", filepath.Join(dir, "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("apply of no file: %q, %v", out, err)
	}
	if out, err := run("ps", "--policies", "-o", "json"); err != nil || strings.TrimSpace(out) != "[]" {
		t.Errorf("ps: %q, %v", out, err)
	}
}

func TestPolicyTable(t *testing.T) {
	now := time.Now()
	target := func(name string, s policies.TargetState, reason string) policies.TargetStatus {
		return policies.TargetStatus{Target: policies.Target{Name: name, Pod: "web", PodNamespace: "shop"}, State: s, Reason: reason, Since: now, PauseMS: 1.25, Hits: 3}
	}
	all := []policies.Status{{
		Name: "pg-wal", Phase: policies.Running, Since: now, Left: faultpolicy.Duration(90 * time.Second), Selected: 2, Matching: 4, Hits: 6,
		States:  map[policies.TargetState]int{policies.TargetActive: 1, policies.TargetFailed: 1},
		Targets: []policies.TargetStatus{target("a", policies.TargetActive, ""), target("b", policies.TargetFailed, "no /data")},
	}}
	var out bytes.Buffer
	if err := printPolicies(&out, all); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2 of 4 (1 active, 1 failed)", "running", "1m30s", "shop/web/a", "active", "1.2 ms", "policy pg-wal in shop/web/b failed: no /data"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}
