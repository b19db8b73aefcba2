package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
	"github.com/faultgraft/faultgraft/test/workload"
)

// agent is `faultgraft plugin` as a service manager runs it: with its log in a file, started again after it ended.
type agent struct {
	s     *soak
	cmd   *exec.Cmd
	ended chan struct{}
}

// takeOver ends the agent that containerd has launched. containerd does not launch another until it is restarted.
func (a *agent) takeOver(ctx context.Context) error {
	all, err := a.s.lab.Own(lab.RoleAgent)
	if err != nil {
		return err
	}
	for _, p := range all {
		if err := end(ctx, p, syscall.SIGTERM); err != nil {
			return err
		}
	}
	return nil
}

func (a *agent) start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(a.s.dir, "agent.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	// it lives longer than the step that starts it
	a.cmd, err = a.s.lab.FaultgraftCommand(context.WithoutCancel(ctx), "plugin")
	if err != nil {
		return errors.Join(err, log.Close())
	}
	a.cmd.Stdout, a.cmd.Stderr = log, log
	err = errors.Join(a.cmd.Start(), log.Close())
	if err != nil {
		return err
	}
	cmd, ended := a.cmd, make(chan struct{})
	a.ended = ended
	go func() { _ = cmd.Wait(); close(ended) }()
	return a.connected(ctx)
}

// connected waits until the agent takes requests.
func (a *agent) connected(ctx context.Context) error {
	return workload.Await(ctx, "the agent takes requests", func() error {
		select {
		case <-a.ended:
			return fmt.Errorf("it ended: see %s", filepath.Join(a.s.dir, "agent.log"))
		default:
		}
		path, err := a.s.lab.Path("/run/faultgraft/daemon.sock")
		if err != nil {
			return err
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

func (a *agent) pid() int { return a.cmd.Process.Pid }

// stop signals it and waits for its end.
func (a *agent) stop(ctx context.Context, sig syscall.Signal) error {
	if a.cmd == nil {
		return nil
	}
	select {
	case <-a.ended:
		return fmt.Errorf("the agent has ended by itself: %s; see %s", a.cmd.ProcessState, filepath.Join(a.s.dir, "agent.log"))
	default:
	}
	if err := a.cmd.Process.Signal(sig); err != nil {
		return err
	}
	select {
	case <-a.ended:
		return nil
	case <-time.After(patience):
	case <-ctx.Done():
	}
	return fmt.Errorf("the agent (process %d) does not end on %s", a.pid(), sig)
}

// end signals a process and waits until it has gone.
func end(ctx context.Context, p lab.OwnProcess, sig syscall.Signal) error {
	if err := p.Signal(sig); err != nil {
		return nil // it has ended
	}
	for {
		if _, there := lab.LookAt(p.Pid); !there { // a zombie has ended
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("process %d (%s) does not end on %s: %w", p.Pid, p.Role, sig, ctx.Err())
		}
		pause(ctx, 20*time.Millisecond)
	}
}
