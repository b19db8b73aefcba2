package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/lab"
)

// May be told when a step meets what an earlier one, or the clock, has left: a
// graft that is over, a path that has one, a server that was killed just now.
var expected = regexp.MustCompile(strings.Join([]string{
	`no graft`, `no such graft`, `already grafted`, `is being taken off`, `inside|above|over a path`, `lies there already`,
	`the server has just died`, `node is stopped`, `has ended`, `its (last )?rules? (is|are) over`,
	`its rules come from the node.s policies`, `this keeper is ending`,
}, "|"))

// tell runs faultgraft and notes what came.
func (s *soak) tell(ctx context.Context, args ...string) (string, error) {
	start := time.Now()
	out, err := s.lab.Faultgraft(ctx, args...)
	took := time.Since(start).Round(time.Millisecond)
	if err != nil {
		s.note("  faultgraft %s: %s: %v", strings.Join(args, " "), took, reason(err))
		return out, err
	}
	s.note("  faultgraft %s: %s", strings.Join(args, " "), took)
	return out, nil
}

// reason is the first line of what a command said.
func reason(err error) string {
	var c *lab.CommandError
	if !errors.As(err, &c) {
		return err.Error()
	}
	return strings.TrimSpace(c.Stderr)
}

// allowed passes errors on that a step may not meet.
func (s *soak) allowed(err error) error {
	if err == nil {
		return nil
	}
	why := reason(err)
	if !expected.MatchString(why) {
		return err
	}
	s.sum.count("refused")
	return nil
}

func (s *soak) pick(r *rand.Rand) *target { return s.targets[r.IntN(len(s.targets))] }

// inject is the command line that grafts what is drawn.
func (s *soak) inject(r *rand.Rand) []string {
	t := s.pick(r)
	path := t.paths[r.IntN(len(t.paths))]
	return append([]string{"inject", t.name, "--path", path, "--deadline", "1m", "-o", "json"}, t.drawRules(r, path)...)
}

func (s *soak) graft(ctx context.Context, st step) error { return s.graftDrawn(ctx, st.draw) }

func (s *soak) graftDrawn(ctx context.Context, r *rand.Rand) error {
	out, err := s.tell(ctx, s.inject(r)...)
	if err != nil {
		return s.allowed(err)
	}
	_, err = s.took(out)
	return err
}

// took counts what a graft, an ungraft or a change of rules did, and returns the graft's id.
func (s *soak) took(out string) (string, error) {
	var all []keeper.Graft
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) == 0 || all[0].Report == nil {
		return "", fmt.Errorf("an answer without a report: %w: %.200q", err, out)
	}
	g := all[0]
	s.note("  %s over %s of %s: %d objects moved, %d left, %.1f ms", g.ID, g.Path, g.Target.Name, len(g.Report.Swapped), len(g.Report.Skipped), g.PauseMs)
	for _, o := range g.Report.Skipped {
		s.note("    left %s: %s", &o.Object, o.Reason)
	}
	s.sum.count("grafts, ungrafts and changes of rules")
	s.sum.add("objects moved", int64(len(g.Report.Swapped)))
	return g.ID, nil
}

// active lists the grafts that can be changed.
func (s *soak) active(ctx context.Context) ([]keeper.Graft, error) {
	all, err := s.grafts(ctx)
	var out []keeper.Graft
	for _, g := range all {
		if g.State == keeper.StateActive && strings.HasPrefix(g.ID, "g-") {
			out = append(out, g)
		}
	}
	return out, err
}

func (s *soak) grafts(ctx context.Context) ([]keeper.Graft, error) {
	out, err := s.lab.Faultgraft(ctx, "ps", "-o", "json")
	if err != nil {
		return nil, err
	}
	var all []keeper.Graft
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("faultgraft ps -o json: %w", err)
	}
	return all, nil
}

// choose takes one of the grafts, or makes one; false where that was refused.
func (s *soak) choose(ctx context.Context, r *rand.Rand) (g keeper.Graft, t *target, ok bool, err error) {
	at := r.IntN(1 << 20)
	all, err := s.active(ctx)
	if err == nil && len(all) == 0 {
		if err = s.graftDrawn(ctx, r); err == nil {
			all, err = s.active(ctx)
		}
	}
	if err != nil || len(all) == 0 {
		return g, nil, false, err
	}
	g = all[at%len(all)]
	for _, t := range s.targets {
		if t.name == g.Target.Name {
			return g, t, true, nil
		}
	}
	return g, nil, false, fmt.Errorf("a graft on a container that is not of the soak: %s", g.Target.Name)
}

