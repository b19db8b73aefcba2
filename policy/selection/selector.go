package selection

import (
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

// Selector is a selector that is ready to match. It may be used from any number
// of goroutines.
type Selector struct {
	namespaces, names, pods, podNames, podNamespaces globs
	images                                           globs
	labels, annotations, podLabels, podAnnotations   []requirement
	pod                                              bool // the container must have a pod
	minAge, maxAge                                   time.Duration
}

// CompileSelector prepares a selector. The error names the field.
func CompileSelector(s faultpolicy.Selector) (*Selector, error) {
	out := &Selector{minAge: time.Duration(s.MinAge), maxAge: time.Duration(s.MaxAge), pod: s.PodSelector != nil}
	for _, list := range []struct {
		into *globs
		from []string
	}{
		{&out.namespaces, s.Namespaces}, {&out.images, s.Images}, {&out.names, s.ContainerNames},
		{&out.podNames, s.PodNames}, {&out.podNamespaces, s.PodNamespaces}, {&out.pods, s.Pods},
	} {
		for _, text := range list.from {
			g, err := policy.CompileNameGlob(text)
			if err != nil {
				return nil, err
			}
			*list.into = append(*list.into, g)
		}
	}
	out.labels = append(equal(s.MatchLabels), expressions(s.MatchExpressions)...)
	out.annotations = equal(s.MatchAnnotations)
	if p := s.PodSelector; p != nil {
		out.podLabels = append(equal(p.MatchLabels), expressions(p.MatchExpressions)...)
		out.podAnnotations = equal(p.MatchAnnotations)
	}
	return out, nil
}

// Matches reports whether a container matches at a time. It may change at until,
// by the container's age alone; zero: it does not. A container that does not run has no age:
// it does not match a selector with one. Protected is not looked at.
func (s *Selector) Matches(c *Container, now time.Time) (ok bool, until time.Time) {
	if !s.namespaces.match(c.Namespace) || !s.names.match(c.Name) || !s.podNames.match(c.Pod) || !s.podNamespaces.match(c.PodNamespace) {
		return false, time.Time{}
	}
	if c.Pod == "" && (s.pod || len(s.pods) > 0) || len(s.pods) > 0 && !s.pods.match(c.PodNamespace+"/"+c.Pod) {
		return false, time.Time{}
	}
	if !all(s.labels, c.Labels) || !all(s.annotations, c.Annotations) || !all(s.podLabels, c.PodLabels) || !all(s.podAnnotations, c.PodAnnotations) {
		return false, time.Time{}
	}
	if len(s.images) > 0 && !slices.ContainsFunc(imageNames(c.Image), s.images.match) {
		return false, time.Time{}
	}
	return s.age(c, now)
}

func (s *Selector) age(c *Container, now time.Time) (ok bool, until time.Time) {
	switch {
	case s.minAge == 0 && s.maxAge == 0:
		return true, time.Time{}
	case c.Started.IsZero():
		return false, time.Time{}
	}
	if old := c.Started.Add(s.minAge); now.Before(old) {
		return false, old
	}
	if s.maxAge == 0 {
		return true, time.Time{}
	}
	if old := c.Started.Add(s.maxAge); now.Before(old) {
		return true, old
	}
	return false, time.Time{}
}

// globs match what one of them matches; none match everything.
type globs []policy.NameGlob

func (g globs) match(name string) bool {
	if len(g) == 0 {
		return true
	}
	for _, one := range g {
		if one.Match(name) {
			return true
		}
	}
	return false
}

// requirement is one of a label.
type requirement struct {
	key      string
	operator faultpolicy.Operator
	values   []string
}

func equal(labels map[string]string) []requirement {
	out := make([]requirement, 0, len(labels))
	for k, v := range labels {
		out = append(out, requirement{k, faultpolicy.In, []string{v}})
	}
	slices.SortFunc(out, func(a, b requirement) int { return strings.Compare(a.key, b.key) })
	return out
}

func expressions(all []faultpolicy.Requirement) []requirement {
	out := make([]requirement, 0, len(all))
	for _, r := range all {
		out = append(out, requirement{r.Key, r.Operator, r.Values})
	}
	return out
}

func all(requirements []requirement, labels map[string]string) bool {
	for _, r := range requirements {
		if !r.holds(labels) {
			return false
		}
	}
	return true
}

func (r requirement) holds(labels map[string]string) bool {
	v, has := labels[r.key]
	switch r.operator {
	case faultpolicy.In:
		return has && slices.Contains(r.values, v)
	case faultpolicy.NotIn:
		return !has || !slices.Contains(r.values, v)
	case faultpolicy.Exists:
		return has
	case faultpolicy.DoesNotExist:
		return !has
	}
	return false // Check has refused it
}

// imageNames are the ways to write an image: docker.io/library/postgres:16 is
// also postgres:16, docker.io/library/postgres and postgres (the rules of
// github.com/distribution/reference, which is too slow for each container and policy).
func imageNames(image string) []string {
	if image == "" {
		return nil
	}
	names := make([]string, 0, 6)
	add := func(ref string) {
		names = append(names, ref)
		name, _, digest := strings.Cut(ref, "@")
		colon := strings.LastIndexByte(name, ':')
		tagged := colon > strings.LastIndexByte(name, '/')
		if digest && tagged { // name:tag@digest goes by both
			names = append(names, name)
		}
		if tagged {
			name = name[:colon]
		}
		if name != ref {
			names = append(names, name)
		}
	}
	const hub, official = "docker.io/", "library/"
	first, rest, hasSlash := strings.Cut(image, "/")
	switch {
	case !hasSlash: // postgres:16
		add(image)
		add(hub + official + image)
	case first+"/" == hub:
		add(image)
		add(strings.TrimPrefix(rest, official))
	case !strings.ContainsAny(first, ".:") && first != "localhost": // bitnami/redis
		add(image)
		add(hub + image)
	default:
		add(image)
	}
	return names
}
