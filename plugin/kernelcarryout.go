package plugin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// kernelOutcome is what the kernel rules of one container came to.
type kernelOutcome struct {
	active int
	// ended counts the rules that are over for this task.
	ended int
	// failures may go away by trying again; refusals do not.
	failures, refusals []string
}

// join puts this and what the grafts of the container came to into one outcome.
func (k kernelOutcome) join(grafts outcome, c *Container) outcome {
	c.refusals = k.refusals
	switch {
	case len(k.failures) > 0:
		reason := strings.Join(k.failures, "; ")
		if grafts.state == StateFailed {
			reason = grafts.reason + "; " + reason
		}
		return outcome{StateFailed, reason, true}
	case grafts.state != StateNone && grafts.state != StateRefused:
		return grafts
	case k.active > 0:
		return outcome{state: StateActive}
	case grafts.state == StateRefused:
		return grafts
	case len(k.refusals) > 0:
		return outcome{StateRefused, strings.Join(k.refusals, "; "), false}
	case k.ended > 0:
		return outcome{StateNone, reasonOver, false}
	}
	return grafts
}

// splitRules tells io rules from kernel rules.
func splitRules(rules []policy.Rule) (io, kern []policy.Rule) {
	for _, r := range rules {
		if r.Kernel != nil {
			kern = append(kern, r)
		} else {
			io = append(io, r)
		}
	}
	return io, kern
}

// kernelPlan is what the kernel faults of one task must be brought to.
type kernelPlan struct {
	disarm []*liveFault
	keep   []*liveFault
	arm    []policy.Rule
	// over were in force for this task already and are not to be again.
	over []appliedRule
}

// makeKernelPlan compares what a container's labels ask for with the faults that
// are in force. Unlike a graft, a fault does not outlive the agent: one that was
// armed and is neither live nor over was lost with an earlier agent.
func makeKernelPlan(rules []policy.Rule, live []*liveFault, cgroup kernel.Cgroup, applied []appliedRule, now time.Time) kernelPlan {
	var p kernelPlan
	byRule := map[ruleKey]*liveFault{}
	for _, f := range live {
		k := keyOf(f.rule)
		if f.cgroup.ID != cgroup.ID || byRule[k] != nil {
			p.disarm = append(p.disarm, f) // of an earlier task
			continue
		}
		byRule[k] = f
	}
	for _, r := range rules {
		k := keyOf(r)
		if f := byRule[k]; f != nil {
			p.keep = append(p.keep, f)
			delete(byRule, k)
			continue
		}
		i := slices.IndexFunc(applied, func(a appliedRule) bool { return a.Kernel && a.key() == k })
		if i >= 0 && (applied[i].Over || r.Policy == "" && now.Sub(applied[i].Since) >= r.Trigger.TTL) {
			a := applied[i]
			a.Over = true
			p.over = append(p.over, a)
			continue
		}
		p.arm = append(p.arm, r)
	}
	for _, f := range live {
		if byRule[keyOf(f.rule)] == f {
			p.disarm = append(p.disarm, f)
		}
	}
	return p
}

// carryOutKernel brings the kernel faults of a container with a task to what its labels ask for.
func (r *reconciler) carryOutKernel(ctx context.Context, c *Container, rules []policy.Rule) (out kernelOutcome) {
	live := r.faults.where(func(f *liveFault) bool { return f.of(c.Key, c.PID, c.StartTime) && f.origin != keeper.OriginUser })
	applied := r.memory.rules(c.Key, c.PID, c.StartTime)
	if len(rules) == 0 && len(live) == 0 && !slices.ContainsFunc(applied, func(a appliedRule) bool { return a.Kernel }) {
		return out
	}
	var cgroup kernel.Cgroup
	var refused error
	if len(rules) > 0 {
		cgroup, refused = r.faults.cgroup(c.PID)
	}
	p := makeKernelPlan(rules, live, cgroup, applied, r.now())
	if err := r.faults.disarmAll(p.disarm, endLabels); err != nil {
		out.failures = append(out.failures, err.Error())
	}
	atKernelApply.Pass("disarmed")
	out.active, out.ended = len(p.keep), len(p.over)
	remember := slices.Clone(p.over)
	for _, a := range p.over {
		c.over = append(c.over, a.key())
	}
	for _, f := range p.keep {
		c.inPlace = append(c.inPlace, keyOf(f.rule))
		r.faults.settle(f, c.Target())
		a, _ := r.appliedKernel(f.rule, applied, f.since)
		remember = append(remember, a)
	}
	for _, rule := range p.arm {
		if refused != nil {
			out.refuse(rule, refused)
			continue
		}
		a, known := r.appliedKernel(rule, applied, r.now())
		// Remembered before it is done: if the agent dies in between, the rule's time runs from here.
		if err := r.memory.setKernel(c.Key, c.PID, c.StartTime, append(slices.Clone(remember), a)); err != nil {
			out.failures = append(out.failures, fmt.Sprintf("rule %s: not armed: %v", rule.FullName(), err))
			continue
		}
		atKernelApply.Pass("remembered")
		age := r.now().Sub(a.Since)
		if rule.Policy != "" {
			age = 0 // what is left of it is what the policy asks for
		}
		if err := r.armFor(ctx, c, cgroup, rule, age); err != nil {
			if r.cannot(rule, err) {
				out.refusals = append(out.refusals, err.Error())
			} else {
				out.failures = append(out.failures, err.Error())
			}
			if known { // and its clock goes on
				remember = append(remember, a)
			}
			continue
		}
		atKernelApply.Pass("armed")
		out.active++
		c.inPlace = append(c.inPlace, keyOf(rule))
		remember = append(remember, a)
	}
	if err := r.memory.setKernel(c.Key, c.PID, c.StartTime, remember); err != nil {
		out.failures = append(out.failures, err.Error())
	}
	atKernelApply.Pass("saved")
	return out
}

