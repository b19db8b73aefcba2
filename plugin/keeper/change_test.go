package keeper

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

func parse(t *testing.T, name, text string) policy.Rule {
	t.Helper()
	r, err := policy.ParseRule(name, text, policy.Defaults{Path: "/data/**"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Which rules a graft has after a change: those that stay keep their start, names are unique, ended ones do not come back.
func TestChangeApply(t *testing.T) {
	const a, b, c = "io error=EIO op=read ttl=5m", "io error=EIO op=write ttl=5m", "io error=EIO op=fsync ttl=1m"
	now := time.Now()
	start := now.Add(-2 * time.Minute)
	have := activate([]policy.Rule{parse(t, "rule-1", a), parse(t, "rule-2", b), parse(t, "over", c)}, start)
	type rule struct{ name, text string }
	for _, k := range []struct {
		name   string
		change Change
		rules  []rule
		byText bool
		want   string // names; * marks one that starts now
		err    string
	}{
		{"replace", Change{}, []rule{{"x", c}}, true, "x*", ""},
		{"one stays by its text", Change{}, []rule{{"rule", b}}, true, "rule-2", ""},
		{"another name is another label", Change{}, []rule{{"rule", b}}, false, "rule*", ""},
		{"order is that of the request", Change{}, []rule{{"rule-2", b}, {"rule-1", a}}, false, "rule-2 rule-1", ""},
		{"one that is over begins anew", Change{}, []rule{{"over", c}}, false, "over*", ""},
		{"add", Change{Keep: true}, []rule{{"x", c}}, true, "rule-1 rule-2 x*", ""},
		{"add under a name that is taken", Change{Keep: true}, []rule{{"rule-1", c}, {"rule-1", c}}, true, "rule-1 rule-2 rule-1-2* rule-1-3*", ""},
		{"add the same once more", Change{Keep: true}, []rule{{"rule-1", a}}, true, "rule-1 rule-2 rule-1-2*", ""},
		{"a label is one rule", Change{Keep: true}, []rule{{"rule-1", a}}, false, "rule-1 rule-2", ""},
		{"drop", Change{Keep: true, Drop: []string{"rule-1"}}, nil, true, "rule-2", ""},
		{"drop one that is over", Change{Keep: true, Drop: []string{"over"}}, nil, true, "rule-1 rule-2", ""},
		{"drop all", Change{Keep: true, Drop: []string{"rule-1", "rule-2"}}, nil, true, "", "no rule would be left"},
		{"drop and begin anew", Change{Keep: true, Drop: []string{"rule-1"}}, []rule{{"rule-1", a}}, true, "rule-2 rule-1*", ""},
		{"drop nobody", Change{Keep: true, Drop: []string{"y"}}, nil, true, "", `no rule "y"; its rules are rule-1, rule-2, over`},
		{"nothing", Change{}, nil, true, "", "no rule would be left"},
	} {
		for _, r := range k.rules {
			k.change.Rules = append(k.change.Rules, parse(t, r.name, r.text))
		}
		next, added, err := k.change.apply(have, k.byText, now)
		if k.err != "" {
			if err == nil || !strings.Contains(err.Error(), k.err) {
				t.Errorf("%s: %v, want %q", k.name, err, k.err)
			}
			continue
		}
		var got, fresh []string
		for _, r := range next {
			s := r.Name
			if r.start.Equal(now) {
				s, fresh = s+"*", append(fresh, r.Name)
			}
			if !r.start.Equal(now) && !r.start.Equal(start) || r.start.Equal(now) && !r.Trigger.Seeded {
				t.Errorf("%s: %+v", k.name, r)
			}
			got = append(got, s)
		}
		if s := strings.Join(got, " "); err != nil || s != k.want || !slices.Equal(fresh, added) {
			t.Errorf("%s: %q, added %q, %v; want %q", k.name, s, added, err, k.want)
		}
	}
	if len(have) != 3 || have[0].Name != "rule-1" {
		t.Errorf("the rules of before were changed: %+v", have)
	}
}

// Rules of several policies may have the same name, and a policy's next run is another rule of the same text.
func TestChangeOfPolicyRules(t *testing.T) {
	const text = "io error=EIO op=read ttl=5m"
	now := time.Now()
	start := now.Add(-time.Minute)
	of := func(policy string, run uint64) activeRule {
		r := parse(t, "wal", text)
		r.Policy, r.Run = policy, run
		return activeRule{r, start}
	}
	have := []activeRule{of("", 0), of("a", 1), of("b", 1)}
	next, added, err := Change{Rules: plain([]activeRule{of("a", 1), of("b", 2), of("", 0), of("c", 1)})}.apply(have, false, now)
	if err != nil || !slices.Equal(added, []string{"b/wal", "c/wal"}) {
		t.Fatalf("added %q, %v", added, err)
	}
	for i, want := range []struct {
		name string
		kept bool
	}{{"a/wal", true}, {"b/wal", false}, {"wal", true}, {"c/wal", false}} {
		if r := next[i]; r.FullName() != want.name || r.start.Equal(start) != want.kept {
			t.Errorf("rule %d is %s since %v, want %+v", i, r.FullName(), r.start, want)
		}
	}
	if next, _, err = (Change{Keep: true, Drop: []string{"a/wal"}}).apply(have, false, now); err != nil || names(next) != "wal, b/wal" {
		t.Errorf("after a drop %s, %v", names(next), err)
	}
}

// What a container's labels say is not for a person to change under the agent's hands.
func TestRulesOfLabelsAreTheAgents(t *testing.T) {
	k := &keeper{grafts: map[string]*held{"g-1": {Graft: Graft{ID: "g-1", Origin: OriginLabel, State: StateReverting}}}}
	for origin, want := range map[Origin]string{OriginUser: "container's labels", OriginLabel: "is reverting"} {
		if _, err := k.change("g-1", Change{Origin: origin}, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("asked by %s: %v, want %q", origin, err, want)
		}
	}
}
