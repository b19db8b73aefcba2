package plugin

import (
	"maps"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// State is what has come of a container's rules.
type State string

// The states of a container.
const (
	// StateNone: nothing asks for a fault, or what did has ended.
	StateNone State = "none"
	// StatePending: it has rules, and its task is not there yet or the graft is being made.
	StatePending State = "pending"
	// StateActive: a graft is on, or a kernel fault in force.
	StateActive State = "active"
	// StateRefused: its labels are wrong, or it is protected.
	StateRefused State = "refused"
	// StateFailed: a graft could not be made.
	StateFailed State = "failed"
	// StateGrafting and StateReverting: faults are being put in place, or taken off.
	StateGrafting  State = "grafting"
	StateReverting State = "reverting"
	// StateExcluded: enable.faultgraft.io=false.
	StateExcluded State = "excluded"
)

// Key names a container on this node: ids are unique in a containerd namespace only.
type Key struct {
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
}

// String gives NAMESPACE/ID.
func (k Key) String() string { return k.Namespace + "/" + k.ID }

// Container is one container of this node, as the agent knows it.
type Container struct {
	Key
	// Name is what its user calls it: nerdctl's name, or the container's name in its pod; else the id.
	Name string `json:"name"`
	// Pod and PodNamespace are set for a CRI container.
	Pod          string `json:"pod,omitempty"`
	PodNamespace string `json:"podNamespace,omitempty"`
	Image        string `json:"image,omitempty"`
	// PID is the first process of its task; 0: no task. StartTime is field 22 of /proc/PID/stat.
	PID       int    `json:"pid,omitempty"`
	StartTime uint64 `json:"startTime,omitempty"`
	// Labels are its labels and annotations, those of its pod included.
	Labels map[string]string `json:"labels,omitempty"`
	// Source is where the agent learned of it: nri or containerd.
	Source string `json:"source,omitempty"`
	// State and Reason say what has come of its rules, Since when that last changed.
	State  State     `json:"state"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
	// Problems are errors in its labels, and rules that cannot be carried out here, one line each.
	Problems []string `json:"problems,omitempty"`
	// Required: a policy asks that it does not start without its faults.
	Required bool `json:"required,omitempty"`
	// PauseMs is how long its processes stood still in the last graft, ungraft or change of rules, milliseconds.
	PauseMs float64 `json:"pauseMs,omitempty"`
	// Grafts are the ids of the grafts and kernel faults on it now, whoever asked for them.
	Grafts []string `json:"grafts,omitempty"`
	// Protected says why no fault may touch it; empty: one may.
	Protected string `json:"protected,omitempty"`

	// annotated are the keys of Labels that came from an annotation.
	annotated map[string]bool
	// waitsForPlace: as many containers have faults as the node allows.
	waitsForPlace bool
	// refusals are kernel rules that cannot be carried out here, one line each.
	refusals []string
	// meta is what it and its pod say about themselves, each by itself.
	meta metadata
	// ended: its task has ended, though containerd did not say so yet.
	ended bool
	// unmet are rules that policies ask for and that are not even tried, one line each.
	unmet []string
	// What a run of the loop did: rules that are in force, rules that are over for this
	// task, how long processes stood still, and the faults of policies' rules that ended.
	inPlace, over []ruleKey
	pausedMs      float64
	hits          map[string]uint64
}

// Where a container was seen.
const (
	sourceNRI        = "nri"
	sourceContainerd = "containerd"
)

// DisplayName is the name that tells a container from others: POD/NAME for CRI.
func (c *Container) DisplayName() string {
	if c.Pod != "" {
		return c.Pod + "/" + c.Name
	}
	return c.Name
}

// Target is the container as keepers know it.
func (c *Container) Target() keeper.Target {
	return keeper.Target{
		ID: c.ID, Name: c.DisplayName(), Namespace: c.Namespace,
		PID: c.PID, StartTime: c.StartTime, Labels: maps.Clone(c.Labels),
	}
}

// domain ends the keys that are ours; a suffix such as /pod may follow.
const domain = "." + policy.Domain

// ours takes the key of a rule apart; scope is "", "pod" or "container.NAME".
func ours(key string) (rule, scope string, ok bool) {
	head, scope, _ := strings.Cut(key, "/")
	rule, ok = strings.CutSuffix(head, domain)
	return rule, scope, ok
}

// hasRules reports whether any key speaks to faultgraft, also one that is spelt
// wrong: package policy says what is wrong with it.
func hasRules(labels map[string]string) bool {
	for k := range labels {
		head, _, _ := strings.Cut(strings.ToLower(k), "/")
		if head == policy.Domain || strings.HasSuffix(head, domain) {
			return true
		}
	}
	return false
}

// enableKey is the rule name that turns faultgraft off for a container or a pod.
const enableKey = "enable"

// metadata is what a container and its pod say about themselves.
type metadata struct {
	// devices are the rules of CDI devices that it was given.
	devices                   map[string]string
	podLabels, podAnnotations map[string]string
	labels, annotations       map[string]string
}

// merge puts labels and annotations into one map, the one that speaks closer to
// the container last: CDI devices, the pod's labels, its annotations, the container's labels,
// its annotations. A rule that the container itself carries hides the pod's rule
// of that name, except one the pod addresses to this container by name. A value
// of enable.faultgraft.io that turns faultgraft off is never hidden. annotated are the keys that came from an annotation.
func (m metadata) merge() (merged map[string]string, annotated map[string]bool) {
	merged, annotated = map[string]string{}, map[string]bool{}
	put := func(from map[string]string, annotation bool) {
		for k, v := range from {
			if rule, _, _ := ours(k); rule == enableKey && merged[k] != "" && merged[k] != "true" {
				continue
			}
			merged[k] = v
			delete(annotated, k)
			if annotation {
				annotated[k] = true
			}
		}
	}
	put(m.devices, true)
	put(m.podLabels, false)
	put(m.podAnnotations, true)
	for _, own := range []map[string]string{m.labels, m.annotations} {
		for k := range own {
			rule, scope, ok := ours(k)
			if !ok || rule == enableKey || scope != "" {
				continue
			}
			delete(merged, rule+domain)
			delete(merged, rule+domain+"/pod")
		}
	}
	put(m.labels, false)
	put(m.annotations, true)
	return merged, annotated
}

// originOf says where a rule of the container comes from.
func (c *Container) originOf(r policy.Rule) keeper.Origin {
	if r.Policy != "" {
		return keeper.OriginPolicy
	}
	return c.origin(r.Name)
}

// origin says how the rule of a label reached the container.
func (c *Container) origin(rule string) keeper.Origin {
	for _, suffix := range []string{"/container." + c.Name, "/pod", ""} {
		key := rule + domain + suffix
		if _, ok := c.Labels[key]; ok {
			if c.annotated[key] {
				return keeper.OriginAnnotation
			}
			return keeper.OriginLabel
		}
	}
	return keeper.OriginLabel
}
