// Package start tests that a container of nerdctl or ctr has its faults before
// its program starts: real containerd, its shim and runc, with faultgraft's
// wrapper found first on the shim's PATH.
package start

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/test/lab"
)

func TestMain(m *testing.M) {
	os.Exit(lab.MainWith(m, lab.Options{Env: []string{"FAULTGRAFT_LAB_WRAPPER=1"}}))
}

const (
	rule = "wal.faultgraft.io=io error=EIO op=read path=/data/** ttl=5m"
	// first is a program whose first deed is a read, which it writes down.
	first = `if cat /data/f >/dev/null 2>&1; then echo read >>/out/log; else echo failed >>/out/log; fi; exec sleep 1000`
)

// scene is the lab as one test uses it, with a volume for the containers' /data and one for /out.
type scene struct {
	*testing.T
	lab       *lab.Lab
	ctx       context.Context
	data, out string
	// restarted: containerd and the agent are others than before.
	restarted bool
}

func newScene(t *testing.T) *scene {
	l := lab.Require(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	s := &scene{T: t, lab: l, ctx: ctx, data: t.TempDir(), out: t.TempDir()}
	if err := os.WriteFile(filepath.Join(s.data, "f"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	before, err := l.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer cancel()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(l.Dir(), "log", "faultgraft.log"))
			t.Logf("the agent's log ends with:\n%s", log[max(0, len(log)-3000):])
		}
		if s.restarted {
			return
		}
		left, err := l.Settle(ctx, before)
		if err != nil {
			t.Errorf("look at the lab: %v", err)
		}
		for _, d := range left {
			t.Errorf("not as before: %s", d)
		}
	})
	return s
}

func (s *scene) nerdctl(args ...string) string {
	s.Helper()
	out, err := s.lab.Nerdctl(s.ctx, args...)
	if err != nil {
		s.Fatalf("nerdctl %s: %v", args[0], err)
	}
	return out
}

// run starts a detached nerdctl container with both volumes and returns its id.
func (s *scene) run(name string, args ...string) string {
	s.Helper()
	s.Cleanup(func() { _, _ = s.lab.Nerdctl(s.ctx, "rm", "-f", name) }) // the test may have removed it
	return s.nerdctl(append([]string{"run", "-d", "--name", name, "--net", "none", "-v", s.data + ":/data", "-v", s.out + ":/out"}, args...)...)
}

