package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/faultgraft/faultgraft/test/lab"
)

// policyFile writes a policy for containers with the label app=e2e-policy.
func (s *scene) policyFile(name string, spec ...string) string {
	s.Helper()
	lines := append([]string{
		"apiVersion: faultgraft.io/v1alpha1", "kind: FaultPolicy", "metadata: {name: " + name + "}", "spec:",
		"  selector: {matchLabels: {app: e2e-policy}}",
	}, spec...)
	lines = append(lines, `  faults: [{name: wal, io: {path: "/data/**", ops: [read], error: EIO}}]`, "")
	file := filepath.Join(s.TempDir(), name+".yaml")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		s.Fatal(err)
	}
	return file
}

func (s *scene) faultgraft(args ...string) string {
	s.Helper()
	out, err := s.lab.Faultgraft(s.ctx, args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

func (s *scene) policy(name string) (st policies.Status) {
	s.Helper()
	out := s.faultgraft("show", name, "-o", "json")
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		s.Fatalf("show %s: %v in %q", name, err, out)
	}
	return st
}

// targets waits until so many targets of a policy are in each of these states, and gives the names of those that are active.
func (s *scene) targets(name string, want map[policies.TargetState]int) (active []string) {
	s.Helper()
	var st policies.Status
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		st = s.policy(name)
		if fmt.Sprint(st.States) == fmt.Sprint(want) {
			for _, t := range st.Targets {
				if t.State == policies.TargetActive {
					active = append(active, t.Name)
				}
			}
			return active
		}
	}
	s.Fatalf("policy %s: %+v, want targets %v", name, st, want)
	return nil
}

// P2, P3, P7, P8: a policy comes to containers that run, is paused and resumed,
// stopped with the node and released, and deleted; they are as before then.
func TestPolicy(t *testing.T) {
	s := newScene(t)
	names := []string{"e2e-p1", "e2e-p2", "e2e-p3", "e2e-p4"}
	for _, n := range names {
		s.run(n, "app=e2e-policy")
	}
	s.run("e2e-p5", "app=other")
	mounts := map[string]string{}
	for _, n := range names {
		mounts[n] = s.nerdctl("exec", n, "cat", "/proc/1/mountinfo")
	}
	file := s.policyFile("e2e-half", "  mode: fixed-percent", "  value: 50", "  seed: 7", "  timing: {ttl: 5m}")
	t.Cleanup(func() { _, _ = s.lab.Faultgraft(s.ctx, "delete", "e2e-half") }) // deleted by the test, if all goes well

	dry := s.faultgraft("apply", "-f", file, "--dry-run")
	for _, want := range []string{"would be created; nothing was done: 2 of 4 matching containers, seed 7", "rule wal: io ", "target e2e-p"} {
		if !strings.Contains(dry, want) {
			t.Errorf("the dry run does not say %q: %s", want, dry)
		}
	}
	if out, err := s.lab.Faultgraft(s.ctx, "show", "e2e-half"); err == nil || len(s.grafts()) != 0 {
		t.Errorf("the dry run left %s, grafts %+v", out, s.grafts())
	}

	s.faultgraft("apply", "-f", file)
	chosen := s.targets("e2e-half", map[policies.TargetState]int{policies.TargetActive: 2})
	for _, n := range chosen {
		if !strings.Contains(dry, "target "+n+":") {
			t.Errorf("%s was chosen, which the dry run did not say: %s", n, dry)
		}
	}
	faulted := func(want ...string) {
		t.Helper()
		for _, n := range append(slices.Clone(names), "e2e-p5") {
			if out, ok := s.cat(n); ok == slices.Contains(want, n) || ok && out != "content" {
				t.Errorf("%s reads %q; with faults are %v", n, out, want)
			}
		}
	}
	faulted(chosen...)
	if hits := s.policy("e2e-half").Hits; hits < 2 {
		t.Errorf("%d hits after two failed reads", hits)
	}
	if ps := s.faultgraft("ps"); !strings.Contains(ps, "e2e-half/wal") || !strings.Contains(ps, "2 of 4 (2 active)") {
		t.Errorf("ps: %s", ps)
	}
	s.faultgraft("pause", "e2e-half")
	s.targets("e2e-half", map[policies.TargetState]int{policies.TargetPaused: 2})
	if left := s.grafts(); len(left) != 0 {
		t.Errorf("paused, and yet there are %+v", left)
	}
	s.faultgraft("resume", "e2e-half")
	if again := s.targets("e2e-half", map[policies.TargetState]int{policies.TargetActive: 2}); !slices.Equal(again, chosen) {
		t.Errorf("resumed in %v, not in %v", again, chosen)
	}

	s.faultgraft("stop", "--all", "--reason", "incident 4711")
	t.Cleanup(func() { _, _ = s.lab.Faultgraft(s.ctx, "release") }) // released by the test, if all goes well
	faulted()
	s.targets("e2e-half", map[policies.TargetState]int{policies.TargetPending: 2})
	if ps := s.faultgraft("ps"); !strings.Contains(ps, "incident 4711") {
		t.Errorf("ps does not say why nothing starts: %s", ps)
	}
	if out, err := s.lab.Faultgraft(s.ctx, "inject", "e2e-p5", "--path", "/data", readFault); err == nil || !strings.Contains(err.Error(), "incident 4711") {
		t.Errorf("injected in spite of the stop: %q, %v", out, err)
	}
	s.faultgraft("release")
	s.targets("e2e-half", map[policies.TargetState]int{policies.TargetActive: 2})
	faulted(chosen...)

	s.faultgraft("delete", "e2e-half")
	for end := time.Now().Add(time.Minute); len(s.grafts()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left: %+v", s.grafts())
		}
	}
	faulted()
	for _, n := range names {
		if now := s.nerdctl("exec", n, "cat", "/proc/1/mountinfo"); now != mounts[n] {
			t.Errorf("%s: mountinfo is\n%s\nwas\n%s", n, now, mounts[n])
		}
	}
	s.nerdctl(append([]string{"rm", "-f", "e2e-p5"}, names...)...)
}

