package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// doctor finds containerd, NRI and the agent that containerd has started, connected to both.
func TestDoctor(t *testing.T) {
	s := newScene(t)
	var seen string
	ready := func() bool {
		out, err := s.lab.Faultgraft(s.ctx, "doctor", "-o", "json")
		if err != nil {
			t.Fatalf("doctor: %v", err)
		}
		var r struct {
			Checks []struct {
				Name, Detail, Fix string
				OK                bool
			}
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("doctor: %v in %s", err, out)
		}
		seen = out
		fine := map[string]bool{}
		for _, c := range r.Checks {
			fine[c.Name] = c.OK
			if c.Name == "containerd" && c.OK && !strings.Contains(c.Detail, "2.") {
				t.Errorf("containerd: %s", c.Detail)
			}
		}
		for _, name := range []string{"ptrace", "containerd", "NRI", "agent", "agent and containerd", "agent and NRI", "time-outs", "state directory", "stop"} {
			if !fine[name] {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(time.Minute); !ready(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("doctor does not find all in place:\n%s", seen)
		}
	}
}
