package limits

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"

	"github.com/faultgraft/faultgraft/policy"
)

// Error is something that a limit forbids.
type Error struct {
	// Limit is the field of the configuration, such as labels.namespaces.
	Limit string
	// Message says what is forbidden, Fix what to change and where.
	Message, Fix string
}

// Error gives both on one line.
func (e *Error) Error() string { return e.Message + " (" + e.Limit + "); " + e.Fix }

func (l *Limits) refuse(limit, line, format string, args ...any) *Error {
	return &Error{Limit: limit, Message: fmt.Sprintf(format, args...), Fix: "to allow it, the node's configuration " + l.file() + " needs " + line}
}

// Protects says why no fault may touch a container, whoever asks; nil: one may.
func (l *Limits) Protects(c *Container) error {
	refuse := func(field string, what any, by Glob) error {
		return &Error{
			Limit: "protected." + field, Message: fmt.Sprintf("protected by the node's configuration: %v", what),
			Fix: fmt.Sprintf("%s lists %q there; without a line its default holds", l.file(), by),
		}
	}
	for _, g := range l.protectedNamespaces() {
		for _, n := range []string{c.PodNamespace, c.Namespace} {
			if g.match(n) {
				if l.Protected.Namespaces == nil {
					return &Error{
						Limit: "protected.namespaces", Message: "namespace " + n + " is protected by default",
						Fix: "it is touched only if " + l.file() + " has a list without it, as in `protected: {namespaces: []}`",
					}
				}
				return refuse("namespaces", "namespace "+n, g)
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(l.Protected.Labels)) {
		if v, ok := c.Labels[k]; ok && (l.Protected.Labels[k].match(v) || l.Protected.Labels[k] == "*") {
			return refuse("labels", "label "+k+"="+v, Glob(k)+": "+l.Protected.Labels[k])
		}
	}
	names := []string{c.Name, c.ID, c.Pod}
	if c.Pod != "" {
		names = append(names, c.Pod+"/"+c.Name)
	}
	for _, g := range l.Protected.Names {
		for _, n := range names {
			if g.match(n) {
				return refuse("names", "name "+n, g)
			}
		}
	}
	for _, g := range l.Protected.Images {
		for _, n := range imageNames(c.Image) {
			if g.match(n) {
				return refuse("images", "image "+c.Image, g)
			}
		}
	}
	return nil
}

// imageNames are the ways to write an image: docker.io/library/postgres:16 is
// also postgres:16 and postgres.
func imageNames(image string) []string {
	if image == "" {
		return nil
	}
	names := []string{image}
	if n, err := reference.ParseDockerRef(image); err == nil {
		names = append(names, n.String(), n.Name(), reference.FamiliarString(n), reference.FamiliarName(n))
	}
	return names
}

// Allows checks whether an asker may ask for a rule in a container. It does not
// ask whether the container is protected, which is so for everybody; see
// Protects. The error is an *Error.
func (l *Limits) Allows(who Asker, c *Container, r *policy.Rule) error {
	if err := l.AllowsContainer(who, c); err != nil {
		return err
	}
	return l.AllowsRule(who, r)
}

// AllowsContainer checks whether an asker may ask for anything in a container.
func (l *Limits) AllowsContainer(who Asker, c *Container) error {
	s := l.scope(who)
	if slices.ContainsFunc(s.Namespaces, func(n Namespaces) bool { return n.match(c) }) {
		return nil
	}
	what, name := "containerd namespace", c.Namespace
	if c.PodNamespace != "" {
		what, name = "Kubernetes namespace", c.PodNamespace
	}
	list := make([]string, 0, len(s.Namespaces)+1)
	for _, n := range s.Namespaces {
		list = append(list, quoted(string(n)))
	}
	return l.refuse(string(who)+".namespaces", l.line(who, "namespaces", append(list, quoted(name))),
		"%s may not ask for faults in %s %s, which is not opted in", who, what, name)
}

// AllowsRule checks what does not depend on a container: action, hook point, ttl.
func (l *Limits) AllowsRule(who Asker, r *policy.Rule) error {
	s := l.scope(who)
	if r.IO != nil {
		for _, a := range actionsOf(r.IO) {
			if !slices.Contains(s.Actions, a) {
				return l.refuse(string(who)+".actions", l.line(who, "actions", addTo(s.Actions, a)), "rule %s: %s may not ask for the action %s", r.Name, who, a)
			}
		}
	}
	if r.Kernel != nil {
		if h := r.Kernel.Hook; !slices.ContainsFunc(s.Hooks, func(g Hooks) bool { return g.match(h) }) {
			return l.refuse(string(who)+".hooks", l.line(who, "hooks", addTo(s.Hooks, Hooks(h.String()))), "rule %s: %s may not ask for kernel faults at the hook point %s", r.Name, who, h)
		}
	}
	return l.AllowsTTL(who, "rule "+r.Name, r.Trigger.TTL)
}

// AllowsTTL checks a ttl; what names whose it is.
func (l *Limits) AllowsTTL(who Asker, what string, ttl time.Duration) error {
	most := l.MaxTTL(who)
	if ttl <= most {
		return nil
	}
	field := l.ttlField(who)
	section, name, _ := strings.Cut(field, ".")
	return l.refuse(field, fmt.Sprintf("`%s: {%s: %v}`, or more", section, name, ttl), "%s: a ttl of %v is longer than this node allows, %v", what, ttl, most)
}

func (l *Limits) line(who Asker, field string, list []string) string {
	return fmt.Sprintf("`%s: {%s: [%s]}`", who, field, strings.Join(list, ", "))
}

func addTo[T ~string](list []T, one T) []string {
	out := make([]string, 0, len(list)+1)
	for _, x := range append(slices.Clone(list), one) {
		out = append(out, quoted(string(x)))
	}
	return out
}

// quoted writes a word as YAML's flow style needs it.
func quoted(s string) string {
	if strings.ContainsAny(s, "*?[]{}:,#&!|>'\"%@` ") {
		return `"` + s + `"`
	}
	return s
}

// Check says what in the limits makes no sense.
// What single values can get wrong was refused when they were read.
func (l *Limits) Check() []*Error {
	var errs []*Error
	bad := func(field, fix, format string, args ...any) {
		errs = append(errs, &Error{Limit: field, Message: fmt.Sprintf(format, args...), Fix: fix})
	}
	if l.Node.DefaultTTL != 0 && l.defaultTTL() > l.maxTTL() {
		bad("limits.defaultTTL", "make it shorter, or limits.maxTTL longer", "a default ttl of %v is longer than the longest one allowed, %v", l.defaultTTL(), l.maxTTL())
	}
	for _, who := range []Asker{Labels, Policies} {
		ttl := l.Labels.MaxTTL
		if who == Policies {
			ttl = l.Policies.MaxTTL
		}
		if time.Duration(ttl) > l.maxTTL() {
			bad(string(who)+".maxTTL", "make it shorter, or limits.maxTTL longer", "a ttl of %v is longer than the node allows, %v", time.Duration(ttl), l.maxTTL())
		}
	}
	if p := l.maxPercent(); p > 100 {
		bad("limits.maxPercent", "write 0 to 100", "%d is no share", p)
	}
	return errs
}
