package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/lab"
)

// awaitEvent waits for an event of a container, and gives all of that container until then.
func (s *scene) awaitEvent(id string, kind keeper.EventType) (all []keeper.Event) {
	s.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		out, err := s.lab.Faultgraft(s.ctx, "events", "-o", "json")
		if err != nil {
			s.Fatal(err)
		}
		all = nil
		for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
			var e keeper.Event
			if err := json.Unmarshal([]byte(l), &e); err != nil {
				s.Fatalf("%q: %v", l, err)
			}
			if e.Target == id {
				all = append(all, e)
			}
			if e.Target == id && e.Type == kind {
				return all
			}
		}
	}
	s.Errorf("no event %s of %s: %+v", kind, id, all)
	return all
}

// A fault and its effect stand together: what the runtime says of a container that
// has faults, by a label or by a person, is in the same stream. Of others it is not.
func TestRuntimeEvents(t *testing.T) {
	s := newScene(t)
	hit, _ := s.run("e2e-hit")
	other, _ := s.run("e2e-bystander")
	if _, err := s.lab.Faultgraft(s.ctx, "inject", "e2e-hit", "--path", "/data", "io error=EIO op=read ttl=1m"); err != nil {
		t.Fatal(err)
	}
	if out, ok := s.cat("e2e-hit"); ok {
		t.Errorf("grafted: read %q", out)
	}
	s.nerdctl("kill", "e2e-bystander")
	s.nerdctl("kill", "e2e-hit")
	faults := 0
	for _, e := range s.awaitEvent(hit, keeper.EventExit) {
		switch e.Type {
		case keeper.EventFault:
			faults++
		case keeper.EventExit:
			if e.ExitStatus == nil || *e.ExitStatus != 137 || e.Name != "e2e-hit" || e.Time.IsZero() {
				t.Errorf("%+v", e)
			}
		}
	}
	if faults == 0 {
		t.Error("no fault before the end")
	}
	out, err := s.lab.Faultgraft(s.ctx, "events")
	if err != nil || strings.Contains(out, other) || strings.Contains(out, "e2e-bystander") {
		t.Errorf("a container without faults is in the events: %s, %v", out, err)
	}
	if !strings.Contains(out, "exit status 137") {
		t.Errorf("events: %s", out)
	}
	s.nerdctl("rm", "-f", "e2e-bystander", "e2e-hit")

	// The label's container has its memory used up by a session.
	data := s.volume()
	s.Cleanup(func() { _, _ = s.lab.Nerdctl(s.ctx, "rm", "-f", "e2e-oom") })
	id := s.nerdctl("run", "-d", "--name", "e2e-oom", "--net", "none", "-v", data+":/data", "--memory", "16m",
		"--label", "slow.faultgraft.io=io latency=1ms op=read path=/data/** ttl=1m", lab.Image, "sleep", "1000")
	s.await(id, keeper.StateActive)
	if out, err := s.lab.Nerdctl(s.ctx, "exec", "e2e-oom", "tail", "/dev/zero"); err == nil {
		t.Errorf("it got all the memory it asked for: %s", out)
	}
	s.awaitEvent(id, keeper.EventOOM)
	s.nerdctl("rm", "-f", "e2e-oom")
	s.awaitEvent(id, keeper.EventExit)
}
