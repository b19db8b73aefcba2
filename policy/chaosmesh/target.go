package chaosmesh

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// target says which containers an experiment is for (ContainerSelector).
type target struct {
	Selector *selector         `json:"selector"`
	Mode     faultpolicy.Mode  `json:"mode"`
	Value    strictyaml.Scalar `json:"value"`
	// ContainerNames are names; without them Chaos Mesh takes the first container of each pod.
	ContainerNames []string `json:"containerNames"`
}

// selector says which pods (PodSelectorSpec).
type selector struct {
	Namespaces          []string            `json:"namespaces"`
	FieldSelectors      map[string]string   `json:"fieldSelectors"`
	LabelSelectors      map[string]string   `json:"labelSelectors"`
	ExpressionSelectors []requirement       `json:"expressionSelectors"`
	AnnotationSelectors map[string]string   `json:"annotationSelectors"`
	Nodes               []string            `json:"nodes"`
	Pods                map[string][]string `json:"pods"`
	NodeSelectors       map[string]string   `json:"nodeSelectors"`
	PodPhaseSelectors   []string            `json:"podPhaseSelectors"`
}

// requirement is that of Kubernetes.
type requirement struct {
	Key      string               `json:"key"`
	Operator faultpolicy.Operator `json:"operator"`
	Values   []string             `json:"values"`
}

// check is what Kubernetes asks of a requirement.
func (r *requirement) check(path string) *problem {
	takes := r.Operator == faultpolicy.In || r.Operator == faultpolicy.NotIn
	switch {
	case r.Key == "":
		return missing(strictyaml.Field(path, "key"), "the name of a label")
	case r.Operator == "":
		return missing(strictyaml.Field(path, "operator"), strings.Join(r.Operator.Values(), ", "))
	case takes && len(r.Values) == 0:
		return missing(strictyaml.Field(path, "values"), "the values of the label")
	case !takes && len(r.Values) > 0:
		return &problem{path: strictyaml.Field(path, "values"), message: string(r.Operator) + " takes no values", fix: "leave them out, or use In or NotIn"}
	}
	return nil
}

const onThisNode = "leave it out, and apply the manifest on those nodes: faultgraft works on the node where it is applied"

// apply writes the target into a policy. namespace is that of the manifest, where
// Chaos Mesh looks for pods when the selector names none (PodSelector.Default).
func (t *target) apply(spec *faultpolicy.Spec, namespace, path string) *problem {
	if t.Selector == nil {
		return missing(strictyaml.Field(path, "selector"), "which pods, such as labelSelectors: {app: etcd}")
	}
	if p := t.choice(spec, path); p != nil {
		return p
	}
	for i, name := range t.ContainerNames {
		if name == "" {
			return &problem{path: strictyaml.Item(strictyaml.Field(path, "containerNames"), i), message: "the name is empty"}
		}
		spec.Selector.ContainerNames = append(spec.Selector.ContainerNames, plain(name))
	}
	return t.Selector.apply(&spec.Selector, namespace, strictyaml.Field(path, "selector"))
}

// choice writes mode and value.
func (t *target) choice(spec *faultpolicy.Spec, path string) *problem {
	if t.Mode == "" {
		return missing(strictyaml.Field(path, "mode"), strings.Join(t.Mode.Values(), ", "))
	}
	spec.Mode = t.Mode
	value, most, what := strictyaml.Field(path, "value"), 1<<31-1, "containers"
	switch spec.Mode {
	case faultpolicy.ModeOne, faultpolicy.ModeAll:
		if t.Value != "" {
			return &problem{path: value, message: "value means nothing for mode " + string(t.Mode), fix: "leave it out"}
		}
		return nil
	case faultpolicy.ModeFixedPercent, faultpolicy.ModeRandomMaxPercent:
		most, what = 100, "percent"
	}
	if t.Value == "" {
		return missing(value, "how many "+what)
	}
	n, err := strconv.Atoi(string(t.Value))
	if err != nil || n < 1 || n > most {
		return &problem{path: value, message: fmt.Sprintf("%q is not a number of %s", t.Value, what), fix: fmt.Sprintf("write a whole number from 1 to %d", most)}
	}
	spec.Value = n
	return nil
}

// apply writes the selector into that of a policy.
func (s *selector) apply(to *faultpolicy.Selector, namespace, path string) *problem {
	switch {
	case len(s.Nodes) > 0:
		return &problem{path: strictyaml.Field(path, "nodes"), message: "nodes cannot be chosen", fix: onThisNode}
	case len(s.NodeSelectors) > 0:
		return &problem{path: strictyaml.Field(path, "nodeSelectors"), message: "nodes cannot be chosen", fix: onThisNode}
	}
	if p := s.running(strictyaml.Field(path, "podPhaseSelectors")); p != nil {
		return p
	}
	if len(s.Pods) > 0 {
		return s.listed(to, path)
	}
	namespaces := s.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{namespace}
	}
	for i, n := range namespaces {
		if n == "" {
			return &problem{path: strictyaml.Item(strictyaml.Field(path, "namespaces"), i), message: "the namespace is empty"}
		}
		to.PodNamespaces = append(to.PodNamespaces, plain(n))
	}
	var pod faultpolicy.PodSelector
	if len(s.LabelSelectors) > 0 {
		pod.MatchLabels = s.LabelSelectors
	}
	if len(s.AnnotationSelectors) > 0 {
		pod.MatchAnnotations = s.AnnotationSelectors
	}
	for i, r := range s.ExpressionSelectors {
		if p := r.check(strictyaml.Item(strictyaml.Field(path, "expressionSelectors"), i)); p != nil {
			return p
		}
		pod.MatchExpressions = append(pod.MatchExpressions, faultpolicy.Requirement(r))
	}
	if len(pod.MatchLabels)+len(pod.MatchExpressions)+len(pod.MatchAnnotations) > 0 {
		to.PodSelector = &pod
	}
	return s.byFields(to, strictyaml.Field(path, "fieldSelectors"))
}

