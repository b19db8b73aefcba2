package keeper

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/policy"
)

// Change asks for other rules of a graft. The layer stays where it is.
type Change struct {
	// Rules are what the graft has afterwards. One that the graft has already stays as it
	// is, with its counters, its seed and its clock: a live rule of the same text and run of its
	// policy, and, but in a graft that a person made, of the same name.
	Rules []policy.Rule `json:"rules,omitempty"`
	// Keep has the rules of now stay beside these, but for those whose full names Drop has.
	Keep bool     `json:"keep,omitempty"`
	Drop []string `json:"drop,omitempty"`
	// Limits are for files that have to be swapped again.
	graft.Limits
	// Origin says who asked.
	Origin Origin `json:"origin,omitempty"`
}

// activeRule is a rule of a graft and when it became active.
type activeRule struct {
	policy.Rule
	start time.Time
}

func (r activeRule) over(now time.Time) bool { return !now.Before(r.start.Add(r.Trigger.TTL)) }

// activate is for the rules of a new graft.
func activate(rules []policy.Rule, start time.Time) []activeRule {
	out := make([]activeRule, 0, len(rules))
	for _, r := range rules {
		out = append(out, activeRule{r, start})
	}
	return out
}

func plain(rules []activeRule) []policy.Rule {
	out := make([]policy.Rule, 0, len(rules))
	for _, r := range rules {
		out = append(out, r.Rule)
	}
	return out
}

// lastEnd is when the last of the rules is over.
func lastEnd(rules []activeRule) time.Time {
	var end time.Time
	for _, r := range rules {
		if e := r.start.Add(r.Trigger.TTL); e.After(end) {
			end = e
		}
	}
	return end
}

// apply gives the rules that a graft has after the change, of those that it has
// now. byText: rules are known by their text alone. added are the full names of the new ones.
func (c Change) apply(have []activeRule, byText bool, now time.Time) (next []activeRule, added []string, err error) {
	for _, name := range c.Drop {
		if !slices.ContainsFunc(have, func(r activeRule) bool { return r.FullName() == name }) {
			return nil, nil, fmt.Errorf("it has no rule %q; its rules are %s", name, names(have))
		}
	}
	left := slices.DeleteFunc(slices.Clone(have), func(r activeRule) bool {
		return r.over(now) || slices.Contains(c.Drop, r.FullName())
	})
	if c.Keep {
		next, left = left, nil
	}
	taken := map[string]bool{}
	for _, r := range next {
		taken[r.FullName()] = true
	}
	if byText { // a label or a policy whose text has changed keeps its name
		for _, r := range left {
			taken[r.FullName()] = true
		}
	}
	for _, r := range c.Rules {
		same := func(o activeRule) bool {
			return o.Text == r.Text && o.Policy == r.Policy && o.Run == r.Run && (byText || o.Name == r.Name)
		}
		if i := slices.IndexFunc(left, same); i >= 0 {
			next = append(next, left[i])
			left = slices.Delete(left, i, i+1)
			continue
		}
		if !byText && slices.ContainsFunc(next, same) {
			continue // a label is one rule, however often it is asked for
		}
		base := r.Name
		for n := 2; taken[r.FullName()]; n++ {
			r.Name = fmt.Sprintf("%s-%d", base, n)
		}
		taken[r.FullName()] = true
		r.EnsureSeed(rand.Uint64)
		next, added = append(next, activeRule{r, now}), append(added, r.FullName())
	}
	if len(next) == 0 {
		return nil, nil, errors.New("no rule would be left; recover takes a graft off")
	}
	return next, added, nil
}

func names(rules []activeRule) string {
	out := make([]string, 0, len(rules))
	for _, r := range rules {
		out = append(out, r.FullName())
	}
	return strings.Join(out, ", ")
}

// change gives a graft other rules.
func (k *keeper) change(id string, c Change, who string) (Graft, error) {
	k.swap.Lock()
	defer k.swap.Unlock()
	k.mu.Lock()
	h := k.grafts[id]
	if h == nil {
		k.mu.Unlock()
		return Graft{}, fmt.Errorf("%w: %s", errNoGraft, id)
	}
	state := h.State
	k.mu.Unlock()
	if c.Origin == OriginUser && h.Origin != OriginUser {
		// The agent would bring it back to what they say.
		return Graft{}, fmt.Errorf("graft %s: its rules come from %s: change those, or recover it and inject your own", id, h.Origin.source())
	}
	if state != StateActive {
		return Graft{}, fmt.Errorf("graft %s is %s: its rules cannot be changed", id, state)
	}
	return k.changeRules(h, c, who)
}

// active finds the graft that a request adds its rules to: one of the same asker over the same path.
func (k *keeper) active(path string, o Origin) *held {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.grafts {
		if h.Path == path && h.Origin == o && h.State == StateActive {
			return h
		}
	}
	return nil
}

// comingOff is an error where a layer lies over the path that could not be taken off yet. The caller holds swap, so
// that nobody is at it.
func (k *keeper) comingOff(path string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.grafts {
		if h.Path == path && (h.State == StateReverting || h.State == StateFailed) {
			return fmt.Errorf("graft %s over %s is being taken off, which is tried until it succeeds; try again when `faultgraft ps` does not list it any more. So far: %s", h.ID, h.Path, h.Reason)
		}
	}
	return nil
}