// awaitLog waits until the containers have written down that many lines, and returns them.
func (s *scene) awaitLog(n int) []string {
	s.Helper()
	for {
		log, _ := os.ReadFile(filepath.Join(s.out, "log")) // it comes
		if lines := strings.Fields(string(log)); len(lines) >= n {
			return lines
		}
		select {
		case <-s.ctx.Done():
			s.Fatalf("the containers have written %q, and not %d lines", log, n)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *scene) wantLog(want ...string) {
	s.Helper()
	if got := s.awaitLog(len(want)); strings.Join(got, " ") != strings.Join(want, " ") {
		s.Errorf("the programs' first reads: %q, want %q", got, want)
	}
}

// runtimeLog is what the container's runtime has logged.
func (s *scene) runtimeLog(id string) string {
	s.Helper()
	path, err := s.lab.Path("/run/containerd/io.containerd.runtime.v2.task/" + lab.Namespace + "/" + id + "/log.json")
	if err != nil {
		s.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.Fatal(err)
	}
	return string(b)
}

func (s *scene) wantRuntimeLog(id, want string) {
	s.Helper()
	if log := s.runtimeLog(id); !strings.Contains(log, want) {
		s.Errorf("the runtime's log is %q; want %q", log, want)
	}
}

const inForce = "faults are in force before the program starts"

func TestNerdctlFirstRead(t *testing.T) {
	s := newScene(t)
	id := s.run("start-fault", "--label", rule, lab.Image, "sh", "-c", first)
	s.wantLog("failed")
	s.wantRuntimeLog(id, inForce)
	plain := s.run("start-plain", lab.Image, "sh", "-c", first)
	s.wantLog("failed", "read")
	if log := s.runtimeLog(plain); strings.Contains(log, "faultgraft") {
		t.Errorf("the runtime's log of a container without faults: %q", log)
	}
}

func TestCtrFirstRead(t *testing.T) {
	s := newScene(t)
	_, err := s.lab.Ctr(s.ctx, "run", "--rm", "--label", rule, "--mount", "type=bind,src="+s.data+",dst=/data,options=rbind:rw", lab.Image, "start-ctr", "cat", "/data/f")
	var ce *lab.CommandError
	if !errors.As(err, &ce) || ce.ExitCode() != 1 || !strings.Contains(ce.Stderr, "nput/output error") && !strings.Contains(ce.Stderr, "I/O error") {
		t.Errorf("ctr run cat: %v; want an I/O error", err)
	}
}

// P6: nerdctl restart, and containerd's restart of a container that was killed.
func TestRestartedContainer(t *testing.T) {
	s := newScene(t)
	id := s.run("start-again", "--restart", "always", "--label", rule, lab.Image, "sh", "-c", first)
	s.wantLog("failed")
	s.nerdctl("restart", "--time", "1", "start-again")
	s.wantLog("failed", "failed")
	s.wantRuntimeLog(id, inForce)
	pid, err := strconv.Atoi(s.nerdctl("inspect", "-f", "{{.State.Pid}}", "start-again"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.wantLog("failed", "failed", "failed")
	s.wantRuntimeLog(id, inForce)
}

// A container whose faults cannot be made starts, and the runtime's log says why they are not there.
func TestStartsWithoutFaults(t *testing.T) {
	s := newScene(t)
	id := s.run("start-nowhere", "--label", "wal.faultgraft.io=io error=EIO op=read path=/nowhere/** ttl=5m", lab.Image, "sh", "-c", first)
	s.wantLog("read")
	s.wantRuntimeLog(id, "the container starts without its faults, if any: failed: ")
	s.wantRuntimeLog(id, "/nowhere")
}

// Terminals, exit codes and commands other than create are the real runtime's.
func TestWrapperIsTransparent(t *testing.T) {
	s := newScene(t)
	s.run("start-tty", "-t", "--label", rule, lab.Image, "sh", "-c", "test -t 0 && test -t 1 && echo tty >/out/log; exec sleep 1000")
	s.wantLog("tty")
	if out := s.nerdctl("exec", "start-tty", "echo", "from exec"); out != "from exec" {
		t.Errorf("exec printed %q", out)
	}
	s.nerdctl("pause", "start-tty")
	s.nerdctl("unpause", "start-tty")
	_, err := s.lab.Nerdctl(s.ctx, "run", "--rm", "--net", "none", lab.Image, "sh", "-c", "exit 7")
	var ce *lab.CommandError
	if !errors.As(err, &ce) || ce.ExitCode() != 7 {
		t.Errorf("error %v; want exit status 7", err)
	}
	// An error of the real runtime comes through in its own words.
	_, err = s.lab.Nerdctl(s.ctx, "run", "--rm", "--net", "none", lab.Image, "/no/such/program")
	if !errors.As(err, &ce) || !strings.Contains(ce.Stderr, "no such file or directory") {
		t.Errorf("error %v", err)
	}
}

// Without an agent containers start.
func TestAgentIsDead(t *testing.T) {
	s := newScene(t)
	s.killAgent()
	id := s.run("start-alone", "--label", rule, lab.Image, "sh", "-c", first)
	s.wantLog("read")
	s.wantRuntimeLog(id, "the container starts without its faults, if any: ")
	s.wantRuntimeLog(id, plugin.ErrNoAgent.Error())
	s.nerdctl("rm", "-f", "start-alone")
}

// killAgent kills the agent; the test's end has containerd start another one.
func (s *scene) killAgent() {
	s.Helper()
	dir, err := s.lab.Path(plugin.DefaultStateDir)
	if err != nil {
		s.Fatal(err)
	}
	client := plugin.NewClient(dir)
	h, err := client.Health(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	s.restarted = true
	s.Cleanup(func() {
		if err := s.lab.Restart(s.ctx); err != nil {
			s.Error(err)
		}
	})
	if err := syscall.Kill(h.PID, syscall.SIGKILL); err != nil {
		s.Fatal(err)
	}
	for {
		if _, err = client.Health(s.ctx); errors.Is(err, plugin.ErrNoAgent) {
			return
		}
		select {
		case <-s.ctx.Done():
			s.Fatalf("the agent that was killed still answers: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// The runtime's log is what the shim reads: one JSON object a line, each with level, msg and time.
func TestRuntimeLogIsJSON(t *testing.T) {
	s := newScene(t)
	id := s.run("start-log", "--label", rule, lab.Image, "sh", "-c", first)
	s.wantLog("failed")
	for line := range strings.Lines(s.runtimeLog(id)) {
		var l struct {
			Level, Msg string
			Time       time.Time
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.Level == "" || l.Msg == "" || l.Time.IsZero() {
			t.Errorf("line %q: %v", line, err)
		}
	}
}