// listed is a list of pods, beside which Chaos Mesh looks at nothing else (SelectPods).
func (s *selector) listed(to *faultpolicy.Selector, path string) *problem {
	for _, other := range []struct {
		name string
		n    int
	}{
		{"namespaces", len(s.Namespaces)}, {"fieldSelectors", len(s.FieldSelectors)}, {"labelSelectors", len(s.LabelSelectors)},
		{"expressionSelectors", len(s.ExpressionSelectors)}, {"annotationSelectors", len(s.AnnotationSelectors)},
	} {
		if other.n > 0 {
			return &problem{path: strictyaml.Field(path, other.name), message: other.name + " stands beside pods, and Chaos Mesh then looks at pods only", fix: "leave one of them out"}
		}
	}
	for _, namespace := range sortedKeys(s.Pods) {
		names := s.Pods[namespace]
		if namespace == "" || len(names) == 0 {
			return &problem{path: strictyaml.Field(strictyaml.Field(path, "pods"), namespace), message: fmt.Sprintf("namespace %q has no pods", namespace), fix: "write NAMESPACE: [POD, …]"}
		}
		for i, name := range names {
			if name == "" {
				return &problem{path: strictyaml.Item(strictyaml.Field(strictyaml.Field(path, "pods"), namespace), i), message: "the name is empty"}
			}
			to.Pods = append(to.Pods, plain(namespace)+"/"+plain(name))
		}
	}
	return nil
}

// running checks the phases: only containers that run can have faults. A phase
// with ! before it is left out (newPhaseSelector).
func (s *selector) running(path string) *problem {
	phases := []string{"Pending", "Running", "Succeeded", "Failed", "Unknown"}
	wanted, running := false, false
	for i, phase := range s.PodPhaseSelectors {
		at := strictyaml.Item(path, i)
		name, not := strings.CutPrefix(phase, "!")
		switch {
		case !slices.Contains(phases, name):
			return &problem{path: at, message: fmt.Sprintf("unknown phase %q", phase), fix: policy.Suggest(name, phases, "the phases are "+strings.Join(phases, ", "))}
		case not && name == "Running":
			return &problem{path: at, message: "this leaves out all pods that run, and no others can have faults", fix: "leave it out"}
		case !not:
			wanted, running = true, running || name == "Running"
		}
	}
	if wanted && !running {
		return &problem{path: path, message: "Running is not among the phases, and no other pods can have faults", fix: "add Running, or leave it out"}
	}
	return nil
}

// byFields are the fields of a pod that can be selected by (toPodSelectableFields).
func (s *selector) byFields(to *faultpolicy.Selector, path string) *problem {
	for _, field := range sortedKeys(s.FieldSelectors) {
		value := s.FieldSelectors[field]
		at := strictyaml.Field(path, field)
		switch {
		case value == "":
			return &problem{path: at, message: field + " has no value"}
		case field == "metadata.name":
			to.PodNames = []string{plain(value)}
		case field == "metadata.namespace":
			if !slices.Contains(to.PodNamespaces, plain(value)) {
				return &problem{path: at, message: fmt.Sprintf("%s is not among the namespaces of the selector: nothing could match", value), fix: "add it to namespaces"}
			}
			to.PodNamespaces = []string{plain(value)}
		case field == "status.phase":
			if value != "Running" {
				return &problem{path: at, message: "only pods that run can have faults", fix: "write Running, or leave it out"}
			}
		case field == "spec.nodeName":
			return &problem{path: at, message: "nodes cannot be chosen", fix: onThisNode}
		case slices.Contains(unknownFields, field):
			return &problem{path: at, message: "a container runtime does not know the " + field + " of a pod", fix: "select by labels, or by metadata.name"}
		default:
			known := slices.Concat([]string{"metadata.name", "metadata.namespace", "status.phase"}, unknownFields)
			return &problem{path: at, message: fmt.Sprintf("unknown field %q of a pod", field), fix: policy.Suggest(field, known, "use metadata.name, metadata.namespace or status.phase")}
		}
	}
	return nil
}

// unknownFields are those that only the API server knows.
var unknownFields = []string{"spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "status.podIP", "status.nominatedNodeName"}

// plain gives the glob that matches exactly this name: names of Kubernetes have
// no special characters, wrong ones must not become globs.
func plain(name string) string { return policy.EscapeGlob(name) }

func sortedKeys[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
