package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// summary counts what was done.
type summary struct {
	begin  time.Time
	length time.Duration

	mu     sync.Mutex
	counts map[string]int64
}

func (m *summary) count(what string) { m.add(what, 1) }

func (m *summary) add(what string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counts == nil {
		m.counts = map[string]int64{}
	}
	m.counts[what] += n
}

func (m *summary) set(what string, n int64) {
	m.add(what, 0)
	m.mu.Lock()
	m.counts[what] = n
	m.mu.Unlock()
}

// of returns how much was counted under that name.
func (m *summary) of(what string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts[what]
}

// sum returns how much was counted under names with that prefix.
func (m *summary) sum(prefix string) (n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for what, c := range m.counts {
		if strings.HasPrefix(what, prefix) {
			n += c
		}
	}
	return n
}

// short is for a line at each checkpoint.
func (m *summary) short(s *soak) string {
	return fmt.Sprintf("%d steps, %d moves, %d kills so far, %d findings", m.sum("step "), m.sum("grafts, "), m.sum("kill "), len(s.findings))
}

// text is what one would show to a colleague.
func (m *summary) text(s *soak) string {
	var b strings.Builder
	word := "ALL HELD"
	if !s.clean() {
		word = fmt.Sprintf("%d FINDINGS", len(s.findings))
	}
	fmt.Fprintf(&b, "\n== soak: %s in %s, seed %d\n", word, m.length.Round(time.Second), s.o.seed)
	row := func(what string, n any) { fmt.Fprintf(&b, "  %-52s %12v\n", what, n) }
	m.mu.Lock()
	names := slices.Sorted(maps.Keys(m.counts))
	for _, heading := range []struct{ title, prefix string }{{"Steps", "step "}, {"Killed", "kill "}} {
		fmt.Fprintf(&b, "%s\n", heading.title)
		for _, n := range names {
			if rest, ok := strings.CutPrefix(n, heading.prefix); ok {
				row(rest, m.counts[n])
			}
		}
	}
	fmt.Fprintln(&b, "Done")
	for _, n := range names {
		if !strings.HasPrefix(n, "step ") && !strings.HasPrefix(n, "kill ") {
			row(n, m.counts[n])
		}
	}
	m.mu.Unlock()
	for _, t := range s.targets {
		row("answered to clients of "+t.name, t.acknowledged())
	}
	fmt.Fprintln(&b, "Most that one process had (anonymous memory, descriptors)")
	for _, role := range []string{lab.RoleAgent, lab.RoleKeeper, lab.RoleServer, lab.RoleHolder, lab.RoleSwapper} {
		if u := s.sampler.most(role); u.descriptors > 0 {
			row(role, fmt.Sprintf("%d MiB, %d", u.memory>>10, u.descriptors))
		}
	}
	fmt.Fprintf(&b, "Most that one process grew, once it was %s old (anonymous memory)\n", warmUp)
	for _, role := range []string{lab.RoleAgent, lab.RoleKeeper, lab.RoleServer, lab.RoleHolder} {
		if g := s.sampler.growthOf(role); g.after > 0 {
			row(role, fmt.Sprintf("%d KiB in %s", g.memory, (g.after-warmUp).Round(time.Second)))
		}
	}
	if !s.clean() {
		fmt.Fprintln(&b, "Found")
		for _, f := range s.findings {
			fmt.Fprintf(&b, "  %s\n", f)
		}
		again := fmt.Sprintf("-seed %d", s.o.seed)
		if len(s.o.without) > 0 { // what is left out is of what a seed means
			again += " -without " + strings.Join(s.o.without, ",")
		}
		if len(s.o.only) > 0 {
			again += " -only " + strings.Join(s.o.only, ",")
		}
		fmt.Fprintf(&b, "Again, with the same steps: make soak HOURS=%.2g SOAK='%s'\n", s.o.length.Hours(), again)
	}
	return strings.TrimRight(b.String(), "\n")
}

// keepTraces copies what is gone with the lab to the folder of this run.
func (s *soak) keepTraces(ctx context.Context) {
	for what, args := range map[string][]string{
		"ps.json": {"ps", "-o", "json"}, "events.jsonl": {"events", "-o", "json"},
	} {
		out, err := s.lab.Faultgraft(ctx, args...)
		if err != nil {
			out += "\n" + err.Error()
		}
		if err := os.WriteFile(filepath.Join(s.dir, what), []byte(out), 0o644); err != nil {
			s.note("keep %s: %v", what, err)
		}
	}
	for _, t := range s.targets {
		out, err := s.lab.Run(ctx, "sh", "-c", `nerdctl logs "$0" 2>&1`, t.name)
		if err != nil {
			out += "\n" + err.Error()
		}
		if err := os.WriteFile(filepath.Join(s.dir, t.name+".log"), []byte(out), 0o644); err != nil {
			s.note("keep the log of %s: %v", t.name, err)
		}
	}
}

// keepLogs copies the logs of the keepers that there are, which go with them.
func (s *soak) keepLogs() {
	state, err := s.lab.Path("/run/faultgraft/keepers")
	if err != nil {
		s.note("keep the keepers' logs: %v", err)
		return
	}
	logs, _ := filepath.Glob(state + "/*/keeper.log") // the pattern is right
	for _, l := range logs {
		b, err := os.ReadFile(l)
		if err == nil {
			err = os.WriteFile(filepath.Join(s.dir, filepath.Base(filepath.Dir(l))+".log"), b, 0o644)
		}
		if err != nil {
			s.note("keep %s: %v", l, err)
		}
	}
}

// takeDown ends the agent, purges, removes the containers, and sees that nothing is left.
func (s *soak) takeDown(ctx context.Context) error {
	var errs []error
	if s.sampler != nil {
		s.sampler.end()
	}
	if s.agent != nil {
		errs = append(errs, s.agent.stop(ctx, syscall.SIGTERM))
	}
	if _, err := s.tell(ctx, "purge"); err != nil {
		errs = append(errs, err)
	}
	state, err := s.lab.Path("/run/faultgraft")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	if left, err := filepath.Glob(state + "/*"); err != nil || len(left) > 0 {
		errs = append(errs, fmt.Errorf("after purge the state directory has %v", left))
	}
	if left, err := s.lab.Own(""); err != nil || len(left) > 0 {
		errs = append(errs, fmt.Errorf("after purge there are processes: %v, %w", left, err))
	}
	for _, what := range []string{"postgres", "redis", "recorder"} {
		if _, err := s.lab.Nerdctl(ctx, "rm", "-f", containerName(what)); err != nil && !strings.Contains(err.Error(), "no such container") {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
