package plugin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// plan is what one task must be brought to: grafts to take off first, then
// grafts to change and grafts to make.
type plan struct {
	recover []keeper.Graft
	update  []ruleChange
	inject  []keeper.Request
	// keep are the grafts from labels that stay as they are.
	keep []keeper.Graft
	// busy is a graft that is being made or taken off by somebody; look again when it is settled.
	busy *keeper.Graft
	// ended counts the rules that were applied to this task and are over.
	ended int
	// applied is what is then to be remembered of the task, without the rules to inject.
	applied []appliedRule
}

// ruleChange is a graft that stays where it is and gets other rules.
type ruleChange struct {
	graft keeper.Graft
	rules []policy.Rule
}

// ruleKey is the identity of a rule of one container.
type ruleKey struct {
	policy     string
	run        uint64
	name, text string
}

func keyOf(r policy.Rule) ruleKey             { return ruleKey{r.Policy, r.Run, r.Name, r.Text} }
func keyOfStatus(r keeper.RuleStatus) ruleKey { return ruleKey{r.Policy, r.Run, r.Name, r.Text} }

func (a appliedRule) key() ruleKey { return ruleKey{a.Policy, a.Run, a.Name, a.Text} }

// applyRule is the memory of a rule.
func applyRule(r policy.Rule, since time.Time) appliedRule {
	return appliedRule{Policy: r.Policy, Run: r.Run, Name: r.Name, Text: r.Text, Since: since, Kernel: r.Kernel != nil}
}

func (k ruleKey) compare(o ruleKey) int {
	return cmp.Or(cmp.Compare(k.policy, o.policy), cmp.Compare(k.run, o.run), cmp.Compare(k.name, o.name), cmp.Compare(k.text, o.text))
}

// makePlan compares what a container's labels ask for with the grafts that are
// on its task and with what was applied to the task before.
func makePlan(c *Container, rules []policy.Rule, grafts []keeper.Graft, applied []appliedRule, now time.Time) plan {
	var p plan
	memo := map[ruleKey]appliedRule{}
	for _, a := range applied {
		memo[a.key()] = a
	}
	live := map[ruleKey]time.Time{} // since when
	byPath := map[string]keeper.Graft{}
	for _, g := range grafts {
		if g.Origin == keeper.OriginUser || g.State == keeper.StateLingering {
			continue // a person asked for it and takes it off; or it is off
		}
		byPath[g.Path] = g
		for _, r := range g.Rules {
			if !r.Expired {
				live[keyOfStatus(r)] = g.Since
			}
		}
	}
	// What is over stays over for this task; what lives, or was not there yet, is wanted.
	var wanted []policy.Rule
	for _, r := range rules {
		k := keyOf(r)
		since, lives := live[k]
		a, known := memo[k]
		if known {
			since = a.Since
		}
		if (known || lives) && r.Policy == "" { // a rule that is moved to another graft keeps its clock; those of policies come aged
			r.Trigger = r.Trigger.Aged(max(now.Sub(since), 0)) // not younger, should the clock or the memory be wrong
		}
		if known && !lives && (a.Done || r.Trigger.TTL <= 0) {
			p.ended++
			p.applied = append(p.applied, a)
			continue
		}
		r.Trigger.TTL = max(r.Trigger.TTL, time.Nanosecond) // its keeper is about to end it
		wanted = append(wanted, r)
	}
	groups := policy.GraftPaths(wanted)
	for _, path := range slices.Sorted(maps.Keys(byPath)) {
		g := byPath[path]
		switch {
		case g.State == keeper.StateGrafting || g.State == keeper.StateReverting:
			p.busy = &g
		case sameRules(g, groups[path]):
			p.keep = append(p.keep, g)
			for _, r := range groups[path] {
				a, known := memo[keyOf(r)]
				if !known {
					a = applyRule(r, g.Since)
				}
				a.Done, a.Graft = true, g.ID
				p.applied = append(p.applied, a)
			}
			delete(groups, path)
		case g.State == keeper.StateActive && len(groups[path]) > 0:
			p.update = append(p.update, ruleChange{g, groups[path]})
			delete(groups, path)
		default:
			p.recover = append(p.recover, g)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(groups)) {
		group := groups[path]
		p.inject = append(p.inject, keeper.Request{Path: path, Rules: group, Origin: c.originOf(group[0])})
	}
	return p
}

// sameRules reports whether a graft's live rules are exactly the wanted ones.
func sameRules(g keeper.Graft, wanted []policy.Rule) bool {
	var have, want []ruleKey
	for _, r := range g.Rules {
		if !r.Expired {
			have = append(have, keyOfStatus(r))
		}
	}
	for _, r := range wanted {
		want = append(want, keyOf(r))
	}
	slices.SortFunc(have, ruleKey.compare)
	slices.SortFunc(want, ruleKey.compare)
	return slices.Equal(have, want) && len(want) > 0
}

// graftsOf picks the grafts of one task: by its process, and by the ids that
// were remembered, because a keeper that a person started by a PID inside the
// container goes by that PID.
func graftsOf(all []keeper.Graft, c *Container, applied []appliedRule) []keeper.Graft {
	var own []keeper.Graft
	for _, g := range all {
		t := g.Target
		mine := t.PID == c.PID && t.StartTime == c.StartTime
		byPID := t.Namespace == "" && slices.ContainsFunc(applied, func(a appliedRule) bool { return a.Graft == g.ID })
		if mine || byPID {
			own = append(own, g)
		}
	}
	return own
}

// describe names what a request asks for, for the log.
func describe(req keeper.Request) string {
	names := make([]string, 0, len(req.Rules))
	for _, r := range req.Rules {
		names = append(names, fmt.Sprintf("%s (seed %d)", r.FullName(), r.Trigger.Seed))
	}
	return fmt.Sprint(names)
}
