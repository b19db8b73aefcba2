package plugin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// outcome is what a reconcile came to.
type outcome struct {
	state  State
	reason string
	retry  bool
}

// reasonOver is why a container with rules has no fault any more.
const reasonOver = "its rules are over for this task: their ttl has ended or they were recovered"

// bring does the work for one container that examine has looked at.
func (r *reconciler) bring(ctx context.Context, c *Container, result policy.Result) outcome {
	labelled := hasRules(c.Labels)
	asks := labelled || len(result.Rules) > 0
	if err := r.endKernelTask(c); err != nil {
		return outcome{state: StateFailed, reason: err.Error(), retry: true}
	}
	if c.PID == 0 {
		r.forget(c.Key)
		switch {
		case c.ended:
			return outcome{StateNone, "its task has ended", false}
		case result.Disabled:
			return outcome{StateExcluded, "enable" + domain + "=false", false}
		case labelled && c.Protected != "":
			return outcome{StateRefused, c.Protected, false}
		case len(result.Rules) > 0:
			return outcome{StatePending, "waits for its task", false}
		case len(result.Problems) > 0:
			return outcome{StateRefused, firstProblem(result.Problems), false}
		}
		return outcome{StateNone, "no task", false}
	}
	if c.Protected != "" {
		if err := r.endKernelFaults(c, c.Protected); err != nil {
			return outcome{StateFailed, err.Error(), true}
		}
		if labelled && !result.Disabled {
			return outcome{StateRefused, c.Protected, false}
		}
		return outcome{StateNone, c.Protected, false}
	}
	// Without rules now or before there is nothing that the agent could have put there.
	if !asks && len(r.memory.rules(c.Key, c.PID, c.StartTime)) == 0 && c.State == StateNone {
		return outcome{state: StateNone}
	}
	grafts, err := r.ownGrafts(ctx, c, result.Disabled)
	if err != nil {
		return outcome{StateFailed, err.Error(), true}
	}
	if result.Disabled {
		// It beats everything, also what a person asked for.
		if err := errors.Join(r.recoverAll(ctx, c, grafts), r.endKernelFaults(c, endExcluded)); err != nil {
			return outcome{StateFailed, err.Error(), true}
		}
		return outcome{StateExcluded, "enable" + domain + "=false", false}
	}
	if why := r.stopped(); why != "" && asks {
		return outcome{StatePending, why, false}
	}
	if err := r.takePlace(c, result.Rules, grafts); err != nil {
		return outcome{StateRefused, err.Error(), false}
	}
	return r.carryOut(ctx, c, result, grafts)
}

