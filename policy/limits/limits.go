// Package limits says what labels, policies and persons may ask for on a node.
// It is pure: no system calls and no clock.
//
// The limits are the node operator's. Labels and annotations come from whoever
// may start a container, so that what they can ask for is narrow unless the
// operator widens it: the zero value of Limits opts in no namespace.
package limits

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// DefaultFile is where the node's configuration is looked for.
const DefaultFile = "/etc/faultgraft/config.yaml"

// What holds where the configuration says nothing.
const (
	// DefaultLabelsMaxTTL is the longest ttl that a label can ask for.
	DefaultLabelsMaxTTL = time.Hour
	// DefaultMaxPercent is the share of the node's containers that can have faults at a time.
	DefaultMaxPercent = 100
)

// Limits is the part of a node's configuration that says what may be asked for.
// A list that is nil has its default; an empty one is empty. The zero value
// holds the defaults.
type Limits struct {
	// Labels is what labels and annotations may ask for.
	Labels Scope `json:"labels,omitzero"`
	// Policies is what FaultPolicies may ask for.
	Policies Scope `json:"policies,omitzero"`
	// Node bounds labels and policies together; what root asks for with `faultgraft inject` is not bound by it.
	Node Node `json:"limits,omitzero"`
	// Protected are containers that nothing may touch, whoever asks.
	Protected Protected `json:"protected,omitzero"`
	// File is where the limits were read, for errors; empty means DefaultFile.
	File string `json:"-"`
}

// Scope is what one way of asking may ask for.
type Scope struct {
	// Namespaces are those whose containers may be asked about: the namespace of
	// its pod for a container of a pod, else its containerd namespace.
	// Default: none for labels, all for policies.
	Namespaces []Namespaces `json:"namespaces,omitzero"`
	// Actions of io rules: default all.
	Actions []Action `json:"actions,omitzero"`
	// Hooks are hook points of kernel rules: default none for labels, all for policies.
	Hooks []Hooks `json:"hooks,omitzero"`
	// MaxTTL is the longest ttl; default DefaultLabelsMaxTTL for labels, for policies that of the node.
	MaxTTL Duration `json:"maxTTL,omitzero"`
}

// Node are the limits of the whole node.
type Node struct {
	// MaxTTL is the longest ttl of anything; default policy.DefaultMaxTTL.
	MaxTTL Duration `json:"maxTTL,omitzero"`
	// DefaultTTL is the ttl of what gives none; default policy.DefaultTTL.
	DefaultTTL Duration `json:"defaultTTL,omitzero"`
	// MaxContainers is how many containers can have faults at a time; 0 means any number.
	MaxContainers Count `json:"maxContainers"`
	// MaxPercent is which share of the running containers that are not protected can have faults
	// at a time, rounded down; default DefaultMaxPercent.
	MaxPercent *Percent `json:"maxPercent,omitzero"`
}

// Protected are containers that no fault may touch. One match suffices.
type Protected struct {
	// Namespaces are containerd namespaces or namespaces of pods; default kube-system.
	Namespaces []Glob `json:"namespaces,omitzero"`
	// Labels are labels or annotations of the container or its pod, each with a glob over its value.
	Labels map[string]Glob `json:"labels,omitzero"`
	// Names are names of containers, of pods, or POD/CONTAINER.
	Names []Glob `json:"names,omitzero"`
	// Images are images as the container names them, with or without registry and tag.
	Images []Glob `json:"images,omitzero"`
}

// DefaultProtectedNamespaces are never touched unless the configuration says otherwise.
var DefaultProtectedNamespaces = []Glob{"kube-system"}

// Asker is a way of asking for faults that has limits of its own.
type Asker string

// The ways of asking, named as in the configuration.
const (
	Labels   Asker = "labels"
	Policies Asker = "policies"
)

// Effective gives the limits with all defaults written out.
func (l Limits) Effective() Limits {
	l.Labels, l.Policies = l.scope(Labels), l.scope(Policies)
	l.Node.MaxTTL = Duration(l.maxTTL())
	l.Node.DefaultTTL = Duration(l.defaultTTL())
	percent := l.maxPercent()
	l.Node.MaxPercent = &percent
	l.Protected.Namespaces = slices.Clone(l.protectedNamespaces())
	l.Protected.Labels = maps.Clone(l.Protected.Labels)
	return l
}

// scope gives what an asker may ask for, with its defaults.
func (l *Limits) scope(who Asker) Scope {
	s := l.Policies
	var namespaces []Namespaces
	var hooks []Hooks
	ttl := l.maxTTL()
	if who == Labels {
		s = l.Labels
		ttl = min(ttl, DefaultLabelsMaxTTL)
		namespaces, hooks = []Namespaces{}, []Hooks{}
	} else {
		namespaces, hooks = []Namespaces{"*"}, []Hooks{"*"}
	}
	if s.Namespaces == nil {
		s.Namespaces = namespaces
	}
	if s.Actions == nil {
		s.Actions = slices.Clone(actions)
	}
	if s.Hooks == nil {
		s.Hooks = hooks
	}
	s.MaxTTL = cmp.Or(s.MaxTTL, Duration(ttl))
	return s
}

func (l *Limits) maxTTL() time.Duration {
	return cmp.Or(time.Duration(l.Node.MaxTTL), policy.DefaultMaxTTL)
}

func (l *Limits) defaultTTL() time.Duration {
	return cmp.Or(time.Duration(l.Node.DefaultTTL), min(policy.DefaultTTL, l.maxTTL()))
}

func (l *Limits) maxPercent() Percent {
	if l.Node.MaxPercent == nil {
		return DefaultMaxPercent
	}
	return *l.Node.MaxPercent
}

func (l *Limits) protectedNamespaces() []Glob {
	if l.Protected.Namespaces == nil {
		return DefaultProtectedNamespaces
	}
	return l.Protected.Namespaces
}

// MaxTTL is the longest ttl that an asker may ask for.
func (l *Limits) MaxTTL(who Asker) time.Duration {
	return min(time.Duration(l.scope(who).MaxTTL), l.maxTTL())
}

// Defaults are what rules of an asker are parsed with: a ttl beyond the limit is
// an error of the rule that names the limit.
func (l *Limits) Defaults(who Asker) policy.Defaults {
	most := l.MaxTTL(who)
	return policy.Defaults{TTL: min(l.defaultTTL(), most), MaxTTL: most, MaxTTLFrom: l.ttlField(who) + " of the node's configuration, " + l.file()}
}

// ttlField names the field that sets MaxTTL.
func (l *Limits) ttlField(who Asker) string {
	own := time.Duration(l.Policies.MaxTTL)
	if who == Labels {
		own = cmp.Or(time.Duration(l.Labels.MaxTTL), DefaultLabelsMaxTTL)
	}
	if own == 0 || own > l.maxTTL() {
		return "limits.maxTTL"
	}
	return string(who) + ".maxTTL"
}

func (l *Limits) file() string { return cmp.Or(l.File, DefaultFile) }
