package plugin

import (
	"errors"
	"fmt"
	"strings"
)

// ErrRequired: a container must not start, because a policy requires faults that are not in place.
var ErrRequired = errors.New("a policy requires faults before it starts, and they are not in place")

// mustNotStart says why a container must not start now; nil: it may, as it is
// for every container that no policy with `required: true` has chosen.
func mustNotStart(c *Container) error {
	if !c.Required || c.State == StateActive && len(c.unmet) == 0 && len(c.refusals) == 0 {
		return nil
	}
	why := append([]string{c.Reason}, c.unmet...)
	why = append(why, c.refusals...)
	text := strings.TrimPrefix(strings.Join(why, "; "), "; ")
	if text == "" {
		text = "state " + string(c.State)
	}
	return fmt.Errorf("faultgraft: container %s (%s): %w: %s. Delete or pause the policy to start it without them (faultgraft ps, faultgraft pause NAME)", c.DisplayName(), c.Key, ErrRequired, text)
}

// startable is mustNotStart of a container as it is known now; late: its faults were not waited for any longer.
func (r *reconciler) startable(k Key, late bool) error {
	r.mu.Lock()
	rec := r.records[k]
	if rec == nil {
		r.mu.Unlock()
		return nil
	}
	c := rec.c
	r.mu.Unlock()
	if late && c.Required {
		c.State, c.Reason = StatePending, strings.TrimPrefix(c.Reason+"; they were not there in time", "; ")
	}
	return mustNotStart(&c)
}
