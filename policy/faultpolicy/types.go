// Package faultpolicy has the FaultPolicy, faultgraft's YAML form of faults:
// which containers, which faults, when, and what ends them. docs/policies.md
// describes it for users.
package faultpolicy

import "github.com/faultgraft/faultgraft/policy/strictyaml"

// The apiVersion and kind of a FaultPolicy.
const (
	APIVersion = "faultgraft.io/v1alpha1"
	Kind       = "FaultPolicy"
)

// FaultPolicy is one policy. One that Decode gives has been checked and has its
// defaults; see SetDefaults and Check for one that comes from elsewhere.
type FaultPolicy struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   Metadata `json:"metadata"`
	Spec       Spec     `json:"spec"`
}

// Metadata names a policy. Labels and annotations are the user's own.
type Metadata struct {
	// Name is a DNS subdomain (RFC 1123), unique on the node.
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Spec is what a policy asks for.
type Spec struct {
	Selector Selector `json:"selector"`
	// Mode and Value say how many of the matching containers get the faults.
	Mode  Mode `json:"mode,omitempty"`
	Value int  `json:"value,omitempty"`
	// Seed makes the choice and, unless a fault has its own, the draws of the faults repeatable. Nil: drawn when the policy is applied.
	Seed               *uint64            `json:"seed,omitempty"`
	WhenNothingMatches WhenNothingMatches `json:"whenNothingMatches,omitempty"`
	Timing             Timing             `json:"timing,omitzero"`
	Guard              Guard              `json:"guard,omitzero"`
	// Required refuses the start of a chosen container whose faults could not be put in place (fail-closed).
	Required bool `json:"required,omitempty"`
	// Paused applies the policy without acting until it is resumed.
	Paused bool `json:"paused,omitempty"`
	// DryRun says who would get what, and does nothing.
	DryRun bool    `json:"dryRun,omitempty"`
	Faults []Fault `json:"faults"`
}

// Selector says which containers match: those for which every field that is
// there holds. A list holds if one of its items does.
type Selector struct {
	// Namespaces are globs over containerd namespaces; empty matches all that the node allows.
	Namespaces []string `json:"namespaces,omitempty"`
	// MatchLabels and MatchExpressions are over the container's labels.
	MatchLabels      map[string]string `json:"matchLabels,omitempty"`
	MatchExpressions []Requirement     `json:"matchExpressions,omitempty"`
	// MatchAnnotations are over the container's annotations.
	MatchAnnotations map[string]string `json:"matchAnnotations,omitempty"`
	// Images are globs over the full and the familiar name of the image: docker.io/library/postgres:16, postgres:16.
	Images []string `json:"images,omitempty"`
	// ContainerNames are globs.
	ContainerNames []string `json:"containerNames,omitempty"`
	// PodNames and PodNamespaces are globs. Pods are globs NAMESPACE/NAME.
	PodNames      []string     `json:"podNames,omitempty"`
	PodNamespaces []string     `json:"podNamespaces,omitempty"`
	Pods          []string     `json:"pods,omitempty"`
	PodSelector   *PodSelector `json:"podSelector,omitempty"`
	// MinAge and MaxAge bound how long the container's task has been running: MinAge <= age < MaxAge.
	MinAge Duration `json:"minAge,omitempty"`
	MaxAge Duration `json:"maxAge,omitempty"`
}

// PodSelector is over the labels and annotations of a container's pod. A
// container without a pod does not match it.
type PodSelector struct {
	MatchLabels      map[string]string `json:"matchLabels,omitempty"`
	MatchExpressions []Requirement     `json:"matchExpressions,omitempty"`
	MatchAnnotations map[string]string `json:"matchAnnotations,omitempty"`
}

// Requirement is a set-based requirement of labels, as Kubernetes has them: In
// and NotIn take values, Exists and DoesNotExist take none. NotIn holds also
// where there is no such label.
type Requirement struct {
	Key      string   `json:"key"`
	Operator Operator `json:"operator"`
	Values   []string `json:"values,omitempty"`
}

// Timing says when a policy acts.
type Timing struct {
	// Delay is the time from the activation of a run to its faults; Active and
	// Idle are pulses after it. They are for faults that have none of the three themselves.
	Delay  Duration `json:"delay,omitempty"`
	Active Duration `json:"active,omitempty"`
	Idle   Duration `json:"idle,omitempty"`
	// TTL ends a run, for all its containers alike. 0: the node's default.
	TTL Duration `json:"ttl,omitempty"`
	// Schedule is a cron expression of five fields, or @hourly and the like, or @every DURATION, in TimeZone
	// (IANA name, default UTC). Each time that it names begins a run.
	Schedule    string      `json:"schedule,omitempty"`
	TimeZone    string      `json:"timeZone,omitempty"`
	Concurrency Concurrency `json:"concurrency,omitempty"`
}

// Guard bounds what a policy may do.
type Guard struct {
	// MaxContainers is how many containers have the faults at the same time; 0 is no limit.
	MaxContainers int `json:"maxContainers,omitempty"`
	// MaxPercent is the share of the matching containers that have them, rounded down; 0 is no limit.
	MaxPercent int `json:"maxPercent,omitempty"`
	// MaxHits ends the policy once so many faults were injected, all containers together; 0 is no limit.
	MaxHits        uint64          `json:"maxHits,omitempty"`
	StopConditions []StopCondition `json:"stopConditions,omitempty"`
}

// StopCondition is a probe that must stay green while a policy acts. Exactly
// one of HTTP and Command is there.
type StopCondition struct {
	Name string     `json:"name,omitempty"`
	HTTP *HTTPProbe `json:"http,omitempty"`
	// Command is run on the node; exit status 0 is green. The program is an absolute path.
	Command []string `json:"command,omitempty"`
	// Interval is the time from the start of one probe to the next; Timeout that after which it has failed.
	Interval Duration `json:"interval,omitempty"`
	Timeout  Duration `json:"timeout,omitempty"`
	// FailureThreshold is how many failures in a row turn it red.
	FailureThreshold int `json:"failureThreshold,omitempty"`
}

// HTTPProbe is green while a GET of URL answers with one of these statuses. Redirects are not followed.
type HTTPProbe struct {
	URL    string `json:"url"`
	Status []int  `json:"status,omitempty"`
}

// Fault is one rule: exactly one of IO, Kernel and Rule is there.
type Fault struct {
	// Name is the name of the rule, unique in the policy.
	Name   string  `json:"name"`
	IO     *IO     `json:"io,omitempty"`
	Kernel *Kernel `json:"kernel,omitempty"`
	// Rule is the text of a rule as in a label.
	Rule string `json:"rule,omitempty"`
	// Trigger goes with IO and Kernel; a Rule has its own.
	Trigger Trigger `json:"trigger,omitzero"`
}

// IO is an io rule: its fields have the names and values of the rule language
// (docs/rules.md), with lists in place of commas, `ops` for `op`, and words that take no value as booleans.
type IO struct {
	Throttle strictyaml.Scalar            `json:"throttle,omitempty"`
	Burst    strictyaml.Scalar            `json:"burst,omitempty"`
	Latency  strictyaml.Scalar            `json:"latency,omitempty"`
	Cap      strictyaml.Scalar            `json:"cap,omitempty"`
	Hang     bool                         `json:"hang,omitempty"`
	Error    strictyaml.Scalars           `json:"error,omitempty"`
	Short    strictyaml.Scalar            `json:"short,omitempty"`
	Corrupt  strictyaml.Scalar            `json:"corrupt,omitempty"`
	Torn     strictyaml.Scalar            `json:"torn,omitempty"`
	Lost     bool                         `json:"lost,omitempty"`
	NoSpace  strictyaml.Scalar            `json:"nospace,omitempty"`
	Quota    strictyaml.Scalar            `json:"quota,omitempty"`
	Attr     map[string]strictyaml.Scalar `json:"attr,omitempty"`
	Ops      strictyaml.Scalars           `json:"ops,omitempty"`
	Path     string                       `json:"path,omitempty"`
	Exclude  strictyaml.Scalars           `json:"exclude,omitempty"`
	Comm     strictyaml.Scalars           `json:"comm,omitempty"`
	Exe      strictyaml.Scalars           `json:"exe,omitempty"`
	UID      strictyaml.Scalars           `json:"uid,omitempty"`
	PID      strictyaml.Scalars           `json:"pid,omitempty"`
	Offset   strictyaml.Scalar            `json:"offset,omitempty"`
	Size     strictyaml.Scalar            `json:"size,omitempty"`
}

// Kernel is a kernel rule, in the same way.
type Kernel struct {
	// Hook is slab, page, bio, function:NAME, syscall:NAME or lsm:NAME.
	Hook strictyaml.Scalar `json:"hook"`
	// Where is a predicate over the parameters of what fails.
	Where  string  `json:"where,omitempty"`
	Within []Frame `json:"within,omitempty"`
	// Error is one errno.
	Error   strictyaml.Scalar  `json:"error,omitempty"`
	Comm    strictyaml.Scalars `json:"comm,omitempty"`
	UID     strictyaml.Scalars `json:"uid,omitempty"`
	PID     strictyaml.Scalars `json:"pid,omitempty"`
	Backend strictyaml.Scalar  `json:"backend,omitempty"`
	Stack   bool               `json:"stack,omitempty"`
}

// Frame is one function of a call chain, the outermost first.
type Frame struct {
	Func string `json:"func"`
	// Where is a predicate over the function's parameters.
	Where string `json:"where,omitempty"`
	// Parameters is the function's parameter list in C, which KernelChaos has; not needed.
	Parameters string `json:"parameters,omitempty"`
}

// Trigger says when a rule fires; see docs/rules.md.
type Trigger struct {
	P          strictyaml.Scalar `json:"p,omitempty"`
	After      strictyaml.Scalar `json:"after,omitempty"`
	Every      strictyaml.Scalar `json:"every,omitempty"`
	Times      strictyaml.Scalar `json:"times,omitempty"`
	Nth        strictyaml.Scalar `json:"nth,omitempty"`
	AfterBytes strictyaml.Scalar `json:"afterBytes,omitempty"`
	Delay      strictyaml.Scalar `json:"delay,omitempty"`
	Active     strictyaml.Scalar `json:"active,omitempty"`
	Idle       strictyaml.Scalar `json:"idle,omitempty"`
	// TTL ends the rule in a container, counted from when the container gets it, before the run's ttl does.
	TTL  strictyaml.Scalar `json:"ttl,omitempty"`
	Seed strictyaml.Scalar `json:"seed,omitempty"`
}
