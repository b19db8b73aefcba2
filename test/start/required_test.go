package start

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/test/lab"
)

// apply has the agent apply a policy for the containers with the label app=required; the test's end deletes it.
func (s *scene) apply(path string) {
	s.Helper()
	file := filepath.Join(s.TempDir(), "policy.yaml")
	text := `apiVersion: faultgraft.io/v1alpha1
kind: FaultPolicy
metadata: {name: start-required}
spec:
  selector: {matchLabels: {app: required}}
  required: true
  faults:
  - {name: wal, io: {path: "` + path + `", ops: [read], error: EIO}}
`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
	if _, err := s.lab.Faultgraft(s.ctx, "apply", "-f", file); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if _, err := s.lab.Faultgraft(s.ctx, "delete", "start-required"); err != nil {
			s.Error(err)
		}
	})
}

// A policy with required: true keeps a container from starting without its
// faults, under the wrapper and with the hook, and others start.
func TestRequired(t *testing.T) {
	s := newScene(t)
	runc := s.cdi("nothing", "nothing=io error=EIO op=read path=/data/none ttl=5m")
	s.apply("/nowhere/**")
	for name, with := range map[string][]string{
		"wrapper": nil,
		"hook":    {"--runtime", runc, "--device", "faultgraft.io/fault=nothing"},
	} {
		args := append([]string{"run", "--rm", "--net", "none", "--name", "required-" + name, "--label", "app=required", "-v", s.out + ":/out"}, with...)
		_, err := s.lab.Nerdctl(s.ctx, append(args, lab.Image, "sh", "-c", "echo ran >/out/ran")...)
		s.Cleanup(func() { _, _ = s.lab.Nerdctl(s.ctx, "rm", "-f", "required-"+name) }) // nerdctl leaves its record of what did not start
		var ce *lab.CommandError
		if !errors.As(err, &ce) {
			t.Errorf("%s: nerdctl run: %v; want a refusal", name, err)
			continue
		}
		if name == "wrapper" && (!strings.Contains(ce.Stderr, "must not start without its faults") || !strings.Contains(ce.Stderr, "/nowhere")) {
			t.Errorf("nerdctl run does not say why: %s", ce.Stderr)
		}
		if _, err := os.Stat(filepath.Join(s.out, "ran")); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: the program ran: %v", name, err)
		}
	}
	s.run("required-not", lab.Image, "sh", "-c", first)
	s.wantLog("read")
}

// With its faults in place such a container starts.
func TestRequiredAndThere(t *testing.T) {
	s := newScene(t)
	s.apply("/data/**")
	id := s.run("required-there", "--label", "app=required", lab.Image, "sh", "-c", first)
	s.wantLog("failed")
	s.wantRuntimeLog(id, inForce)
}

// A node can have it that nothing starts without the agent's answer.
func TestRefusedWithoutAgent(t *testing.T) {
	s := newScene(t)
	script := filepath.Join(s.TempDir(), "runtime")
	config := filepath.Join(s.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("runtime: {withoutAgent: refuse}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := "#!/bin/sh\nexec env FAULTGRAFT_CONFIG=" + config + " " + filepath.Join(s.lab.Dir(), "bin", "faultgraft") + " runc \"$@\"\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	s.run("refuse-answered", "--runtime", script, lab.Image, "sh", "-c", first)
	s.wantLog("read")
	s.nerdctl("rm", "-f", "refuse-answered")
	s.killAgent()
	_, err := s.lab.Nerdctl(s.ctx, "run", "--rm", "--net", "none", "--name", "refuse-alone", "--runtime", script, "-v", s.out+":/out", lab.Image, "sh", "-c", "echo ran >/out/ran")
	s.Cleanup(func() { _, _ = s.lab.Nerdctl(s.ctx, "rm", "-f", "refuse-alone") }) // nerdctl leaves its record of what did not start
	var ce *lab.CommandError
	if !errors.As(err, &ce) || !strings.Contains(ce.Stderr, "no container starts without the agent's answer") {
		t.Errorf("nerdctl run: %v; want a refusal", err)
	}
	if _, err := os.Stat(filepath.Join(s.out, "ran")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the program ran: %v", err)
	}
}