// P5: through NRI a container does not start when a required policy's faults are
// not in place (here: its path is not there), with the reason; another does, and so does it with them.
func TestRequiredPolicyRefusesTheStart(t *testing.T) {
	s := newScene(t)
	file := s.policyFile("e2e-required", "  required: true")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.NewReplacer("matchLabels: {app: e2e-policy}", `podNames: ["e2e-must*"]`, "/data/", "/ledger/").Replace(string(text)))
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	s.faultgraft("apply", "-f", file)
	t.Cleanup(func() { _, _ = s.lab.Faultgraft(s.ctx, "delete", "e2e-required") }) // deleted by the test, if all goes well
	run := func(name string, mounts ...lab.Mount) (*lab.Pod, error) {
		pod, err := s.lab.RunPod(s.ctx, lab.PodSpec{Name: name, Containers: []lab.ContainerSpec{{Name: "main", Command: []string{"sleep", "1000"}, Mounts: mounts}}})
		if pod != nil {
			t.Cleanup(func() {
				if err := pod.Remove(s.ctx); err != nil {
					t.Error(err)
				}
			})
		}
		return pod, err
	}
	if _, err := run("e2e-must-fail"); err == nil || !strings.Contains(err.Error(), "requires faults before it starts") || !strings.Contains(err.Error(), "/ledger") {
		t.Errorf("started without its faults: %v", err)
	}
	if _, err := run("e2e-may"); err != nil {
		t.Errorf("a pod that it does not select: %v", err)
	}
	pod, err := run("e2e-must-start", lab.Mount{Host: s.volume(), Container: "/ledger"})
	if err != nil {
		t.Fatalf("its faults are there: %v", err)
	}
	if g := s.await(pod.Containers[0].ID, "active"); len(g.Rules) != 1 || g.Rules[0].Policy != "e2e-required" {
		t.Errorf("%+v", g)
	}
	s.faultgraft("delete", "e2e-required")
}
