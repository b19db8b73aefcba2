package limits

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// The types of single values check themselves when text is read, so that a
// reader of YAML can add the place.

// Glob is a pattern over a name: * stands for any characters, also slashes, ?
// for one, [a-c] for one of these.
type Glob string

// UnmarshalText checks the pattern.
func (g *Glob) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		return fmt.Errorf("the pattern is empty: write a name, or * for all")
	}
	if _, err := path.Match(flat(string(text)), ""); err != nil {
		return fmt.Errorf("%q is not a pattern: write \\[ for a bracket", text)
	}
	*g = Glob(text)
	return nil
}

// slashless stands for a slash while path.Match looks: its * stops at slashes.
const slashless = "\x1f"

func flat(s string) string { return strings.ReplaceAll(s, "/", slashless) }

func (g Glob) match(name string) bool {
	if name == "" {
		return false
	}
	ok, err := path.Match(flat(string(g)), flat(name))
	return ok && err == nil // a wrong pattern matches nothing; UnmarshalText and Check refuse it
}

// Namespaces is a Glob over the namespace of a container's pod, or over the
// containerd namespace of a container without one; with a slash it is over
// CONTAINERD-NAMESPACE/POD-NAMESPACE.
type Namespaces string

// UnmarshalText checks the pattern.
func (n *Namespaces) UnmarshalText(text []byte) error {
	if string(text) == criNamespace {
		return fmt.Errorf("%s is the containerd namespace of all pods: name namespaces of pods, or write %s/* for all of them", criNamespace, criNamespace)
	}
	var g Glob
	if err := g.UnmarshalText(text); err != nil {
		return err
	}
	*n = Namespaces(g)
	return nil
}

// criNamespace is the containerd namespace of containers that Kubernetes starts.
const criNamespace = "k8s.io"

func (n Namespaces) match(c *Container) bool {
	switch g := Glob(n); {
	case strings.Contains(string(n), "/"):
		return c.PodNamespace != "" && g.match(c.Namespace+"/"+c.PodNamespace)
	case c.PodNamespace != "":
		return g.match(c.PodNamespace)
	default:
		return g.match(c.Namespace)
	}
}

// Action is what an io rule does: error, latency and so on.
type Action string

var actions = []Action{"error", "latency", "hang", "throttle", "short", "corrupt", "torn", "lost", "nospace", "quota", "attr"}

// UnmarshalText refuses what is no action.
func (a *Action) UnmarshalText(text []byte) error {
	if !slices.Contains(actions, Action(text)) {
		return fmt.Errorf("unknown action %q; %s", text, near(string(text), actions, "the actions are "))
	}
	*a = Action(text)
	return nil
}

// actionsOf lists what a rule does.
func actionsOf(f *policy.IOFault) []Action {
	var out []Action
	for _, a := range []struct {
		on   bool
		name Action
	}{
		{f.Throttle != nil, "throttle"}, {f.Latency != nil, "latency"}, {f.Hang, "hang"}, {len(f.Errors) > 0, "error"},
		{f.Short != nil, "short"}, {f.Corrupt != nil, "corrupt"}, {f.Torn != nil, "torn"}, {f.Lost, "lost"},
		{f.Space != nil && !f.Space.Quota, "nospace"}, {f.Space != nil && f.Space.Quota, "quota"}, {f.Attr != nil, "attr"},
	} {
		if a.on {
			out = append(out, a.name)
		}
	}
	return out
}

// Hooks is a Glob over hook points as rules write them: slab, page, bio,
// function:NAME, syscall:NAME, lsm:NAME. One without a name has all of its kind.
type Hooks string

var hookKinds = []string{"slab", "page", "bio", "function", "syscall", "lsm"}

// UnmarshalText refuses what can be no hook point.
func (h *Hooks) UnmarshalText(text []byte) error {
	var g Glob
	if err := g.UnmarshalText(text); err != nil {
		return err
	}
	kind, _, _ := strings.Cut(string(text), ":")
	if !strings.ContainsAny(kind, `*?[\`) && !slices.Contains(hookKinds, kind) {
		return fmt.Errorf("unknown hook point %q; %s", text, near(kind, hookKinds, "they are slab, page, bio, function:NAME, syscall:NAME and lsm:NAME, and * for all: the kinds are "))
	}
	*h = Hooks(g)
	return nil
}

func (h Hooks) match(p policy.Hook) bool {
	return Glob(h).match(p.String()) || string(h) == p.Kind
}

// Duration is a time.Duration that text writes as 90s or 1h30m; above zero.
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration does; a bare number has no unit and is refused.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration: write a number with its unit, as in 1500ms or 10m", text)
	}
	if v <= 0 {
		return fmt.Errorf("a duration of %s: it must be above zero", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Count is a number of containers.
type Count uint32

// Percent is a share, 0 to 100.
type Percent uint8

// near says which known word was probably meant, or what there is.
func near[T ~string](word string, known []T, otherwise string) string {
	all := make([]string, 0, len(known))
	for _, k := range known {
		all = append(all, string(k))
	}
	return policy.Suggest(word, all, otherwise+strings.Join(all, ", "))
}
