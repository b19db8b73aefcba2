package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestCheckPhase(t *testing.T) {
	if err := CheckPhase("poststart"); err != nil {
		t.Error(err)
	}
	for phase, want := range map[string]string{
		"createRuntime":   "a createRuntime hook cannot graft in this version: it runs before pivot_root",
		"createcontainer": "a createContainer hook cannot graft in this version: it runs before pivot_root",
		"prestart":        "it runs before pivot_root",
		"startContainer":  "it runs inside the container",
		"poststop":        "the container has ended",
		"":                `"" is not a phase of an OCI runtime hook; use poststart`,
		"start":           `"start" is not a phase`,
	} {
		if err := CheckPhase(phase); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "poststart") {
			t.Errorf("%q: error %v, want %q", phase, err, want)
		}
	}
	if p := Phases(); len(p) != 6 || p[0] != Poststart {
		t.Errorf("phases %q", p)
	}
}

// never is an Injector for what must not come to a graft. The real one is at
// work in test/hook.
type never struct{ t *testing.T }

func (n never) Inject(_ context.Context, t keeper.Target, req keeper.Request) (keeper.Graft, error) {
	n.t.Errorf("grafted %s of %+v", req.Path, t)
	return keeper.Graft{}, errors.New("not to be called")
}

// hook runs a hook for a container with these annotations that must not be
// grafted; it returns what was written to the event log.
func hook(t *testing.T, pid int, annotations map[string]string) (Result, []keeper.Event) {
	t.Helper()
	b, err := json.Marshal(specs.State{Version: specs.Version, ID: "c1", Status: specs.StateRunning, Pid: pid, Bundle: t.TempDir(), Annotations: annotations})
	if err != nil {
		t.Fatal(err)
	}
	return hookWith(t, strings.NewReader(string(b)), 0)
}

func hookWith(t *testing.T, in io.Reader, timeout time.Duration) (Result, []keeper.Event) {
	t.Helper()
	state := t.TempDir()
	log, err := keeper.OpenEventLog(state)
	if err != nil {
		t.Fatal(err)
	}
	res := Run(t.Context(), Options{Input: in, Injector: never{t}, Record: log.Write, Seed: func() uint64 { return 1 }, Timeout: timeout})
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	var events []keeper.Event
	if err := keeper.ReadEvents(t.Context(), state, false, func(e keeper.Event) error {
		events = append(events, e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return res, events
}

func wantRefusal(t *testing.T, res Result, events []keeper.Event, want string) {
	t.Helper()
	if len(res.Grafts) != 0 || len(res.Problems) != 1 || !strings.Contains(res.Problems[0].Error(), want) {
		t.Errorf("result %+v, want the problem %q", res, want)
	}
	if len(events) != 1 || events[0].Type != keeper.EventRefused || !strings.Contains(events[0].Message, want) {
		t.Fatalf("events %+v, want one refusal with %q", events, want)
	}
}

func TestRunBadAnnotation(t *testing.T) {
	res, events := hook(t, os.Getpid(), map[string]string{"wal.faultgraft.io": "io error=EIOO op=read path=/d"})
	wantRefusal(t, res, events, `annotation wal.faultgraft.io: column 10: unknown errno "EIOO"; did you mean EIO?`)
	if events[0].Target != "c1" || events[0].Rule != "wal.faultgraft.io" {
		t.Errorf("event %+v", events[0])
	}
}

func TestRunNothingToDo(t *testing.T) {
	const rule = "io error=EIO op=read path=/d"
	for name, annotations := range map[string]map[string]string{
		"no annotations":      nil,
		"those of others":     {"org.example": "x"},
		"disabled":            {"wal.faultgraft.io": rule, "enable.faultgraft.io": "false"},
		"disabled, bad rule":  {"wal.faultgraft.io": "bad", "enable.faultgraft.io": "false"},
		"another container's": {"wal.faultgraft.io/container.web": rule, "io.kubernetes.container.name": "pg"},
		"pause container":     {"wal.faultgraft.io/pod": rule, "io.kubernetes.cri-o.ContainerType": "sandbox"},
	} {
		t.Run(name, func(t *testing.T) {
			res, events := hook(t, os.Getpid(), annotations)
			if res.Container != "c1" || len(res.Grafts)+len(res.Problems)+len(events) != 0 {
				t.Errorf("result %+v, events %+v", res, events)
			}
		})
	}
}

func TestRunBadState(t *testing.T) {
	res, events := hookWith(t, strings.NewReader("{"), 0)
	wantRefusal(t, res, events, "the container's state on standard input: not JSON")
}

// A container in the host's mount namespace is left alone.
func TestRunSharedMounts(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // the test is over either way
		_ = cmd.Wait()         // "signal: killed"
	})
	res, events := hook(t, cmd.Process.Pid, map[string]string{"wal.faultgraft.io": "io error=EIO op=read path=/d"})
	wantRefusal(t, res, events, "shares the mount namespace of the host")
}

// A runtime that writes no end of a state does not hold the hook for ever.
func TestRunDeadline(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	res, events := hookWith(t, r, 50*time.Millisecond)
	wantRefusal(t, res, events, "reading the container's state took too long")
	if err := errors.Join(w.Close(), r.Close()); err != nil {
		t.Error(err)
	}
}
