package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	good = "io error=EIO op=read path=/d"
	bad  = "io error=EIOO op=read path=/d"
)

// rule gives the text of a valid rule that can be told from others by its seed.
func seeded(n int) string { return fmt.Sprintf("%s seed=%d", good, n) }

func TestParseLabels(t *testing.T) {
	tests := []struct {
		name      string
		labels    map[string]string
		container string
		rules     []string // NAME SEED
		policies  []string
		disabled  bool
		problems  []string // parts of the errors
	}{
		{name: "none"},
		{
			name:   "of others",
			labels: map[string]string{"app": "pg", "nerdctl/name": "x", "notfaultgraft.io": bad, "faultgraft.io.example.org/x": bad, "x.faultgraft.io.org": bad},
		},
		{
			name:   "plain, sorted by name",
			labels: map[string]string{"b.faultgraft.io": seeded(1), "a.faultgraft.io": seeded(2), "a-b.faultgraft.io": seeded(3)},
			rules:  []string{"a 2", "a-b 3", "b 1"},
		},
		{
			name:   "pod beats plain",
			labels: map[string]string{"a.faultgraft.io": seeded(1), "a.faultgraft.io/pod": seeded(2)},
			rules:  []string{"a 2"},
		},
		{
			name:      "container beats pod",
			labels:    map[string]string{"a.faultgraft.io": seeded(1), "a.faultgraft.io/pod": seeded(2), "a.faultgraft.io/container.pg": seeded(3)},
			container: "pg",
			rules:     []string{"a 3"},
		},
		{
			name:      "another container's",
			labels:    map[string]string{"a.faultgraft.io": seeded(1), "a.faultgraft.io/container.web": bad, "b.faultgraft.io/container.pg.x": bad},
			container: "pg",
			rules:     []string{"a 1"},
		},
		{
			name:   "a container without a name",
			labels: map[string]string{"a.faultgraft.io/container.web": seeded(1)},
		},
		{
			name:      "a wrong one is not replaced by a less specific one",
			labels:    map[string]string{"a.faultgraft.io": seeded(1), "a.faultgraft.io/container.pg": bad, "b.faultgraft.io": seeded(2)},
			container: "pg",
			rules:     []string{"b 2"},
			problems:  []string{`label a.faultgraft.io/container.pg: column 10: unknown errno "EIOO"; did you mean EIO?`},
		},
		{
			name:     "kernel rules beside others",
			labels:   map[string]string{"oom.faultgraft.io": "kernel hook=slab error=ENOMEM ttl=60s seed=4", "a.faultgraft.io": seeded(1), "b.faultgraft.io": "kernel hook=slap"},
			rules:    []string{"a 1", "oom 4"},
			problems: []string{`label b.faultgraft.io: column 13: unknown hook point "slap"; did you mean slab?`},
		},
		{
			name:     "disabled",
			labels:   map[string]string{"enable.faultgraft.io": "false", "a.faultgraft.io": seeded(1), "b.faultgraft.io": bad},
			disabled: true,
		},
		{
			name:      "disabled for the pod, enabled for the container: disabled",
			labels:    map[string]string{"enable.faultgraft.io/pod": "false", "enable.faultgraft.io/container.pg": "true", "a.faultgraft.io": seeded(1)},
			container: "pg",
			disabled:  true,
		},
		{
			name:      "disabled for another container",
			labels:    map[string]string{"enable.faultgraft.io/container.web": "false", "a.faultgraft.io": seeded(1)},
			container: "pg",
			rules:     []string{"a 1"},
		},
		{
			name:   "enabled",
			labels: map[string]string{"enable.faultgraft.io": "true", "a.faultgraft.io": seeded(1)},
			rules:  []string{"a 1"},
		},
		{
			name:     "a misspelt refusal is a refusal",
			labels:   map[string]string{"enable.faultgraft.io": "no", "a.faultgraft.io": seeded(1)},
			disabled: true,
			problems: []string{`label enable.faultgraft.io: the value "no" is neither true nor false; taken as false`},
		},
		{
			name:     "named policy",
			labels:   map[string]string{"policy.faultgraft.io": "pg-wal", "a.faultgraft.io": seeded(1)},
			rules:    []string{"a 1"},
			policies: []string{"pg-wal"},
		},
		{
			name:     "named policies",
			labels:   map[string]string{"policy.faultgraft.io/pod": "pg-wal", "policy.faultgraft.io": "b.x, a,b.x"},
			policies: []string{"pg-wal"},
		},
		{
			name:     "several named policies",
			labels:   map[string]string{"policy.faultgraft.io": "b.x, a,b.x"},
			policies: []string{"a", "b.x"},
		},
		{
			name:     "no name of a policy",
			labels:   map[string]string{"policy.faultgraft.io": "pg-wal,Oom"},
			problems: []string{`label policy.faultgraft.io: "Oom" is not the name of a policy`},
		},
		{
			name: "wrong keys",
			labels: map[string]string{
				"faultgraft.io": good, "faultgraft.io/a": good, "A.faultgraft.io": good, "a.FaultGraft.io": good, "a.b.faultgraft.io": good,
				"-a.faultgraft.io": good, "a.faultgraft.io/": good, "a.faultgraft.io/x": good, "a.faultgraft.io/container.": good,
				"a.faultgraft.io/container.x/y": good, "a.faultgraft.io/Pod": good, ".faultgraft.io": good,
			},
			problems: []string{
				"label -a.faultgraft.io: the key names no rule", "label .faultgraft.io: the key names no rule", "label A.faultgraft.io: the key names no rule",
				"label a.FaultGraft.io: the key names no rule", "label a.b.faultgraft.io: the key names no rule",
				`label a.faultgraft.io/: the key has "" after the slash`, `label a.faultgraft.io/Pod: the key has "Pod" after`,
				`label a.faultgraft.io/container.: "" is not the name of a container`, `label a.faultgraft.io/container.x/y: "x/y" is not the name`,
				`label a.faultgraft.io/x: the key has "x" after`, "label faultgraft.io: the key names no rule", "label faultgraft.io/a: the key names no rule",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res := ParseLabels(Subject{Labels: tt.labels, ContainerName: tt.container}, Defaults{})
			var rules []string
			for _, r := range res.Rules {
				rules = append(rules, fmt.Sprintf("%s %d", r.Name, r.Trigger.Seed))
			}
			if diff := cmp.Diff(tt.rules, rules); diff != "" {
				t.Errorf("rules: %s", diff)
			}
			if diff := cmp.Diff(tt.policies, res.Policies); diff != "" {
				t.Errorf("policies: %s", diff)
			}
			if res.Disabled != tt.disabled {
				t.Errorf("disabled is %v", res.Disabled)
			}
			if len(res.Problems) != len(tt.problems) {
				t.Fatalf("problems %v, want %q", res.Problems, tt.problems)
			}
			for i, p := range res.Problems {
				if !strings.HasPrefix(p.Error(), tt.problems[i]) {
					t.Errorf("problem %q, want %q", p, tt.problems[i])
				}
			}
		})
	}
}