func (o *kernelOutcome) refuse(rule policy.Rule, err error) {
	o.refusals = append(o.refusals, fmt.Sprintf("rule %s: %v", rule.FullName(), err))
}

// appliedKernel is the memory of a rule; one that was applied before keeps its clock.
func (r *reconciler) appliedKernel(rule policy.Rule, applied []appliedRule, since time.Time) (a appliedRule, known bool) {
	for _, a := range applied {
		if a.Kernel && a.key() == keyOf(rule) {
			return a, true
		}
	}
	return applyRule(rule, since), false
}

func (r *reconciler) armFor(ctx context.Context, c *Container, cgroup kernel.Cgroup, rule policy.Rule, age time.Duration) error {
	rule.EnsureSeed(rand.Uint64)
	ctx, cancel := context.WithTimeout(ctx, armTimeout)
	defer cancel()
	_, err := r.faults.arm(ctx, armSpec{target: c.Target(), cgroup: cgroup, rule: rule, age: max(age, 0), origin: c.originOf(rule)})
	if err != nil {
		r.metrics.kernelFaults.WithLabelValues("failed").Inc()
		r.log.Error("kernel fault not armed", "container", c.String(), "name", c.DisplayName(), "rule", rule.FullName(), "err", err)
		r.faults.events.refused(c.Target(), c.originOf(rule), "", rule, err)
		return err
	}
	r.metrics.kernelFaults.WithLabelValues("armed").Inc()
	return nil
}

// cannot reports whether a rule that was not armed can never be here: then it is
// refused, and not tried again.
func (r *reconciler) cannot(rule policy.Rule, err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	return errors.Is(err, kernel.ErrUnsupported) || errors.Is(err, kernel.ErrNoCgroup2) || r.faults.check(rule) != nil
}

// endKernelTask ends the faults of a container's earlier tasks. Without a task only
// those stay that were armed for the next one, before it is there.
func (r *reconciler) endKernelTask(c *Container) error {
	old := r.faults.where(func(f *liveFault) bool {
		t := f.target
		return t.Namespace == c.Namespace && t.ID == c.ID && t.PID != 0 && (t.PID != c.PID || c.StartTime != 0 && t.StartTime != c.StartTime)
	})
	return r.faults.disarmAll(old, endTask)
}

// endKernelFaults ends all faults of a container, whoever asked for them.
func (r *reconciler) endKernelFaults(c *Container, why string) error {
	return r.faults.disarmAll(r.faults.where(func(f *liveFault) bool { return f.of(c.Key, c.PID, c.StartTime) }), why)
}

// kernelFaultEnded takes note of a fault that ended by itself or that a person
// ended: it is over for this task.
func (r *reconciler) kernelFaultEnded(f *liveFault, why string) {
	r.metrics.kernelFaults.WithLabelValues("ended").Inc()
	if f.origin == keeper.OriginUser || why != endAsked && why != endExpired {
		return
	}
	k := Key{f.target.Namespace, f.target.ID}
	if err := r.memory.over(k, f.target.PID, f.target.StartTime, keyOf(f.rule)); err != nil {
		r.metrics.problems.WithLabelValues("memory").Inc()
		r.log.Error("cannot save the agent's memory", "container", k.String(), "err", err)
	}
	r.queue.add(k, false)
}
