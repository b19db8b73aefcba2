package faultpolicy

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/schedule"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// Limits and defaults of a policy.
const (
	// MaxNameLength is the length of a policy's name (a DNS subdomain, RFC 1123).
	MaxNameLength = 253
	// MaxStopConditions is how many a policy can have.
	MaxStopConditions = 16
	// DefaultInterval is the time from one probe of a stop condition to the next.
	DefaultInterval = Duration(5 * time.Second)
	// DefaultTimeout is after how long a probe has failed.
	DefaultTimeout = Duration(2 * time.Second)
	// MinInterval bounds what probes cost.
	MinInterval = Duration(time.Second)
	maxItems    = 256 // of a list of globs, expressions or values
)

var policyName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// Check reports all that is wrong with a policy that did not come from Decode;
// SetDefaults comes first. It does not judge how long a ttl is, which is up to
// the node. The error is strictyaml.Errors, without file and line.
func (p *FaultPolicy) Check() error {
	return p.check(unbounded).errors(nil).OrNil()
}

func (p *FaultPolicy) check(d policy.Defaults) problems {
	var found problems
	found.head(p)
	s := &p.Spec
	found.selector(&s.Selector)
	found.mode(s)
	found.timing(&s.Timing)
	found.guard(&s.Guard)
	found.faults(s)
	for i := range s.Faults {
		rule, err := s.Faults[i].rule(&s.Timing, faultPath(i), d)
		if err != nil {
			found = append(found, err)
			continue
		}
		if ttl := time.Duration(s.Timing.TTL); ttl > 0 && rule.Trigger.TTL > ttl {
			at := faultPath(i) + ".trigger.ttl"
			if s.Faults[i].Rule != "" {
				at = faultPath(i) + ".rule"
			}
			found.add(at, fmt.Sprintf("a ttl of %v is longer than the policy's (%v)", rule.Trigger.TTL, ttl), "shorten it, or leave it out")
		}
	}
	// A mistake in timing is one of each fault as well.
	var once problems
	for _, f := range found {
		if !slices.ContainsFunc(once, func(o *problem) bool { return o.path == f.path }) {
			once = append(once, f)
		}
	}
	return once
}

func (p *problems) head(f *FaultPolicy) {
	switch {
	case f.APIVersion == "":
		p.add("apiVersion", "apiVersion is missing", "add apiVersion: "+APIVersion)
	case f.APIVersion != APIVersion:
		p.add("apiVersion", fmt.Sprintf("unknown apiVersion %q", f.APIVersion), "write "+APIVersion)
	}
	switch {
	case f.Kind == "":
		p.add("kind", "kind is missing", "add kind: "+Kind)
	case f.Kind != Kind:
		p.add("kind", fmt.Sprintf("unknown kind %q", f.Kind), "write "+Kind)
	}
	const fix = "use up to 253 lower-case letters, digits, inner hyphens and dots"
	switch name := f.Metadata.Name; {
	case name == "":
		p.add("metadata.name", "the policy has no name", "add metadata: {name: NAME}")
	case len(name) > MaxNameLength || !policyName.MatchString(name):
		p.add("metadata.name", fmt.Sprintf("%.60q is not a name for a policy", name), fix)
	}
}

