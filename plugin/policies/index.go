package policies

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/faultgraft/faultgraft/policy/selection"
)

// index finds the policies that a container may match without asking each of
// them: by one label, pod label or namespace that a policy insists on.
type index struct {
	// where is the list that each policy is in, by name.
	where map[string][]term
	lists map[term][]*live
	rest  []*live // those that insist on none of these
}

// term is a field with the value that a policy insists on.
type term struct{ field, key, value string }

func newIndex() index { return index{where: map[string][]term{}, lists: map[term][]*live{}} }

// terms are what the policy goes into the index by: any container that it
// matches has at least one of them. Nil: there are none.
func (i *index) terms(x *live) []term {
	sel := &x.Policy.Spec.Selector
	var labels []term
	for k, v := range sel.MatchLabels {
		labels = append(labels, term{"label", k, v})
	}
	if sel.PodSelector != nil {
		for k, v := range sel.PodSelector.MatchLabels {
			labels = append(labels, term{"podLabel", k, v})
		}
	}
	if len(labels) > 0 { // the one that the fewest others insist on says the most
		return []term{slices.MinFunc(labels, func(a, b term) int {
			if d := len(i.lists[a]) - len(i.lists[b]); d != 0 {
				return d
			}
			return strings.Compare(a.key+"="+a.value, b.key+"="+b.value)
		})}
	}
	for _, f := range []struct {
		name string
		list []string
	}{{"podNamespace", sel.PodNamespaces}, {"namespace", sel.Namespaces}} {
		if len(f.list) == 0 || slices.ContainsFunc(f.list, isGlob) {
			continue
		}
		var terms []term
		for _, n := range f.list {
			terms = append(terms, term{f.name, "", n})
		}
		return terms
	}
	return nil
}

// isGlob reports whether a pattern is more than a name.
func isGlob(pattern string) bool { return strings.ContainsAny(pattern, `*?[]{}\!`) }

func (i *index) add(x *live) {
	terms := i.terms(x)
	if terms == nil {
		i.rest = append(i.rest, x)
		return
	}
	i.where[x.name()] = terms
	for _, t := range terms {
		i.lists[t] = append(i.lists[t], x)
	}
}

func (i *index) remove(x *live) {
	is := func(e *live) bool { return e == x }
	terms, ok := i.where[x.name()]
	if !ok {
		i.rest = slices.DeleteFunc(i.rest, is)
		return
	}
	delete(i.where, x.name())
	for _, t := range terms {
		if i.lists[t] = slices.DeleteFunc(i.lists[t], is); len(i.lists[t]) == 0 {
			delete(i.lists, t)
		}
	}
}

// candidates are the policies that may match a container; one may come twice.
func (i *index) candidates(c *selection.Container) iter.Seq[*live] {
	return func(yield func(*live) bool) {
		list := func(l []*live) bool {
			for _, x := range l {
				if !yield(x) {
					return false
				}
			}
			return true
		}
		pairs := func(field string, m map[string]string) bool {
			for k, v := range maps.All(m) {
				if !list(i.lists[term{field, k, v}]) {
					return false
				}
			}
			return true
		}
		_ = list(i.rest) && pairs("label", c.Labels) && pairs("podLabel", c.PodLabels) &&
			list(i.lists[term{"podNamespace", "", c.PodNamespace}]) && list(i.lists[term{"namespace", "", c.Namespace}])
	}
}