// ownGrafts gives the grafts that are on a task. A task to which nothing was
// applied has none, and its start does not wait for the keepers of others.
func (r *reconciler) ownGrafts(ctx context.Context, c *Container, disabled bool) ([]keeper.Graft, error) {
	applied := r.memory.rules(c.Key, c.PID, c.StartTime)
	grafted := slices.ContainsFunc(applied, func(a appliedRule) bool { return !a.Kernel })
	first := !grafted && c.State != StateFailed && c.State != StateActive
	if first && !disabled && !r.blind {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	all, err := r.grafter.List(ctx)
	own := graftsOf(all, c, applied)
	if err != nil && len(own) == 0 { // a target has one keeper: if that answered, others do not matter here
		return nil, fmt.Errorf("list the grafts of this node: %w", err)
	}
	return own, nil
}

// carryOut brings a container that has a task to what its labels ask for.
func (r *reconciler) carryOut(ctx context.Context, c *Container, result policy.Result, grafts []keeper.Graft) outcome {
	onFiles, inKernel := splitRules(result.Rules)
	k := r.carryOutKernel(ctx, c, inKernel)
	result.Rules = onFiles
	return k.join(r.carryOutGrafts(ctx, c, result, grafts), c)
}

// carryOutGrafts takes off what is not wanted any more, changes what is wanted
// otherwise, and makes what is missing.
func (r *reconciler) carryOutGrafts(ctx context.Context, c *Container, result policy.Result, grafts []keeper.Graft) outcome {
	p := makePlan(c, result.Rules, grafts, r.memory.rules(c.Key, c.PID, c.StartTime), r.now())
	if p.busy != nil {
		r.queue.addAfter(c.Key, r.firstRetry)
		return outcome{StatePending, fmt.Sprintf("graft %s over %s is %s", p.busy.ID, p.busy.Path, p.busy.State), false}
	}
	if err := r.recoverAll(ctx, c, p.recover); err != nil {
		return outcome{StateFailed, err.Error(), true}
	}
	applied := p.applied
	for _, a := range applied {
		if a.Graft != "" && slices.ContainsFunc(p.keep, func(g keeper.Graft) bool { return g.ID == a.Graft }) {
			c.inPlace = append(c.inPlace, a.key())
		} else {
			c.over = append(c.over, a.key())
		}
	}
	var failures []string
	// do has rules put into force. They are remembered before it is done: if the agent
	// dies in between, their time runs from here.
	do := func(path string, rules []policy.Rule, graft func() (keeper.Graft, error)) {
		before := applied
		applied = append(slices.Clone(applied), r.remembered(c, rules)...)
		if err := r.memory.set(c.Key, c.PID, c.StartTime, applied); err != nil {
			failures = append(failures, fmt.Sprintf("%s: not grafted: %v", path, err))
			applied = before
			return
		}
		atApply.Pass("remembered")
		r.at(c, StateGrafting)
		g, err := graft()
		if err != nil {
			failures = append(failures, fmt.Sprintf("%s: %v", path, err))
			applied = before
			return
		}
		for i := len(before); i < len(applied); i++ {
			applied[i].Done, applied[i].Graft = true, g.ID
			c.inPlace = append(c.inPlace, applied[i].key())
		}
		c.pausedMs += g.PauseMs
		p.keep = append(p.keep, g)
	}
	for _, u := range p.update {
		do(u.graft.Path, u.rules, func() (keeper.Graft, error) { return r.update(ctx, c, u) })
	}
	for _, req := range p.inject {
		for i := range req.Rules {
			req.Rules[i].EnsureSeed(rand.Uint64)
		}
		do(req.Path, req.Rules, func() (keeper.Graft, error) { return r.inject(ctx, c, req) })
	}
	if err := r.memory.set(c.Key, c.PID, c.StartTime, applied); err != nil {
		failures = append(failures, err.Error())
	}
	atApply.Pass("saved")
	switch {
	case len(failures) > 0:
		return outcome{StateFailed, strings.Join(failures, "; "), true}
	case len(p.keep) > 0:
		for _, g := range p.keep {
			if g.State == keeper.StateFailed {
				return outcome{StateFailed, fmt.Sprintf("graft %s over %s: %s", g.ID, g.Path, g.Reason), false}
			}
		}
		r.queue.addAfter(c.Key, r.untilExpiry(p.keep))
		return outcome{state: StateActive}
	case len(result.Problems) > 0:
		return outcome{StateRefused, firstProblem(result.Problems), false}
	case p.ended > 0:
		return outcome{StateNone, reasonOver, false}
	}
	return outcome{state: StateNone}
}

// untilExpiry is how long it is until the next rule of the grafts has ended and is taken off.
func (r *reconciler) untilExpiry(grafts []keeper.Graft) time.Duration {
	next := 24 * time.Hour
	for _, g := range grafts {
		for _, rule := range g.Rules {
			if left := rule.Expires.Sub(r.now()); !rule.Expired && left < next {
				next = left
			}
		}
	}
	return max(next, 0) + 2*time.Second
}

// remembered gives the entries of rules about to be injected; a rule that was applied before keeps its clock.
func (r *reconciler) remembered(c *Container, rules []policy.Rule) []appliedRule {
	known := r.memory.rules(c.Key, c.PID, c.StartTime)
	out := make([]appliedRule, 0, len(rules))
	for _, rule := range rules {
		a := applyRule(rule, r.now())
		for _, k := range known {
			if k.key() == a.key() {
				a.Since = k.Since
			}
		}
		out = append(out, a)
	}
	return out
}

func (r *reconciler) inject(ctx context.Context, c *Container, req keeper.Request) (keeper.Graft, error) {
	gctx, cancel := context.WithTimeout(ctx, keeper.Patience)
	defer cancel()
	g, err := r.grafter.Inject(gctx, c.Target(), req)
	atApply.Pass("grafted")
	if err != nil {
		r.metrics.grafts.WithLabelValues("failed").Inc()
		r.log.Error("graft failed", "container", c.String(), "name", c.DisplayName(), "path", req.Path, "rules", describe(req), "err", err)
		return g, err
	}
	r.metrics.grafts.WithLabelValues("made").Inc()
	r.metrics.paused("graft", g)
	r.log.Info("grafted", "container", c.String(), "name", c.DisplayName(), "pid", c.PID, "path", req.Path, "graft", g.ID, "origin", req.Origin, "rules", describe(req), "pauseMs", g.PauseMs, "longestPauseMs", g.LongestPauseMs)
	return g, nil
}

// update changes the rules of a graft in place. Those that stay are the keeper's to
// know: it has their seeds and their clocks.
func (r *reconciler) update(ctx context.Context, c *Container, u ruleChange) (keeper.Graft, error) {
	gctx, cancel := context.WithTimeout(ctx, keeper.Patience)
	defer cancel()
	g, err := r.grafter.Update(gctx, u.graft.ID, keeper.Change{Rules: u.rules, Origin: c.originOf(u.rules[0])})
	atApply.Pass("changed")
	if err != nil {
		r.metrics.grafts.WithLabelValues("failed").Inc()
		r.log.Error("rule change failed", "container", c.String(), "name", c.DisplayName(), "path", u.graft.Path, "graft", u.graft.ID, "err", err)
		return g, err
	}
	r.metrics.grafts.WithLabelValues("changed").Inc()
	c.count(slices.DeleteFunc(slices.Clone(u.graft.Rules), func(was keeper.RuleStatus) bool { // as it was last seen
		return slices.ContainsFunc(g.Rules, func(now keeper.RuleStatus) bool { return keyOfStatus(now) == keyOfStatus(was) })
	}))
	r.metrics.paused("change", g)
	r.log.Info("rules changed", "container", c.String(), "name", c.DisplayName(), "path", u.graft.Path, "graft", g.ID, "new", g.Added, "pauseMs", g.PauseMs, "longestPauseMs", g.LongestPauseMs)
	return g, nil
}

func (r *reconciler) recoverAll(ctx context.Context, c *Container, grafts []keeper.Graft) error {
	var errs []error
	for _, g := range grafts {
		r.at(c, StateReverting)
		gctx, cancel := context.WithTimeout(ctx, keeper.Patience)
		off, err := r.grafter.Ungraft(gctx, g.ID)
		atApply.Pass("recovered")
		cancel()
		if err != nil && !errors.Is(err, keeper.ErrNoGraft) {
			errs = append(errs, fmt.Errorf("recover %s (%s): %w", g.ID, g.Path, err))
			continue
		}
		if err == nil {
			r.metrics.paused("ungraft", off)
			c.pausedMs += off.PauseMs
			c.count(off.Rules)
		}
		r.metrics.grafts.WithLabelValues("recovered").Inc()
		r.log.Info("recovered", "container", c.String(), "name", c.DisplayName(), "path", g.Path, "graft", g.ID)
	}
	return errors.Join(errs...)
}