func (p *problems) selector(s *Selector) {
	const at = "spec.selector"
	before := len(*p)
	for _, list := range []struct {
		name  string
		globs []string
	}{
		{"namespaces", s.Namespaces}, {"images", s.Images}, {"containerNames", s.ContainerNames},
		{"podNames", s.PodNames}, {"podNamespaces", s.PodNamespaces}, {"pods", s.Pods},
	} {
		p.globs(at+"."+list.name, list.globs)
	}
	for i, pod := range s.Pods {
		if !strings.Contains(pod, "/") {
			p.add(strictyaml.Item(at+".pods", i), fmt.Sprintf("%q has no slash", pod), "write NAMESPACE/NAME, or use podNames")
		}
	}
	p.labels(at+".matchLabels", s.MatchLabels)
	p.labels(at+".matchAnnotations", s.MatchAnnotations)
	p.requirements(at+".matchExpressions", s.MatchExpressions)
	if pods := s.PodSelector; pods != nil {
		if len(pods.MatchLabels) == 0 && len(pods.MatchExpressions) == 0 && len(pods.MatchAnnotations) == 0 {
			p.add(at+".podSelector", "the selector is empty", `leave it out; for all containers of pods, write podNames: ["*"]`)
		}
		p.labels(at+".podSelector.matchLabels", pods.MatchLabels)
		p.labels(at+".podSelector.matchAnnotations", pods.MatchAnnotations)
		p.requirements(at+".podSelector.matchExpressions", pods.MatchExpressions)
	}
	if s.MaxAge > 0 && s.MinAge >= s.MaxAge {
		p.add(at+".maxAge", fmt.Sprintf("maxAge %v is not above minAge %v: no container is of such an age", s.MaxAge, s.MinAge), "make it longer")
	}
	if s.empty() && len(*p) == before {
		p.add(at, "the selector is empty", `say which containers the policy is for; for all that the node allows, write namespaces: ["*"]`)
	}
}

func (s *Selector) empty() bool {
	return len(s.Namespaces)+len(s.MatchLabels)+len(s.MatchExpressions)+len(s.MatchAnnotations)+len(s.Images)+len(s.ContainerNames)+
		len(s.PodNames)+len(s.PodNamespaces)+len(s.Pods) == 0 && s.PodSelector == nil && s.MinAge == 0 && s.MaxAge == 0
}

// list checks the length of a list that is there.
func (p *problems) list(at string, n int, there bool) {
	switch {
	case there && n == 0:
		p.add(at, "the list is empty", "leave it out to match all")
	case n > maxItems:
		p.add(at, fmt.Sprintf("a list of %d items, the limit is %d", n, maxItems), "use globs, or several policies")
	}
}

func (p *problems) globs(at string, globs []string) {
	p.list(at, len(globs), globs != nil)
	for i, text := range globs {
		_, err := policy.CompileNameGlob(text)
		var wrong *policy.SyntaxError
		if errors.As(err, &wrong) {
			p.add(strictyaml.Item(at, i), wrong.Message, wrong.Fix)
		}
	}
}

func (p *problems) labels(at string, labels map[string]string) {
	p.list(at, len(labels), labels != nil)
	if _, has := labels[""]; has {
		p.add(strictyaml.Field(at, ""), "a key is empty", "write KEY: VALUE")
	}
}

func (p *problems) requirements(at string, all []Requirement) {
	p.list(at, len(all), all != nil)
	for i, r := range all {
		at := strictyaml.Item(at, i)
		if r.Key == "" {
			p.add(at+".key", "the key is missing", "add key: LABEL")
		}
		switch r.Operator {
		case In, NotIn:
			if len(r.Values) == 0 {
				p.add(at+".values", fmt.Sprintf("%s has no values", r.Operator), "add values: [VALUE, ...]")
			}
		case Exists, DoesNotExist:
			if len(r.Values) > 0 {
				p.add(at+".values", fmt.Sprintf("%s takes no values", r.Operator), "leave them out, or use In or NotIn")
			}
		case "":
			p.add(at+".operator", "the operator is missing", "add operator: In, NotIn, Exists or DoesNotExist")
		default:
			p.add(at+".operator", fmt.Sprintf("unknown operator %q", r.Operator), "write In, NotIn, Exists or DoesNotExist")
		}
		if len(r.Values) > maxItems {
			p.list(at+".values", len(r.Values), true)
		}
	}
}

func (p *problems) enumeration(at, value string, values []string) {
	if value != "" && !slices.Contains(values, value) {
		p.add(at, fmt.Sprintf("unknown value %q", value), policy.Suggest(value, values, "write one of "+strings.Join(values, ", ")))
	}
}

