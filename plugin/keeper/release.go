package keeper

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Release asks to let go of operations that a rule with the action hang holds.
type Release struct {
	// Rule is the full name of the rule; empty means all of the graft.
	Rule string `json:"rule,omitempty"`
}

// Released is how many operations went on.
type Released struct {
	Operations int `json:"operations"`
}

// Release lets hanging operations of a graft go on, as if there had been no rule.
// The rule stays: what comes later hangs again.
func (c *Client) Release(ctx context.Context, id, rule string) (Released, error) {
	var out Released
	err := c.ask(ctx, id, http.MethodPost, "/release", Release{Rule: rule}, &out)
	return out, err
}

// release does not wait for a swap that is at work: it may be what lets that go on.
func (k *keeper) release(id string, r Release) (Released, error) {
	k.mu.Lock()
	h := k.grafts[id]
	var known []string
	if h != nil {
		for _, s := range h.status {
			known = append(known, s.FullName())
		}
	}
	k.mu.Unlock()
	if h == nil {
		return Released{}, fmt.Errorf("%w: %s", errNoGraft, id)
	}
	if r.Rule != "" && !slices.Contains(known, r.Rule) {
		return Released{}, fmt.Errorf("graft %s has no rule %q; its rules are %s", id, r.Rule, strings.Join(known, ", "))
	}
	server, err := k.serving()
	if err != nil {
		return Released{}, fmt.Errorf("graft %s: no rule holds anything now: %w", id, err)
	}
	if k.without(h, server) {
		return Released{}, fmt.Errorf("graft %s: its server has died, and the layer is being taken off", id)
	}
	var n int
	if err := server.call(callRelease, releaseCall{Layer: id, Rule: r.Rule}, &n); err != nil {
		return Released{}, fmt.Errorf("release what hangs under graft %s: %w", id, err)
	}
	if n > 0 {
		k.log(Event{Type: EventRules, Graft: id, Path: h.Path, Rule: r.Rule, Message: fmt.Sprintf("%d hanging operations were released", n)})
	}
	return Released{Operations: n}, nil
}
