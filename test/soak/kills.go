package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// killing is the step that kills one process of that role.
func killing(role string) func(*soak, context.Context, step) error {
	return func(s *soak, ctx context.Context, st step) error {
		at := st.draw.IntN(1 << 20)
		all, err := s.processes(role)
		if err == nil && len(all) == 0 {
			if err = s.graftDrawn(ctx, st.draw); err == nil {
				all, err = s.processes(role)
			}
		}
		if err != nil || len(all) == 0 {
			return err
		}
		p := all[at%len(all)]
		before, err := s.active(ctx)
		if err != nil {
			return err
		}
		if !s.kill(p) {
			return nil
		}
		if role != server || !s.o.takeover {
			return nil
		}
		return s.goOn(ctx, p, before)
	}
}

// deathSpan is for how long a keeper remembers the deaths of its servers. At the
// fourth it takes the layers off, which costs what docs/reliability.md says.
const deathSpan = 10 * time.Second

// mayKill says whether another server follows when this process is killed.
func (s *soak) mayKill(p process) bool {
	if p.role != server {
		return true
	}
	s.deaths = slices.DeleteFunc(s.deaths, func(d death) bool { return time.Since(d.at) > deathSpan+time.Second })
	n := 0
	for _, d := range s.deaths {
		if d.target == p.target {
			n++
		}
	}
	if n >= 3 {
		s.note("  process %d (%s, of target %d) would be the fourth within %s: left alone", p.Pid, p.role, p.target, deathSpan)
		return false
	}
	s.deaths = append(s.deaths, death{p.target, time.Now()})
	return true
}

// death is of a server.
type death struct {
	target int
	at     time.Time
}

// kill ends a process without a warning; false: it had ended already, or may not.
func (s *soak) kill(p process) bool {
	if !s.mayKill(p) {
		return false
	}
	if err := p.Kill(); err != nil {
		s.note("  process %d (%s): %v", p.Pid, p.role, err)
		return false
	}
	s.note("  killed process %d (%s, of target %d)", p.Pid, p.role, p.target)
	s.sum.count("kill " + p.role)
	return true
}

// goOn sees that the grafts of a target whose server was killed are there afterwards, under their ids.
func (s *soak) goOn(ctx context.Context, p process, before []keeper.Graft) error {
	for _, g := range before {
		if g.Target.PID != p.target {
			continue
		}
		last := time.Time{}
		for _, r := range g.Rules {
			if r.Expires.After(last) {
				last = r.Expires
			}
		}
		for {
			all, err := s.grafts(ctx)
			if err != nil {
				return err
			}
			state := "gone"
			for _, now := range all {
				if now.ID == g.ID {
					state = string(now.State)
				}
			}
			if state == "active" {
				s.sum.count("layers that went on when their server was killed")
				break
			}
			if time.Now().After(last.Add(-time.Second)) { // its time was over meanwhile
				break
			}
			if state == "gone" || state == "reverting" {
				return fmt.Errorf("graft %s is %s after its server was killed", g.ID, state)
			}
			pause(ctx, 50*time.Millisecond)
			if ctx.Err() != nil {
				return fmt.Errorf("graft %s is %s minutes after its server was killed", g.ID, state)
			}
		}
	}
	return nil
}

// killingInTheMiddle is the step that kills a process of that role while a
// swapper is at work for a graft, an ungraft or a change of rules.
func killingInTheMiddle(role string) func(*soak, context.Context, step) error {
	return func(s *soak, ctx context.Context, st step) error {
		r := st.draw
		what := []string{"graft", "graft", "recover", "rules"}[r.IntN(4)]
		after := time.Duration(r.IntN(40)) * time.Millisecond
		args := s.inject(r)
		if what != "graft" {
			g, t, ok, err := s.choose(ctx, r)
			switch {
			case err != nil:
				return err
			case ok && what == "recover":
				args = []string{"recover", g.ID}
			case ok:
				args = append([]string{"update", g.ID, "--keep"}, t.drawRules(r, g.Path)...)
			}
		}
		cmd, err := s.lab.FaultgraftCommand(ctx, args...)
		if err != nil {
			return err
		}
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Start(); err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		killed := s.killBeside(ctx, role, cmd.Process, after, ended)
		select {
		case err = <-ended:
		case <-ctx.Done():
			return fmt.Errorf("faultgraft %s does not end after the kill of its %s: %w", strings.Join(args, " "), role, ctx.Err())
		}
		s.note("  faultgraft %s: %v: %.300q", strings.Join(args, " "), err, said.String())
		if err == nil || killed {
			return nil // what it could not do it has said; that the targets are well is seen next
		}
		if !expected.MatchString(said.String()) {
			return fmt.Errorf("faultgraft %s: %w: %s", strings.Join(args, " "), err, said.String())
		}
		s.sum.count("refused")
		return nil
	}
}

// killBeside waits for a swapper, and that time longer, and kills; false: none came, or the command was over before.
func (s *soak) killBeside(ctx context.Context, role string, typed *os.Process, after time.Duration, ended chan error) bool {
	for ctx.Err() == nil {
		select {
		case err := <-ended:
			ended <- err
			return false
		default:
		}
		all, err := s.processes(swapper)
		if err != nil {
			s.find("%v", err)
			return false
		}
		if len(all) == 0 {
			time.Sleep(time.Millisecond)
			continue
		}
		at := all[0]
		time.Sleep(after)
		switch role {
		case swapper:
			return s.kill(at)
		case command:
			return s.kill(process{Process: typed, role: command, target: at.target})
		}
		others, err := s.processes(role)
		if err != nil {
			s.find("%v", err)
			return false
		}
		for _, p := range others {
			if p.target == at.target {
				return s.kill(p)
			}
		}
		return false
	}
	return false
}

// hangServer stops a server for good, as one that is stuck, and takes its grafts off.
func (s *soak) hangServer(ctx context.Context, st step) error {
	g, _, ok, err := s.choose(ctx, st.draw)
	if err != nil || !ok {
		return err
	}
	all, err := s.processes(server)
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.target != g.Target.PID {
			continue
		}
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			return nil // it has just ended
		}
		s.note("  stopped process %d (server of target %d)", p.Pid, p.target)
		s.sum.count("hung server")
		_, err := s.tell(ctx, "recover", g.ID)
		err = s.allowed(err)
		if cerr := p.Signal(syscall.SIGCONT); cerr != nil && !errors.Is(cerr, os.ErrProcessDone) {
			return errors.Join(err, cerr)
		}
		return err
	}
	return nil
}

// killAgent kills the agent; for a moment there is none, as until a service manager has seen it.
func (s *soak) killAgent(ctx context.Context, st step) error {
	rest := time.Duration(st.draw.IntN(2000)) * time.Millisecond
	if err := s.agent.stop(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	s.sum.count("kill agent")
	pause(ctx, rest)
	return s.agent.start(ctx)
}

// restartAgent restarts it as an upgrade does.
func (s *soak) restartAgent(ctx context.Context, _ step) error {
	if err := s.agent.stop(ctx, syscall.SIGTERM); err != nil {
		return err
	}
	s.sum.count("restart of the agent")
	return s.agent.start(ctx)
}

// restartContainerd restarts it under containers and agent.
func (s *soak) restartContainerd(ctx context.Context, _ step) error {
	if err := s.lab.Restart(ctx); err != nil {
		return err
	}
	s.sum.count("restart of containerd")
	return s.agent.connected(ctx)
}