// changeRules does it, once more if the server died meanwhile and another follows it.
func (k *keeper) changeRules(h *held, c Change, who string) (Graft, error) {
	server, err := k.serving()
	if err != nil {
		return Graft{}, fmt.Errorf("change the rules of graft %s: %w", h.ID, err)
	}
	if k.without(h, server) {
		return Graft{}, fmt.Errorf("graft %s: its server has died, and the layer is being taken off", h.ID)
	}
	g, err := k.changeRulesOn(server, h, c, who)
	if err != nil && !server.alive() {
		if next, nerr := k.serving(); nerr == nil && !k.without(h, next) {
			return k.changeRulesOn(next, h, c, who)
		}
	}
	return g, err
}

// changeRulesOn does it. Rules that go stay until files which the new ones need
// have been moved, so that after a failure everything, counters too, is as it was.
func (k *keeper) changeRulesOn(server *serverClient, h *held, c Change, who string) (Graft, error) {
	fail := func(err error) (Graft, error) {
		return Graft{}, fmt.Errorf("change the rules of graft %s: %w", h.ID, err)
	}
	if err := checkRules(c.Rules); err != nil {
		return fail(err)
	}
	if len(c.Rules) > 0 {
		if err := CheckStopped(k.o.StateDir); err != nil {
			return fail(err)
		}
	}
	now := time.Now()
	was := slices.DeleteFunc(slices.Clone(h.rules), func(r activeRule) bool { return r.over(now) })
	next, added, err := c.apply(h.rules, h.Origin == OriginUser, now)
	if err != nil {
		return fail(err)
	}
	atChange.Pass("planned")
	rep := &graft.Report{}
	if len(added) > 0 {
		if err = k.setRules(server, h, union(next, was), now); err == nil {
			atChange.Pass("united")
			rep, err = k.cover(h, server, c.Limits)
		}
		if err != nil && !server.alive() || errors.Is(err, ErrStopped) {
			return fail(err) // one that follows it has the rules of before; after a stop there are none
		}
		if err != nil {
			return fail(errors.Join(err, k.setRules(server, h, was, now)))
		}
	}
	atChange.Pass("covered")
	if err := k.setRules(server, h, next, now); err != nil {
		return fail(err)
	}
	atChange.Pass("set")
	status, err := server.status(h.ID)
	if err != nil {
		k.o.Logger.Warn("read the rules", "graft", h.ID, "err", err)
	}
	k.mu.Lock()
	h.rules, h.status = next, status
	if h.Origin != OriginUser {
		h.Origin = c.Origin // its rules may come from elsewhere now
	}
	h.timer.Stop()
	h.timer = time.AfterFunc(time.Until(lastEnd(next)), func() { k.expire(h) })
	g := h.Graft
	g.Rules, g.Report, g.Added, g.Pause = status, rep, added, pauseOf(rep)
	k.mu.Unlock()
	atChange.Pass("timed")
	k.log(Event{Type: EventRules, Graft: h.ID, Path: h.Path, By: c.Origin, Who: who, Rules: texts(next), PauseMs: g.PauseMs, LongestPauseMs: g.LongestPauseMs, Message: describeChange(was, next, rep)})
	atChange.Pass("logged")
	return g, nil
}

func checkRules(rules []policy.Rule) error {
	for _, r := range rules {
		if err := r.Check(); err != nil {
			return fmt.Errorf("rule %s: %w", r.FullName(), err)
		}
		if r.IO == nil {
			return fmt.Errorf("rule %s: a layer carries out io rules only; faultgraft inject --kernel takes kernel rules", r.Name)
		}
	}
	return nil
}

// setRules tells the server; start is for those that it does not have yet.
func (k *keeper) setRules(s *serverClient, h *held, rules []activeRule, start time.Time) error {
	h.ruling.Lock() // a stop ends what was set before it, and nothing is set after it
	defer h.ruling.Unlock()
	k.mu.Lock()
	halted := h.halted
	k.mu.Unlock()
	if halted != nil {
		return halted
	}
	return s.call(callRules, rulesCall{Layer: h.ID, Rules: plain(rules), Start: start}, nil)
}

// union is next with what else there was after it.
func union(next, was []activeRule) []activeRule {
	all := slices.Clone(next)
	for _, r := range was {
		if !has(next, r) {
			all = append(all, r)
		}
	}
	return all
}

// has: a rule of a graft is known by its full name and its start.
func has(rules []activeRule, r activeRule) bool {
	return slices.ContainsFunc(rules, func(o activeRule) bool { return o.FullName() == r.FullName() && o.start.Equal(r.start) })
}

// texts are rules as the event log has them.
func texts(rules []activeRule) []string {
	out := make([]string, 0, len(rules))
	for _, r := range rules {
		out = append(out, fmt.Sprintf("%s: %s (seed %d)", r.FullName(), r.Text, r.Trigger.Seed))
	}
	return out
}

// describeChange is for the event log.
func describeChange(was, next []activeRule, rep *graft.Report) string {
	var parts []string
	for _, r := range next {
		if !has(was, r) {
			parts = append(parts, fmt.Sprintf("new %s: %s (seed %d)", r.FullName(), r.Text, r.Trigger.Seed))
		}
	}
	for _, r := range was {
		if !has(next, r) {
			parts = append(parts, "ended "+r.FullName())
		}
	}
	if len(parts) == 0 {
		parts = []string{"the rules are the same"}
	}
	s := strings.Join(parts, "; ")
	if n := len(rep.Swapped); n > 0 {
		s += fmt.Sprintf("; %d objects moved again, %d processes stopped", n, len(rep.Stopped))
	}
	return s
}
