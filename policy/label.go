package policy

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Domain is the domain of the labels and annotations that faultgraft reads.
const Domain = "faultgraft.io"

// MaxRules is how many rules one container can have.
const MaxRules = 64

// Subject is a container whose labels are read.
type Subject struct {
	// Labels are the container's labels, or its annotations merged with those of its pod.
	Labels map[string]string
	// ContainerName is the container's name in its pod, which
	// RULE.faultgraft.io/container.NAME refers to.
	ContainerName string
	// Kind is what errors call the entries of Labels: "label" when empty, or "annotation".
	Kind string
}

// Result is what the labels of a container ask for.
type Result struct {
	// Rules are the rules without a problem, by name; io and kernel rules.
	Rules []Rule
	// Policies are the policies that policy.faultgraft.io asks for, by their names; whether the node
	// knows them is not judged here.
	Policies []string
	// Disabled says that enable.faultgraft.io forbids faults in this container; there are no rules then.
	Disabled bool
	// Problems are the labels that were refused, each with the reason.
	Problems []*SyntaxError
}

// reach is how specific a label is; of two labels for one rule the more
// specific one counts.
type reach int

const (
	plain reach = iota
	pod
	container
	elsewhere // names another container
)

var containerName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// ParseLabels reads the rules in a container's labels. What is wrong with one
// label is a problem of that label alone; it is never replaced by a less
// specific one, which would be another rule than asked for. Labels of other
// domains are not looked at.
//
// A label that applies to another container of the pod, and one that a more
// specific label overrides, count for nothing here. enable=false beats all;
// any value of it that is not "true" counts as false, so that a misspelt
// refusal stays a refusal.
func ParseLabels(s Subject, d Defaults) Result {
	kind := s.Kind
	if kind == "" {
		kind = "label"
	}
	var res Result
	type choice struct {
		reach reach
		src   source
	}
	chosen := make(map[string]choice)
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		if !ours(key) {
			continue
		}
		src := source{kind: kind, name: key, text: s.Labels[key]}
		rule, reach, err := parseKey(src, s.ContainerName)
		switch {
		case err != nil:
			res.Problems = append(res.Problems, err)
		case reach == elsewhere:
		case rule == "enable":
			off, err := src.enable()
			res.Disabled = res.Disabled || off
			if err != nil {
				res.Problems = append(res.Problems, err)
			}
		default:
			if c, ok := chosen[rule]; !ok || reach > c.reach {
				chosen[rule] = choice{reach, src}
			}
		}
	}
	if res.Disabled {
		return res
	}
	for _, name := range slices.Sorted(maps.Keys(chosen)) {
		src := chosen[name].src
		var err *SyntaxError
		switch {
		case name == "policy":
			res.Policies, err = src.policies()
		case len(res.Rules) == MaxRules:
			err = src.whole("use fewer rules", "the container has more than %d rules; this one is not applied", MaxRules)
		default:
			var p *ruleParser
			if p, err = parse(src, name, d); err == nil {
				res.Rules = append(res.Rules, p.rule)
			}
		}
		if err != nil {
			res.Problems = append(res.Problems, err)
		}
	}
	return res
}

// ours reports whether a key is in our domain, also when it is spelt wrong.
func ours(key string) bool {
	domain, _, _ := strings.Cut(strings.ToLower(key), "/")
	return domain == Domain || strings.HasSuffix(domain, "."+Domain)
}

// parseKey takes the key of a label apart.
func parseKey(src source, self string) (rule string, r reach, err *SyntaxError) {
	const fix = "use RULE." + Domain + ", RULE." + Domain + "/pod or RULE." + Domain + "/container.NAME"
	domain, scope, scoped := strings.Cut(src.name, "/")
	rule, ok := strings.CutSuffix(domain, "."+Domain)
	if !ok || len(rule) > MaxNameLength || !ruleName.MatchString(rule) {
		return "", 0, src.whole(fix+" with a RULE of up to 63 lower-case letters, digits and inner hyphens", "the key names no rule")
	}
	name, isContainer := strings.CutPrefix(scope, "container.")
	switch {
	case !scoped:
		return rule, plain, nil
	case scope == "pod":
		return rule, pod, nil
	case !isContainer:
		return "", 0, src.whole(fix, "the key has %q after the slash", scope)
	case !containerName.MatchString(name):
		return "", 0, src.whole(fix, "%q is not the name of a container", name)
	case name == self:
		return rule, container, nil
	}
	return rule, elsewhere, nil
}

// policyName is a DNS subdomain (RFC 1123), as the names of policies are.
var policyName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// policies reads the value of policy.faultgraft.io: names with commas between them.
func (s source) policies() ([]string, *SyntaxError) {
	names := strings.Split(s.text, ",")
	for i, n := range names {
		if names[i] = strings.TrimSpace(n); len(names[i]) > 253 || !policyName.MatchString(names[i]) {
			return nil, s.whole("write the names of policies of this node, with commas between them, as in pg-wal,pg-oom", "%q is not the name of a policy", names[i])
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// enable reads the value of enable.faultgraft.io.
func (s source) enable() (off bool, err *SyntaxError) {
	switch s.text {
	case "true":
		return false, nil
	case "false":
		return true, nil
	}
	return true, s.whole("write true or false", "the value %q is neither true nor false; taken as false", s.text)
}
