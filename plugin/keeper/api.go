// Package keeper runs the small process that stands between faultgraft and one
// target: it holds what a graft needs to live (the FUSE device, the mount, the
// adopted descriptions), outlives the daemon and the command that started it,
// and undoes its grafts when their time is up.
package keeper

import (
	"time"

	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/policy"
)

// Target is one running container, or a process tree named by its PID.
type Target struct {
	// ID is the container's id, or "pid-N" for a process tree.
	ID string `json:"id"`
	// Name is what a user calls it; may be empty.
	Name string `json:"name,omitempty"`
	// Namespace is the containerd namespace; empty for a process tree.
	Namespace string `json:"namespace,omitempty"`
	// PID is the target's first process, in the PID namespace of the host.
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat (clock ticks since boot); with PID it names a process for good.
	StartTime uint64 `json:"startTime,omitempty"`
	// Labels are the container's labels, or annotations for a CRI container.
	Labels map[string]string `json:"labels,omitempty"`
}

// Origin says who asked for a graft.
type Origin string

// Where a graft can come from.
const (
	OriginUser       Origin = "user"
	OriginLabel      Origin = "label"
	OriginAnnotation Origin = "annotation"
	OriginPolicy     Origin = "policy"
)

// source says where the rules of a graft of that origin are kept.
func (o Origin) source() string {
	switch o {
	case OriginPolicy:
		return "the node's policies"
	case OriginUser:
		return "a person"
	}
	return "the container's " + string(o) + "s"
}

// Request asks for one graft. Over a path that has a graft of the same origin
// the rules are added to that one.
type Request struct {
	// Path is where the layer goes, as the target sees it: absolute.
	Path string `json:"path"`
	// Rules are what the layer does; each has a TTL.
	Rules []policy.Rule `json:"rules"`
	graft.Limits
	// Origin says who asked.
	Origin Origin `json:"origin,omitempty"`
}

// Pause is how long a graft, an ungraft or a change of rules made processes stand still.
type Pause struct {
	// PauseMs is from the first process stopped to the last one resumed, milliseconds.
	PauseMs float64 `json:"pauseMs"`
	// LongestPauseMs is how long the one stood that did so for the longest: those that
	// share nothing are stopped one after another.
	LongestPauseMs float64 `json:"longestPauseMs"`
}

func pauseOf(r *graft.Report) Pause {
	const ms = float64(time.Millisecond)
	return Pause{PauseMs: float64(r.Pause) / ms, LongestPauseMs: float64(r.Longest) / ms}
}

// State is where a graft is in its life.
type State string

// The states of a graft.
const (
	StateGrafting  State = "grafting"
	StateActive    State = "active"
	StateReverting State = "reverting"
	StateFailed    State = "failed"
	// StateLingering: the layer is off and has no rules, but something that could not be moved still uses it (see Reason),
	// so that it is served until the last user ends.
	StateLingering State = "lingering"
)

// Graft is one layer over one path of one target.
type Graft struct {
	ID     string    `json:"id"`
	Target Target    `json:"target"`
	Path   string    `json:"path"`
	State  State     `json:"state"`
	Reason string    `json:"reason,omitempty"`
	Origin Origin    `json:"origin,omitempty"`
	Since  time.Time `json:"since"`
	// Version is that of the faultgraft that keeps it: the one that ran when the target's first graft was made. Keepers from before they said so have none.
	Version string `json:"version,omitempty"`
	// Takeovers is how often its server died and was replaced, Resent how many requests were under way then that the next one was sent again.
	Takeovers int          `json:"takeovers,omitempty"`
	Resent    uint64       `json:"resent,omitempty"`
	Rules     []RuleStatus `json:"rules"`
	// Faults counts what the graft has done so far, by rule, operation and outcome; only in the answer to List.
	Faults []FaultCount `json:"faults,omitempty"`
	Pause
	// Forced: its keeper did not answer, and it was taken off without it; Reason says how. Only in what a stop gives.
	Forced bool `json:"forced,omitempty"`
	// Report lists what was swapped and what was not; only in the answer to Inject and Update.
	Report *graft.Report `json:"report,omitempty"`
	// Added gives the full names of the rules that the call added to a graft that was there; only in the answer to Inject and Update.
	Added []string `json:"added,omitempty"`
}

// RuleStatus is what a rule has done so far.
type RuleStatus struct {
	Name string `json:"name"`
	// Policy is the FaultPolicy that the rule comes from, Run which run of it; empty for other rules.
	Policy string `json:"policy,omitempty"`
	Run    uint64 `json:"run,omitempty"`
	Text   string `json:"text"`
	// Matched counts the operations that the rule matched, Fired those that it changed.
	Matched uint64    `json:"matched"`
	Fired   uint64    `json:"fired"`
	Expires time.Time `json:"expires"`
	Expired bool      `json:"expired,omitempty"`
}

// FullName tells the rules of one graft apart, as policy.Rule has it.
func (r RuleStatus) FullName() string { return policy.FullName(r.Policy, r.Name) }