func (p *problems) mode(s *Spec) {
	p.enumeration("spec.mode", string(s.Mode), s.Mode.Values())
	p.enumeration("spec.whenNothingMatches", string(s.WhenNothingMatches), s.WhenNothingMatches.Values())
	const at = "spec.value"
	switch s.Mode {
	case ModeOne, ModeAll, "":
		if s.Value != 0 {
			p.add(at, "the mode "+string(s.Mode)+" takes no value", "leave it out, or use the mode fixed or fixed-percent")
		}
	case ModeFixed:
		if s.Value < 1 {
			p.add(at, "the mode fixed needs a value from 1: the number of containers", "add value: 2")
		}
	default:
		if s.Value < 1 || s.Value > 100 {
			p.add(at, "the mode "+string(s.Mode)+" needs a value from 1 to 100: percent of the containers that match", "add value: 50")
		}
	}
}

func (p *problems) timing(t *Timing) {
	const at = "spec.timing"
	for _, d := range []struct {
		name  string
		value Duration
	}{{"delay", t.Delay}, {"active", t.Active}, {"idle", t.Idle}, {"ttl", t.TTL}} {
		if d.value < 0 {
			p.add(at+"."+d.name, fmt.Sprintf("%v is negative", d.value), "write a time above 0")
		}
	}
	switch {
	case t.Active != 0 && t.Idle == 0:
		p.add(at+".active", "active without idle", "add idle, how long the faults rest between two pulses")
	case t.Idle != 0 && t.Active == 0:
		p.add(at+".idle", "idle without active", "add active, how long each pulse is")
	}
	if t.TTL != 0 && t.Delay >= t.TTL {
		p.add(at+".delay", fmt.Sprintf("a delay of %v is not shorter than the policy lives (ttl %v): it would never act", t.Delay, t.TTL), "shorten it, or give the policy a longer ttl")
	}
	p.enumeration(at+".concurrency", string(t.Concurrency), t.Concurrency.Values())
	if t.Schedule == "" {
		if t.TimeZone != "" {
			p.add(at+".timeZone", "timeZone without schedule", "add a schedule, or leave it out")
		}
		if t.Concurrency != "" {
			p.add(at+".concurrency", "concurrency without schedule", "add a schedule, or leave it out")
		}
		return
	}
	if t.TTL == 0 {
		p.add(at+".ttl", "a schedule without ttl", "add ttl, how long each run takes")
	}
	if _, err := schedule.Parse(t.Schedule, t.TimeZone); err != nil {
		where := at + ".schedule"
		if _, zone := time.LoadLocation(t.TimeZone); zone != nil {
			where = at + ".timeZone"
		}
		message, fix, _ := strings.Cut(err.Error(), "; ")
		p.add(where, message, fix)
	}
}

func (p *problems) guard(g *Guard) {
	const at = "spec.guard"
	if g.MaxContainers < 0 {
		p.add(at+".maxContainers", fmt.Sprintf("%d is negative", g.MaxContainers), "write a number from 1, or leave it out")
	}
	if g.MaxPercent < 0 || g.MaxPercent > 100 {
		p.add(at+".maxPercent", fmt.Sprintf("%d is not a share", g.MaxPercent), "write a number from 1 to 100, or leave it out")
	}
	conditions := at + ".stopConditions"
	if len(g.StopConditions) > MaxStopConditions {
		p.add(conditions, fmt.Sprintf("%d stop conditions, the limit is %d", len(g.StopConditions), MaxStopConditions), "let one command ask several things")
	}
	seen := make(map[string]bool)
	for i := range g.StopConditions {
		c := &g.StopConditions[i]
		at := strictyaml.Item(conditions, i)
		if c.Name != "" && (len(c.Name) > policy.MaxNameLength || !policyName.MatchString(c.Name)) {
			p.add(at+".name", fmt.Sprintf("%.60q is not a name", c.Name), "use up to 63 lower-case letters, digits, inner hyphens and dots")
		}
		if seen[c.Name] {
			p.add(at+".name", fmt.Sprintf("the name %q is given twice", c.Name), "name each stop condition differently")
		}
		seen[c.Name] = c.Name != ""
		p.stopCondition(at, c)
	}
}