func (s *soak) changeRules(ctx context.Context, st step) error {
	keep := st.draw.IntN(2) == 0
	g, t, ok, err := s.choose(ctx, st.draw)
	if err != nil || !ok {
		return err
	}
	args := []string{"update", g.ID, "--deadline", "1m", "-o", "json"}
	if keep && len(g.Rules) < 8 {
		args = append(args, "--keep")
	}
	_, err = s.tell(ctx, append(args, t.drawRules(st.draw, g.Path)...)...)
	if err == nil {
		s.sum.count("grafts, ungrafts and changes of rules")
	}
	return s.allowed(err)
}

func (s *soak) recover(ctx context.Context, st step) error {
	g, _, ok, err := s.choose(ctx, st.draw)
	if err != nil || !ok {
		return err
	}
	out, err := s.tell(ctx, "recover", g.ID, "-o", "json")
	if err != nil {
		return s.allowed(err)
	}
	_, err = s.took(out)
	return err
}

func (s *soak) releaseHung(ctx context.Context, st step) error {
	g, _, ok, err := s.choose(ctx, st.draw)
	if err != nil || !ok {
		return err
	}
	_, err = s.tell(ctx, "release", g.ID)
	return s.allowed(err)
}

const policyText = `apiVersion: faultgraft.io/v1alpha1
kind: FaultPolicy
metadata: {name: %s}
spec:
  selector: {matchLabels: {soak: "yes"}}
  mode: %s
  seed: %d
  timing: {ttl: %s}
  faults:
  - {name: slow, io: {path: /data/**, ops: [fsync, read], latency: 3ms}, trigger: {p: 50%%}}
`

// policy applies a policy over the containers, pauses, resumes or deletes one.
func (s *soak) policy(ctx context.Context, st step) error {
	r := st.draw
	name := fmt.Sprintf("soak-%d", r.IntN(3))
	verb := []string{"apply", "apply", "apply", "pause", "resume", "delete"}[r.IntN(6)]
	if verb != "apply" {
		_, err := s.tell(ctx, verb, name)
		if err != nil && regexp.MustCompile(`no such policy|not paused|is paused|already|is over|ended`).MatchString(reason(err)) {
			return nil
		}
		return err
	}
	text := fmt.Sprintf(policyText, name, []string{"all", "one", "random-max-percent\n  value: 70"}[r.IntN(3)], r.IntN(100), []string{"5s", "20s", "1m"}[r.IntN(3)])
	file := filepath.Join(s.dir, name+".yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	_, err := s.tell(ctx, "apply", "-f", file)
	return s.allowed(err)
}

// stopAll ends all faults of the node, sees that it is so, and that none can begin.
func (s *soak) stopAll(ctx context.Context, st step) error {
	if _, err := s.tell(ctx, "stop", "--all", "--reason", "soak"); err != nil {
		// of a machine that is busy with other things: it says so and does it by itself
		if !strings.Contains(reason(err), "the agent did not answer; grafts were taken off without it") {
			return err
		}
		s.sum.count("stops of all that did not wait for a slow agent")
	}
	if err := s.untilNone(ctx, "stop --all"); err != nil {
		return err
	}
	if _, err := s.tell(ctx, s.inject(st.draw)...); err == nil || !strings.Contains(reason(err), "soak") {
		return fmt.Errorf("inject on a node that is stopped: %v", err)
	}
	_, err := s.tell(ctx, "release")
	return err
}

// untilNone waits until no graft is on.
func (s *soak) untilNone(ctx context.Context, after string) error {
	var left []keeper.Graft
	for end := time.Now().Add(patience); time.Now().Before(end); pause(ctx, 100*time.Millisecond) {
		all, err := s.grafts(ctx)
		if err != nil {
			return err
		}
		left = left[:0]
		for _, g := range all {
			if strings.HasPrefix(g.ID, "g-") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return nil
		}
	}
	return fmt.Errorf("grafts are left %s after %s: %+v", patience, after, left)
}
