package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/lab"
)

// tries is how often a step that kills begins again where it met nobody to kill: a graft was refused, a swapper had just ended.
const tries = 5

// killing is the step that kills one process of that role.
func killing(role string) func(*soak, context.Context, step) error {
	return func(s *soak, ctx context.Context, st step) error {
		for range tries {
			at := st.draw.IntN(1 << 20)
			all, err := s.lab.Own(role)
			if err == nil && len(all) == 0 {
				if err = s.graftDrawn(ctx, st.draw); err == nil {
					all, err = s.lab.Own(role)
				}
			}
			if err != nil {
				return err
			}
			if len(all) == 0 {
				continue
			}
			p := all[at%len(all)]
			before, err := s.active(ctx)
			if err != nil {
				return err
			}
			if !s.kill(p, "") {
				continue
			}
			if role != lab.RoleServer || !s.o.takeover {
				return nil
			}
			return s.goOn(ctx, p, before)
		}
		return nil
	}
}

// inMove is said of who was killed while a swapper was at work.
const inMove = " in the middle of a move"

// kill ends a process without a warning, and counts it; false: it had ended already.
func (s *soak) kill(p lab.OwnProcess, when string) bool {
	if err := p.Kill(); err != nil {
		s.note("  process %d (%s): %v", p.Pid, p.Role, err)
		return false
	}
	s.note("  killed process %d (%s, of target %d)%s", p.Pid, p.Role, p.Target, when)
	s.sum.count("kill " + p.Role + when)
	return true
}

// mustDo says what a run has to have counted for steps of these kinds: a soak in which nobody was killed shows nothing.
var mustDo = map[string]string{
	"kill-server": "kill server", "kill-keeper": "kill keeper", "kill-agent": "kill agent",
	"kill-swapper": "kill swapper" + inMove, "kill-server-in-swap": "kill server" + inMove,
	"kill-keeper-in-swap": "kill keeper" + inMove, "kill-command": "kill command" + inMove,
	"hang-server": "hung server", restartContainerd: "restart of containerd", "restart-agent": "restart of the agent",
	"graft": "grafts, ungrafts and changes of rules",
}

// notDone lists kinds of steps that came again and again and never did what they are for.
func (s *soak) notDone() (out []string) {
	for _, k := range kinds() {
		if what, n := mustDo[k.name], s.sum.of("step "+k.name); what != "" && n > 0 && s.sum.of(what) == 0 {
			out = append(out, fmt.Sprintf("%s (%d steps)", k.name, n))
		}
	}
	return out
}

// goOn sees that the grafts of a target whose server was killed are there afterwards, under their ids.
func (s *soak) goOn(ctx context.Context, p lab.OwnProcess, before []keeper.Graft) error {
	for _, g := range before {
		if g.Target.PID != p.Target {
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
		for range 4 * tries { // a command may need no swapper, or that may have ended when its time comes
			if killed, err := s.killInTheMiddle(ctx, st.draw, role); killed || err != nil {
				return err
			}
		}
		return nil
	}
}

func (s *soak) killInTheMiddle(ctx context.Context, r *rand.Rand, role string) (killed bool, err error) {
	what := []string{"graft", "graft", "recover", "rules"}[r.IntN(4)]
	after := time.Duration(r.IntN(40)) * time.Millisecond
	args := s.inject(r)
	if what != "graft" {
		g, t, ok, err := s.choose(ctx, r)
		switch {
		case err != nil:
			return false, err
		case ok && what == "recover":
			args = []string{"recover", g.ID}
		case ok:
			args = append([]string{"update", g.ID, "--keep"}, t.drawRules(r, g.Path)...)
		}
	}
	cmd, err := s.lab.FaultgraftCommand(ctx, args...)
	if err != nil {
		return false, err
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return false, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	killed = s.killBeside(ctx, role, cmd.Process, after, ended)
	select {
	case err = <-ended:
	case <-ctx.Done():
		return killed, fmt.Errorf("faultgraft %s does not end after the kill of its %s: %w", strings.Join(args, " "), role, ctx.Err())
	}
	s.note("  faultgraft %s: %v: %.300q", strings.Join(args, " "), err, said.String())
	if err == nil || killed {
		return killed, nil // what it could not do it has said; that the targets are well is seen next
	}
	if !expected.MatchString(said.String()) {
		return false, fmt.Errorf("faultgraft %s: %w: %s", strings.Join(args, " "), err, said.String())
	}
	s.sum.count("refused")
	return false, nil
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
		all, err := s.lab.Own(lab.RoleSwapper)
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
		case lab.RoleSwapper:
			return s.kill(at, inMove)
		case lab.RoleCommand:
			return s.kill(lab.OwnProcess{Process: typed, Role: lab.RoleCommand, Target: at.Target}, inMove)
		}
		others, err := s.lab.Own(role)
		if err != nil {
			s.find("%v", err)
			return false
		}
		for _, p := range others {
			if p.Target == at.Target {
				return s.kill(p, inMove)
			}
		}
		return false
	}
	return false
}

// hangServer stops a server for good, as one that is stuck, and takes its grafts off.
func (s *soak) hangServer(ctx context.Context, st step) error {
	for range tries {
		if hung, err := s.hang(ctx, st.draw); hung || err != nil {
			return err
		}
	}
	return nil
}

func (s *soak) hang(ctx context.Context, r *rand.Rand) (hung bool, err error) {
	g, _, ok, err := s.choose(ctx, r)
	if err != nil || !ok {
		return false, err
	}
	all, err := s.lab.Own(lab.RoleServer)
	if err != nil {
		return false, err
	}
	for _, p := range all {
		if p.Target != g.Target.PID {
			continue
		}
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			return false, nil // it has just ended
		}
		s.note("  stopped process %d (server of target %d)", p.Pid, p.Target)
		s.sum.count("hung server")
		_, err := s.tell(ctx, "recover", g.ID)
		err = s.allowed(err)
		if cerr := p.Signal(syscall.SIGCONT); cerr != nil && !errors.Is(cerr, os.ErrProcessDone) {
			return true, errors.Join(err, cerr)
		}
		return true, err
	}
	return false, nil
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