func (p *problems) stopCondition(at string, c *StopCondition) {
	switch {
	case c.HTTP == nil && c.Command == nil:
		p.add(at, "a stop condition is http or command", `add http: {url: "http://127.0.0.1:8080/health"}, or command: [/usr/local/bin/probe]`)
	case c.HTTP != nil && c.Command != nil:
		p.add(at+".command", "http and command cannot stand together", "use a stop condition for each")
	case c.HTTP != nil:
		p.httpProbe(at+".http", c.HTTP)
	case len(c.Command) == 0 || !path.IsAbs(c.Command[0]):
		p.add(at+".command", "the program is not an absolute path", "write command: [/usr/local/bin/probe, ARGUMENT, ...]")
	}
	if c.Interval != 0 && c.Interval < MinInterval {
		p.add(at+".interval", fmt.Sprintf("an interval of %v", c.Interval), fmt.Sprintf("the least is %v", MinInterval))
	}
	if c.Timeout < 0 || c.Interval != 0 && c.Timeout > c.Interval {
		p.add(at+".timeout", fmt.Sprintf("a timeout of %v is longer than the interval (%v)", c.Timeout, c.Interval), "shorten it, or probe less often")
	}
	if c.FailureThreshold < 0 {
		p.add(at+".failureThreshold", fmt.Sprintf("%d is negative", c.FailureThreshold), "write a number from 1")
	}
}

func (p *problems) httpProbe(at string, h *HTTPProbe) {
	u, err := url.Parse(h.URL)
	switch {
	case h.URL == "":
		p.add(at+".url", "the url is missing", `add url: "http://127.0.0.1:8080/health"`)
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		p.add(at+".url", fmt.Sprintf("%.60q is not a URL of http or https", h.URL), `write for instance "http://127.0.0.1:8080/health"`)
	case u.User != nil:
		p.add(at+".url", "a URL with a password", "policies are shown to users: probe with a command that reads its secret from a file")
	}
	for i, status := range h.Status {
		if status < 100 || status > 599 {
			p.add(strictyaml.Item(at+".status", i), fmt.Sprintf("%d is not a status of HTTP", status), "write 100 to 599")
		}
	}
}

func (p *problems) faults(s *Spec) {
	const at = "spec.faults"
	switch {
	case len(s.Faults) == 0:
		p.add(at, "the policy has no faults", "add faults: [{name: NAME, io: {...}}]")
	case len(s.Faults) > policy.MaxRules:
		p.add(at, fmt.Sprintf("%d faults, the limit is %d", len(s.Faults), policy.MaxRules), "use several policies")
	}
	seen := make(map[string]bool)
	for i := range s.Faults {
		f := &s.Faults[i]
		at := faultPath(i)
		switch {
		case f.Name == "":
			p.add(at+".name", "the fault has no name", "add name: NAME")
		case !policy.IsName(f.Name):
			p.add(at+".name", fmt.Sprintf("%.60q is not a name for a rule", f.Name), "use up to 63 lower-case letters, digits and inner hyphens")
		case seen[f.Name]:
			p.add(at+".name", fmt.Sprintf("the name %q is given twice", f.Name), "name each fault differently")
		}
		seen[f.Name] = true
		kinds := 0
		for _, is := range []bool{f.IO != nil, f.Kernel != nil, f.Rule != ""} {
			if is {
				kinds++
			}
		}
		if kinds > 1 {
			p.add(at, "a fault is one of io, kernel and rule", "use a fault for each")
		}
		if f.Rule != "" && f.Trigger != (Trigger{}) {
			p.add(at+".trigger", "rule and trigger cannot stand together", "write the trigger in the rule, such as p=5% times=10")
		}
	}
}