func TestParseLabelsKind(t *testing.T) {
	res := ParseLabels(Subject{Labels: map[string]string{"a.faultgraft.io/pod": bad}, Kind: "annotation"}, Defaults{})
	if len(res.Problems) != 1 || !strings.HasPrefix(res.Problems[0].Error(), "annotation a.faultgraft.io/pod: column 10: ") {
		t.Errorf("problems: %v", res.Problems)
	}
}

func TestParseLabelsLimit(t *testing.T) {
	labels := make(map[string]string)
	for i := range MaxRules + 3 {
		labels[fmt.Sprintf("r%03d.faultgraft.io", i)] = seeded(i)
	}
	res := ParseLabels(Subject{Labels: labels}, Defaults{})
	if len(res.Rules) != MaxRules || len(res.Problems) != 3 {
		t.Fatalf("%d rules, problems %v", len(res.Rules), res.Problems)
	}
	if want := "label r064.faultgraft.io: the container has more than 64 rules; this one is not applied"; !strings.HasPrefix(res.Problems[0].Error(), want) {
		t.Errorf("problem %q, want %q", res.Problems[0], want)
	}
}

func TestParseLabelsDefaults(t *testing.T) {
	res := ParseLabels(Subject{Labels: map[string]string{"a.faultgraft.io": "io error=EIO op=read"}}, Defaults{Path: "/data/**"})
	if len(res.Rules) != 1 || res.Rules[0].IO.Path != "/data/**" {
		t.Errorf("result %+v", res)
	}
}
