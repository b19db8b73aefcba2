package manifest

import (
	"errors"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

const several = `# two kinds in one file
apiVersion: faultgraft.io/v1alpha1
kind: FaultPolicy
metadata: {name: pg-wal}
spec:
  selector: {matchLabels: {app: pg}}
  faults:
  - {name: wal, io: {path: "/data/**", ops: [fsync], error: EIO}}
  - name: oom
    kernel:
      hook: slab
      where: 's->size > 64'
---
apiVersion: chaos-mesh.org/v1alpha1
kind: IOChaos
metadata: {name: latency, namespace: chaos}
spec:
  action: latency
  mode: one
  selector: {labelSelectors: {app: etcd}}
  volumePath: /var/run/etcd
  path: /var/run/etcd/**/*
  delay: 100ms
  percent: 50
  duration: 400s
`

func TestSeveralKinds(t *testing.T) {
	all, err := Open("a.yaml", []byte(several), policy.Defaults{})
	if err != nil || len(all) != 2 {
		t.Fatalf("%d manifests, %v", len(all), err)
	}
	if name := all[1].Policy.Metadata.Name; name != "iochaos.chaos.latency" || len(all[1].Rules) != 1 || all[1].Rules[0].IO == nil {
		t.Errorf("%s: %v", name, all[1].Rules)
	}
	if len(all[0].Rules) != 2 || all[0].Rules[1].Kernel == nil {
		t.Errorf("rules %v", all[0].Rules)
	}
	if file, line := all[1].Place(); file != "a.yaml" || line != 16 {
		t.Errorf("the second is at %s:%d", file, line)
	}
	// What package kernel finds in a predicate has its place in the file.
	r := all[0].Rules[1]
	wrong := r.PredicateError(-1, 1, 4, "no such member", "")
	if e := all[0].RuleError(1, wrong); e.Error() != "a.yaml:12:18: spec.faults[1].kernel.where: no such member" {
		t.Errorf("%v", e)
	}
	policies, err := Read("a.yaml", []byte(several), policy.Defaults{})
	if err != nil || len(policies) != 2 || policies[0].Metadata.Name != "pg-wal" {
		t.Errorf("%v, %v", policies, err)
	}
}

func TestRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"# nothing\n", "a.yaml: there is no document; write a FaultPolicy, see docs/policies.md"},
		{"a: b\n", "a.yaml:1:1: the document has no apiVersion and no kind; write faultgraft.io/v1alpha1 and FaultPolicy, or a manifest of chaos-mesh.org/v1alpha1"},
		{"kind: FaultPolicy\n", "a.yaml:1:1: apiVersion: apiVersion is missing; write "},
		{"apiVersion: faultgraft.io/v1alpha1\n", "a.yaml:1:1: kind: kind is missing; add kind: FaultPolicy"},
		{"apiVersion: faultgraft.io/v1alpha\nkind: FaultPolicy\n", `a.yaml:1:13: apiVersion: unknown apiVersion "faultgraft.io/v1alpha"; did you mean faultgraft.io/v1alpha1?`},
		{"apiVersion: faultgraft.io/v1alpha1\nkind: FaultPolice\n", `a.yaml:2:7: kind: unknown kind "FaultPolice"; did you mean FaultPolicy?`},
		{"apiVersion: v1\nkind: Pod\n", `a.yaml:1:13: apiVersion: unknown apiVersion "v1"; write faultgraft.io/v1alpha1`},
		{"apiVersion: chaos-mesh.org/v1alpha1\nkind: PodChaos\n", `a.yaml:2:7: kind: the kind "PodChaos" cannot be applied`},
		{several + "---\n" + several[strings.Index(several, "apiVersion"):strings.Index(several, "---")], `a.yaml:29:18: metadata.name: the policy "pg-wal" is there twice; the first is on line 4`},
		{"[]\n", "a.yaml:1:1: the document has no apiVersion"},
	} {
		_, err := Open("a.yaml", []byte(c.text), policy.Defaults{})
		var errs strictyaml.Errors
		if !errors.As(err, &errs) || len(errs) != 1 || !strings.HasPrefix(errs.Error(), c.want) {
			t.Errorf("%.50q:\n got %v\nwant %s", c.text, err, c.want)
		}
	}
	// A mistake in each document.
	_, err := Open("a.yaml", []byte(strings.ReplaceAll(strings.Replace(several, "ops:", "opps:", 1), "percent: 50", "percent: 500")), policy.Defaults{})
	if err == nil || !strings.Contains(err.Error(), `a.yaml:8:40: spec.faults[0].io: unknown field "opps"; did you mean ops?`) || !strings.Contains(err.Error(), "a.yaml:24:") {
		t.Errorf("%v", err)
	}
}
