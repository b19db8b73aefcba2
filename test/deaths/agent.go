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
	"github.com/faultgraft/faultgraft/plugin"
)

// How says how a test has agents run.
type How struct {
	// Patience is for one step.
	Patience time.Duration
	// Program prepares a faultgraft with these arguments.
	Program func(args ...string) *exec.Cmd
	// Args are the agents'.
	Args []string
	// Looked fails as long as an agent has not looked at what it is there for. It is asked again and again.
	Looked func(*plugin.Client) error
}

// Agent is an agent that dies at a point, and those after it, which do not.
type Agent struct {
	Point string
	// State is their state directory.
	State string

	t       testing.TB
	how     How
	dir     string
	mark    string
	log     *os.File
	running *exec.Cmd // nil: none
	ended   chan struct{}
}

// NewAgent makes what an agent that is to die needs, and removes it with the test.
func NewAgent(t testing.TB, point string, how How) *Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "fg-walk-") // t.TempDir is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{Point: point, State: filepath.Join(dir, "state"), t: t, how: how, dir: dir}
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
			if out, err := a.Faultgraft("recover", "--all", "--purge"); err != nil {
				t.Logf("recover --all --purge: %s, %v", out, err)
			}
		}
		_ = a.log.Close()
		_ = os.RemoveAll(dir)
	})
	return a
}

// Client asks the agent that runs.
func (a *Agent) Client() *plugin.Client { return plugin.NewClient(a.State) }

// Faultgraft runs a command on the agents' state directory.
func (a *Agent) Faultgraft(args ...string) (string, error) {
	out, err := a.command(nil, args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (a *Agent) command(env []string, args ...string) *exec.Cmd {
	cmd := a.how.Program(args...)
	cmd.Env = append(append(os.Environ(), a.variable()), env...)
	return cmd
}

// Process is the agent that runs.
func (a *Agent) Process() *os.Process { return a.running.Process }

// Start starts an agent, and waits until it has looked.
func (a *Agent) Start() {
	a.t.Helper()
	a.begin()
	a.looked()
}

// StartNext is Start after what a service manager does when an agent has died (ExecStopPost of contrib/systemd).
func (a *Agent) StartNext() {
	a.t.Helper()
	if out, err := a.Faultgraft("recover", "--orphans"); err != nil {
		a.t.Errorf("recover --orphans: %s, %v", out, err)
	}
	a.Start()
}

// StartMortal is Start of an agent that will die at the point, once Arm was called.
func (a *Agent) StartMortal() {
	a.t.Helper()
	a.Spare()
	a.beginMortal()
	a.looked()
}

// StartArmed starts an agent that dies at the point on its way, and waits for that.
func (a *Agent) StartArmed() {
	a.t.Helper()
	a.Arm()
	a.beginMortal()
	a.Dies()
}

func (a *Agent) beginMortal() {
	a.t.Helper()
	a.begin(failpoint.At+"=kill:"+a.Point, failpoint.Reached+"="+filepath.Dir(a.mark))
}

func (a *Agent) begin(env ...string) {
	a.t.Helper()
	a.running = a.command(env, a.how.Args...)
	a.running.Stdout, a.running.Stderr = a.log, a.log
	if err := a.running.Start(); err != nil {
		a.t.Fatal(err)
	}
	agent, ended := a.running, make(chan struct{})
	a.ended = ended
	go func() { _ = agent.Wait(); close(ended) }()
}

func (a *Agent) looked() {
	a.t.Helper()
	var err error
	for end := time.Now().Add(a.how.Patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case <-a.ended:
			a.t.Fatalf("the agent has ended: %s", a.running.ProcessState)
		default:
		}
		if err = a.how.Looked(a.Client()); err == nil {
			return
		}
	}
	a.t.Fatalf("the agent does not answer: %v", err)
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
	case <-time.After(a.how.Patience):
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
	for end := time.Now().Add(a.how.Patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if left = a.processes(); len(left) == 0 {
			return
		}
	}
	a.t.Errorf("processes are left: %q", left)
}

// variable tells processes their state directory.
func (a *Agent) variable() string { return "FAULTGRAFT_STATE=" + a.State }

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
		if strings.Contains(string(b), a.variable()+"\x00") {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
			left = append(left, fmt.Sprintf("%s: %s", filepath.Dir(f), strings.ReplaceAll(string(line), "\x00", " ")))
		}
	}
	return left
}
