package deaths

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/failpoint"
)

// Agent is an agent that dies at a point, and those after it, which do not.
type Agent struct {
	Point string
	// State is their state directory.
	State string
	// Rescue takes off what a death that failed has left; may be nil.
	Rescue func()

	t        testing.TB
	patience time.Duration
	// prepare makes the command of an agent with these variables more.
	prepare func(env []string) *exec.Cmd
	dir     string
	mark    string
	log     *os.File
	running *exec.Cmd // nil: none
	ended   chan struct{}
}

// NewAgent makes what an agent that is to die needs, and removes it with the test. patience is for one
// step; prepare makes its command for a state directory.
func NewAgent(t testing.TB, point string, patience time.Duration, prepare func(state string, env []string) *exec.Cmd) *Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "fg-walk-") // t.TempDir is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{Point: point, State: filepath.Join(dir, "state"), t: t, patience: patience, dir: dir}
	a.prepare = func(env []string) *exec.Cmd { return prepare(a.State, env) }
	a.mark = filepath.Join(dir, "reached", failpoint.Mark("kill", point))
	if err := os.Mkdir(filepath.Dir(a.mark), 0o700); err != nil {
		t.Fatal(err)
	}
	if a.log, err = os.Create(filepath.Join(dir, "agent.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if a.running != nil {
			_ = a.running.Process.Kill() // it may have ended
			<-a.ended
		}
		if t.Failed() {
			b, _ := os.ReadFile(a.log.Name())
			t.Logf("the agents said:\n%s", b[max(0, len(b)-6000):])
			if a.Rescue != nil {
				a.Rescue()
			}
		}
		_ = a.log.Close()
		_ = os.RemoveAll(dir)
	})
	return a
}

// Process is the agent that runs.
func (a *Agent) Process() *os.Process { return a.running.Process }

// Ended says how the agent ended; empty: it runs.
func (a *Agent) Ended() string {
	select {
	case <-a.ended:
		return a.running.ProcessState.String()
	default:
		return ""
	}
}

// Start starts an agent.
func (a *Agent) Start(env ...string) {
	a.t.Helper()
	a.running = a.prepare(env)
	a.running.Stdout, a.running.Stderr = a.log, a.log
	if err := a.running.Start(); err != nil {
		a.t.Fatal(err)
	}
	agent, ended := a.running, make(chan struct{})
	a.ended = ended
	go func() { _ = agent.Wait(); close(ended) }()
}

// StartMortal starts an agent that will die at the point, once Arm was called.
func (a *Agent) StartMortal() {
	a.t.Helper()
	a.Spare()
	a.startAtPoint()
}

// StartArmed starts an agent that dies at the point on its way, and waits for that.
func (a *Agent) StartArmed() {
	a.t.Helper()
	a.Arm()
	a.startAtPoint()
	a.Dies()
}

func (a *Agent) startAtPoint() {
	a.t.Helper()
	a.Start(failpoint.At+"=kill:"+a.Point, failpoint.Reached+"="+filepath.Dir(a.mark))
}

// Spare has the agent live, as if it had died already.
func (a *Agent) Spare() {
	a.t.Helper()
	if err := os.WriteFile(a.mark, nil, 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// Arm has the agent die when it comes to the point from now on.
func (a *Agent) Arm() {
	a.t.Helper()
	if err := os.Remove(a.mark); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.t.Fatal(err)
	}
}

// Dies waits for the agent's death.
func (a *Agent) Dies() {
	a.t.Helper()
	select {
	case <-a.ended:
	case <-time.After(a.patience):
		a.t.Fatalf("the agent does not come to %s", a.Point)
	}
	b, err := os.ReadFile(a.mark)
	ws, _ := a.running.ProcessState.Sys().(syscall.WaitStatus)
	if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(a.running.Process.Pid) || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		a.t.Fatalf("the agent (process %d) did not die at %s, but by itself: %s; %q, %v", a.running.Process.Pid, a.Point, a.running.ProcessState, b, err)
	}
	a.running = nil
}

// Kill is kill -9, wherever the agent is.
func (a *Agent) Kill() {
	a.t.Helper()
	if err := a.running.Process.Kill(); err != nil {
		a.t.Fatal(err)
	}
	<-a.ended
	a.running = nil
}

// Terminate tells the agent to end.
func (a *Agent) Terminate() {
	a.t.Helper()
	if err := a.running.Process.Signal(syscall.SIGTERM); err != nil {
		a.t.Fatal(err)
	}
}

// End ends the agent in order.
func (a *Agent) End() {
	a.t.Helper()
	a.Terminate()
	<-a.ended
	if !a.running.ProcessState.Success() {
		a.t.Errorf("the next agent: %s", a.running.ProcessState)
	}
	a.running = nil
}

// Counted are the faults in the agent's file.
func (a *Agent) Counted() (n uint64) {
	a.t.Helper()
	b, err := os.ReadFile(filepath.Join(a.State, "counters.json"))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	var form struct{ Faults []struct{ N uint64 } }
	if err == nil {
		err = json.Unmarshal(b, &form)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	for _, f := range form.Faults {
		n += f.N
	}
	return n
}

// NothingIsLeft checks that there is no state directory's file and no process that works with it.
func (a *Agent) NothingIsLeft() {
	a.t.Helper()
	if entries, err := os.ReadDir(a.State); err == nil {
		a.t.Errorf("left in the state directory: %v", entries)
	}
	var left []string
	for end := time.Now().Add(a.patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if left = a.processes(); len(left) == 0 {
			return
		}
	}
	a.t.Errorf("processes are left: %q", left)
}

// Variable tells processes their state directory.
func (a *Agent) Variable() string { return "FAULTGRAFT_STATE=" + a.State }

// processes lists those that work with the state directory.
func (a *Agent) processes() (left []string) {
	a.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		a.t.Fatal(err)
	}
	for _, f := range files {
		env, err := os.Open(f)
		if err != nil {
			continue // it has ended
		}
		b, _ := io.ReadAll(env) // as above
		_ = env.Close()
		if strings.Contains(string(b), a.Variable()+"\x00") {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
			left = append(left, fmt.Sprintf("%s: %s", filepath.Dir(f), strings.ReplaceAll(string(line), "\x00", " ")))
		}
	}
	return left
}
