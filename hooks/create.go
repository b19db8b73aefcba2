package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/hooks/wrapper"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// Task is a container whose first process is there and runs none of its program yet.
type Task struct {
	// Namespace is containerd's; empty: it is not containerd's container.
	Namespace string
	ID        string
	PID       int
	Bundle    string
}

// Answer is what the agent made of a task.
type Answer struct {
	// Known: it is a container that the agent looks at.
	Known bool
	// Faulty: faults are in force. Missing says why they are not although something asks for them.
	Faulty  bool
	Missing string
	// Required: the container must not start if faults are missing.
	Required bool
	// Grafts are the ids of the faults.
	Grafts []string
}

// ErrNoAgent: no agent runs on this node.
var ErrNoAgent = errors.New("no faultgraft agent runs here")

func requiredError(id, missing string) error {
	return fmt.Errorf("faultgraft: container %s must not start without its faults: %s", id, strings.TrimPrefix(missing, "faultgraft: "))
}

// Agent brings a task to its rules before its program runs.
type Agent interface {
	Start(ctx context.Context, t Task) (Answer, error)
}

// CreateOptions are what Create works with.
type CreateOptions struct {
	Agent Agent
	// Record takes an event for the log. Must be set.
	Record func(keeper.Event) error
	// Stderr is where a refusal is said, as runc says its errors.
	Stderr io.Writer
	// Refuse says whether no container starts on this node that the agent gives no
	// answer for. It is asked where the invocation does not say.
	Refuse func() (bool, error)
}

// ofContainerd takes a task's bundle apart: STATE/io.containerd.runtime.v2.task/NAMESPACE/ID
// (containerd 1.3 and newer, core/runtime/v2/bundle.go).
func ofContainerd(bundle, id string) (namespace string, ok bool) {
	dir, base := filepath.Split(filepath.Clean(bundle))
	plugin, namespace := filepath.Split(filepath.Clean(dir))
	ok = base == id && filepath.Base(filepath.Clean(plugin)) == "io.containerd.runtime.v2.task" && namespace != ""
	return namespace, ok
}

// Create is a runtime's `create` with faults: it runs the real runtime's, after
// which the container's first process waits for `start` in its final mount
// namespace and cgroup, and has the agent bring that to its rules. It returns
// the exit status. A container that may start without its faults does, and the
// runtime's log says so.
func Create(ctx context.Context, inv *wrapper.Invocation, o CreateOptions) int {
	c := creation{inv: inv, o: o}
	for _, p := range inv.Problems {
		c.say("warning", "faultgraft: "+p)
	}
	status, interrupted, err := runRuntime(inv)
	if err != nil {
		c.fail(err)
		return 1
	}
	if status != 0 || interrupted {
		return status
	}
	if err := c.bring(ctx); err != nil {
		c.fail(err)
		return 1
	}
	return 0
}

type creation struct {
	inv *wrapper.Invocation
	o   CreateOptions
}

// bring has the container brought to its rules. An error: it is removed again.
func (c *creation) bring(ctx context.Context) error {
	args := c.inv.Create
	bundle, err := filepath.Abs(args.Bundle)
	if err != nil {
		c.say("warning", fmt.Sprintf("faultgraft: its faults, if any, come later: bundle: %v", err))
		return nil
	}
	namespace, ok := ofContainerd(bundle, args.ID)
	if !ok {
		return nil // by hand, podman, CRI-O: the hook is for these
	}
	budget := c.inv.Budget
	if budget == 0 {
		budget = DefaultTimeout
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	t := Task{Namespace: namespace, ID: args.ID, Bundle: bundle}
	var answer Answer
	if t.PID, err = c.pid(ctx); err == nil {
		answer, err = c.o.Agent.Start(ctx, t)
	}
	if err == nil && answer.Missing == "" {
		if answer.Faulty {
			c.say("info", fmt.Sprintf("faultgraft: faults are in force before the program starts: %s (%d ms)", strings.Join(answer.Grafts, ", "), time.Since(began).Milliseconds()))
		}
		return nil
	}
	missing, required := answer.Missing, answer.Required
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("after %v: %w", budget, err)
		}
		missing = err.Error()
		if required = c.refuses(); required {
			missing += "; on this node no container starts without the agent's answer (runtime.withoutAgent, or --without-agent)"
		}
	}
	if !required {
		c.say("warning", "faultgraft: the container starts without its faults, if any: "+missing)
		c.record(t, "started without its faults, if any: "+missing)
		return nil
	}
	refusal := requiredError(t.ID, missing)
	c.record(t, "not started, because its faults are required: "+missing)
	if err := c.remove(); err != nil {
		refusal = fmt.Errorf("%w; and it could not be removed: %w", refusal, err)
	}
	return refusal
}

// refuses says whether a container without an answer must not start.
func (c *creation) refuses() bool {
	if c.inv.WithoutAgent != "" || c.o.Refuse == nil {
		return c.inv.WithoutAgent == "refuse"
	}
	refuse, err := c.o.Refuse()
	if err != nil {
		c.say("warning", fmt.Sprintf("faultgraft: the node's configuration, which may say that no container starts without the agent, cannot be read: %v", err))
	}
	return refuse
}

// pid is the container's first process: from the file that the runtime wrote, or from its state.
func (c *creation) pid(ctx context.Context) (int, error) {
	if name := c.inv.Create.PIDFile; name != "" {
		b, err := os.ReadFile(name)
		if err != nil {
			return 0, fmt.Errorf("the container's pid: %w", err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || pid <= 0 {
			return 0, fmt.Errorf("the container's pid: %s holds %.40q", name, b)
		}
		return pid, nil
	}
	out, err := c.runtime(ctx, "state", c.inv.Create.ID)
	if err != nil {
		return 0, err
	}
	var s struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(out, &s); err != nil || s.PID <= 0 {
		return 0, fmt.Errorf("the container's pid: the runtime's state is %.80q", out)
	}
	return s.PID, nil
}

// remove undoes the create.
func (c *creation) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := c.runtime(ctx, "delete", "--force", c.inv.Create.ID)
	return err
}

// runtime runs another command of the real runtime, apart from the container's descriptors.
func (c *creation) runtime(ctx context.Context, args ...string) ([]byte, error) {
	real, err := c.inv.FindReal()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, real, append(append([]string(nil), c.inv.Create.Globals...), args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", real, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out, nil
}

func (c *creation) record(t Task, message string) {
	e := keeper.Event{Type: keeper.EventRefused, Target: t.ID, PID: uint32(t.PID), Message: message}
	if err := c.o.Record(e); err != nil {
		c.say("warning", fmt.Sprintf("faultgraft: not in the event log: %v", err))
	}
}

// fail says an error where the runtime says its own: in its log, of which the
// shim shows the last error, and on standard error.
func (c *creation) fail(err error) {
	c.say("error", err.Error())
	_, _ = fmt.Fprintln(c.o.Stderr, err) // nobody may be listening
}

// say writes a line to the runtime's log. Standard error is the container's own
// by then, and gets none but an error.
func (c *creation) say(level, message string) {
	name := c.inv.Create.Log
	if name == "" || name == "/dev/stderr" {
		return
	}
	now := time.Now().Format(time.RFC3339)
	line := fmt.Appendf(nil, "time=%q level=%s msg=%q\n", now, level, message)
	if c.inv.Create.JSON {
		b, err := json.Marshal(map[string]string{"level": level, "msg": message, "time": now})
		if err != nil {
			return // it is text
		}
		line = append(b, '\n')
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return // it has no other place
	}
	_, _ = f.Write(line)
	_ = f.Close()
}
