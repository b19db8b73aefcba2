package plugin

import (
	"fmt"
	"slices"
	"strings"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// maxProblems is how many labels of one container are refused with words of their own. Each of
// them is in the log, in the events and in the audit log, which whoever labels a container must not
// be able to fill.
const maxProblems = 20

// maxKey is how much of a key is shown in these words, bytes: a key of Kubernetes has 317 at most.
const maxKey = 320

// store keeps the outcome of a reconcile of the task pid, reports what is new in
// it and arranges the next attempt.
func (r *reconciler) store(pid int, c Container, out outcome, problems []*policy.SyntaxError) {
	c.Problems = nil
	for i, p := range problems {
		if i == maxProblems {
			c.Problems = append(c.Problems, fmt.Sprintf("and %d more labels that are refused", len(problems)-i))
			break
		}
		short := *p
		if len(short.Source) > maxKey {
			short.Source = strings.ToValidUTF8(short.Source[:maxKey], "") + "…"
		}
		c.Problems = append(c.Problems, short.Error())
	}
	c.Problems = append(c.Problems, c.refusals...)
	var fresh []string
	r.mu.Lock()
	rec := r.records[c.Key]
	if rec == nil || rec.c.PID != pid {
		r.mu.Unlock()
		return // deleted, ended or restarted meanwhile: a run for that is on its way
	}
	for _, p := range c.Problems {
		if !slices.Contains(rec.c.Problems, p) {
			fresh = append(fresh, p)
		}
	}
	retry := false
	if out.retry {
		rec.attempts++
		if retry = rec.attempts < maxAttempts; !retry {
			out.reason += fmt.Sprintf(" (gave up after %d attempts)", rec.attempts)
		}
	}
	attempts := rec.attempts
	was, wasReason := rec.c.State, rec.c.Reason
	if was != out.state || wasReason != out.reason {
		rec.c.State, rec.c.Reason, rec.c.Since = out.state, out.reason, r.now()
	}
	rec.doing = ""
	rec.c.Required, rec.c.unmet, rec.c.refusals = c.Required, c.unmet, c.refusals
	if c.pausedMs > 0 {
		rec.c.PauseMs = c.pausedMs
	}
	rec.c.PID, rec.c.StartTime, rec.c.Protected, rec.c.Problems = c.PID, c.StartTime, c.Protected, c.Problems
	r.mu.Unlock()

	for _, p := range fresh {
		kind, what := "label", "label refused"
		if slices.Contains(c.refusals, p) {
			kind, what = "kernel", "kernel rule refused"
		}
		r.metrics.problems.WithLabelValues(kind).Inc()
		r.log.Warn(what, "container", c.String(), "name", c.DisplayName(), "problem", p)
		if kind == "label" { // of kernel rules it is on record already
			r.refused(&c, p)
		}
	}
	if was != out.state || wasReason != out.reason {
		switch out.state {
		case StateFailed:
			r.metrics.problems.WithLabelValues("graft").Inc()
			r.log.Error("a container is not as its labels ask", "container", c.String(), "name", c.DisplayName(), "reason", out.reason, "retry", retry)
		case StateRefused:
			if len(problems)+len(c.refusals) == 0 {
				r.metrics.problems.WithLabelValues("protected").Inc()
				r.log.Warn("refused a protected container", "container", c.String(), "name", c.DisplayName(), "reason", out.reason)
				r.refused(&c, out.reason)
			}
		}
	}
	if retry {
		r.queue.addAfter(c.Key, r.firstRetry<<(attempts-1))
	}
}

// refused puts it on record that a container does not get what its labels ask for.
func (r *reconciler) refused(c *Container, why string) {
	e := keeper.Event{Type: keeper.EventRefused, Target: c.ID, Name: c.DisplayName(), By: keeper.OriginLabel, Message: why}
	if err := keeper.WriteEvent(r.stateDir, e); err != nil {
		r.metrics.problems.WithLabelValues("audit").Inc()
		r.log.Error("a refusal is not on record", "container", c.String(), "err", err)
	}
}

// again looks a container up once more after a pause, as long as it is there.
func (r *reconciler) again(k Key, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.records[k]
	if rec == nil {
		return
	}
	rec.stale, rec.unseen = true, err
	if rec.attempts++; rec.attempts < maxAttempts {
		r.queue.addAfter(k, r.firstRetry<<(rec.attempts-1))
	}
}

// forget drops the memory of a container's task.
func (r *reconciler) forget(k Key) {
	if err := r.memory.forget(k); err != nil {
		r.metrics.problems.WithLabelValues("memory").Inc()
		r.log.Error("cannot save the agent's memory", "container", k.String(), "err", err)
	}
	atForget.Pass("saved")
}

func firstProblem(problems []*policy.SyntaxError) string { return problems[0].Error() }
