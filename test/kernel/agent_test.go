// Package kernel tests kernel faults from end to end: package kernel, runc and
// containerd, in the emulated machine of contrib/testkernel. What else wants a kernel of
// its own is here too: checkpoints (CRIU).
package kernel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	faults "github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/policy"
)

// agentEnv makes this test binary a process that holds faults, as the agent
// does: it answers one line of JSON for each it reads.
const agentEnv = "FAULTGRAFT_TEST_AGENT"

type request struct {
	Arm    *faults.Fault
	Disarm string
}

type answer struct {
	Error  string
	Faults []status
}

// status is a fault as it stands.
type status struct {
	ID       string
	Backend  string
	Note     string
	Cgroup   faults.Cgroup
	Counters faults.Counters
}

func serveAgent() error {
	in, err := faults.New(faults.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	armed := map[string]*faults.Armed{}
	serve := func(r request) ([]status, error) {
		switch {
		case r.Arm != nil:
			a, err := in.Arm(context.Background(), *r.Arm)
			if err != nil {
				return nil, err
			}
			armed[a.ID()] = a
		case r.Disarm != "":
			a := armed[r.Disarm]
			if a == nil {
				return nil, fmt.Errorf("no fault %s", r.Disarm)
			}
			delete(armed, r.Disarm)
			return nil, a.Disarm()
		}
		var all []status
		for id, a := range armed {
			c, err := a.Counters()
			if err != nil {
				return nil, err
			}
			all = append(all, status{id, a.Backend(), a.Note(), a.Fault().Cgroup, c})
		}
		return all, nil
	}
	lines := json.NewDecoder(os.Stdin)
	for {
		var r request
		if err := lines.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return in.Close()
			}
			return err
		}
		all, err := serve(r)
		a := answer{Faults: all}
		if err != nil {
			a.Error = err.Error()
		}
		if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
			return err
		}
	}
}

// agent is such a process.
type agent struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
	n   int
}

// startAgent starts an agent and ends it, with all its faults, after the test.
// Then nothing may be left in the kernel.
func startAgent(t testing.TB) *agent {
	t.Helper()
	noLeaks(t)
	a := &agent{t: t}
	a.again()
	t.Cleanup(func() {
		if err := a.in.Close(); err != nil {
			t.Error(err)
		}
		if err := a.cmd.Wait(); err != nil {
			t.Errorf("the agent: %v", err)
		}
	})
	return a
}

// again starts the agent, also after its death.
func (a *agent) again() {
	a.t.Helper()
	a.cmd = exec.Command("/proc/self/exe")
	a.cmd.Env = append(os.Environ(), agentEnv+"=1")
	a.cmd.Stderr = os.Stderr
	var err error
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		a.t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	a.out = json.NewDecoder(bufio.NewReader(out))
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
}

// kill ends the agent as kill -9 does.
func (a *agent) kill() {
	a.t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		a.t.Fatal(err)
	}
	_ = a.cmd.Wait()
}

func (a *agent) ask(r request) answer {
	a.t.Helper()
	if err := json.NewEncoder(a.in).Encode(r); err != nil {
		a.t.Fatal(err)
	}
	var got answer
	if err := a.out.Decode(&got); err != nil {
		a.t.Fatal(err)
	}
	return got
}

// fails is a rule that fails a hook point for an hour.
func fails(hook string, errno unix.Errno) policy.Rule {
	kind, name, _ := strings.Cut(hook, ":")
	return policy.Rule{
		Name:    "test",
		Kernel:  &policy.KernelFault{Hook: policy.Hook{Kind: kind, Name: name}, Error: policy.Errno(errno)},
		Trigger: policy.Trigger{P: 1, TTL: time.Hour, Seeded: true},
	}
}

// inject arms a rule in the cgroup of a process and returns the fault's id.
func (a *agent) inject(pid int, rule policy.Rule) string {
	a.t.Helper()
	id, err := a.tryInject(pid, rule)
	if err != nil {
		a.t.Fatalf("%s: %v", rule.Kernel.Hook, err)
	}
	return id
}

func (a *agent) tryInject(pid int, rule policy.Rule) (string, error) {
	a.t.Helper()
	cgroup, err := faults.CgroupOf(pid)
	if err != nil {
		return "", err
	}
	a.n++
	id := fmt.Sprintf("k-%d", a.n)
	if got := a.ask(request{Arm: &faults.Fault{ID: id, Rule: rule, Cgroup: cgroup, PID: pid}}); got.Error != "" {
		return "", errors.New(got.Error)
	}
	return id, nil
}

func (a *agent) recover(id string) {
	a.t.Helper()
	if got := a.ask(request{Disarm: id}); got.Error != "" {
		a.t.Fatalf("end %s: %s", id, got.Error)
	}
}

// faults are those in force.
func (a *agent) faults() []status {
	a.t.Helper()
	got := a.ask(request{})
	if got.Error != "" {
		a.t.Fatal(got.Error)
	}
	return got.Faults
}

// fault is the one of that id.
func (a *agent) fault(id string) status {
	a.t.Helper()
	for _, f := range a.faults() {
		if f.ID == id {
			return f
		}
	}
	a.t.Fatalf("there is no fault %s", id)
	return status{}
}
