// Package policy is the fault language: it turns labels, annotations and the
// text of rules into rules that a fault layer can apply. It is pure: no system
// calls and no clock of its own.
package policy

import (
	"fmt"
	"math"
	"reflect"
	"time"
)

// Rule is one fault: where (path, op), what (error, latency), when (trigger).
// The zero value matches nothing; rules come from ParseRule or ParseLabels.
type Rule struct {
	// Name is the rule's name: the RULE of the label RULE.faultgraft.io, or one that the user's command gives it.
	Name string `json:"name"`
	// Text is the rule as its author wrote it.
	Text string `json:"text"`
	// Policy is the FaultPolicy that the rule comes from; empty: a label, an annotation or a person. Run counts
	// the runs of that policy (schedule, resume, changed spec): a rule of another run is another rule.
	Policy string `json:"policy,omitempty"`
	Run    uint64 `json:"run,omitempty"`
	// IO is the fault of an `io` rule.
	IO *IOFault `json:"io,omitempty"`
	// Kernel is the fault of a `kernel` rule. Exactly one of IO and Kernel is there.
	Kernel *KernelFault `json:"kernel,omitempty"`
	// Trigger says at which of the matching operations the rule fires.
	Trigger Trigger `json:"trigger"`
}

// IOFault is what an `io` rule does to the operations that it matches.
type IOFault struct {
	// Path is a doublestar glob over the path as the container sees it; absolute,
	// in the canonical spelling that CheckGlob gives.
	Path string `json:"path"`
	// Exclude are globs of the same kind that take paths out again.
	Exclude []string `json:"exclude,omitempty"`
	// Ops are the operations that the rule matches.
	Ops OpSet `json:"ops"`
	// Caller, Offset and Size narrow the rule further.
	Caller Caller `json:"caller,omitzero"`
	// Offset is a range of the file, bytes: the rule matches an operation that touches it. Nil matches all.
	Offset *Range `json:"offset,omitempty"`
	// Size is the size of the request, bytes. Nil matches all.
	Size *Range `json:"size,omitempty"`

	// What follows is what the rule does when it fires, in this order: Throttle,
	// Latency and Hang make the operation wait; then at most one of the others
	// changes it. Torn may stand with Errors, which are answered after a part was written.

	Throttle *Throttle `json:"throttle,omitempty"`
	Latency  *Latency  `json:"latency,omitempty"`
	// Hang blocks the operation until it is released, killed, or the rule ends.
	Hang bool `json:"hang,omitempty"`
	// Errors are the errors answered, one of them each time; none when the rule does not fail.
	Errors  []WeightedErrno `json:"errors,omitempty"`
	Short   *Short          `json:"short,omitempty"`
	Corrupt *Corrupt        `json:"corrupt,omitempty"`
	Torn    *Torn           `json:"torn,omitempty"`
	// Lost acknowledges a write or a sync and does nothing.
	Lost  bool   `json:"lost,omitempty"`
	Space *Space `json:"space,omitempty"`
	Attr  *Attr  `json:"attr,omitempty"`
}

// Trigger says when a rule fires. Its unit is the matching operation: operation
// n (from 1) of a rule fires if n > After, (n-After-1) is a multiple of Every,
// the rule has fired fewer than Times times, and the draw for n under Seed is
// below P.
type Trigger struct {
	// P is the probability, 0 to 1.
	P float64 `json:"p"`
	// After is how many matching operations pass first.
	After uint64 `json:"after,omitempty"`
	// Every lets one in that many fire; 0 and 1 mean each.
	Every uint64 `json:"every,omitempty"`
	// AfterBytes is how many bytes of matching reads and writes pass first: the
	// operations before the one that crosses it do not fire and are not counted for After and Every.
	AfterBytes uint64 `json:"afterBytes,omitempty"`
	// Times is how often the rule fires at most; 0 means without limit.
	Times uint64 `json:"times,omitempty"`
	// Delay is how long after its activation the rule begins to match. Below 0: how long ago its pulses began, see Aged.
	Delay time.Duration `json:"delay,omitempty"`
	// Active and Idle make pulses after Delay: the rule matches for Active, then
	// rests for Idle, and so on. Both are 0 for a rule without pulses. An operation
	// in a rest is neither matched nor counted.
	Active time.Duration `json:"active,omitempty"`
	Idle   time.Duration `json:"idle,omitempty"`
	// TTL is how long the rule lives, counted from its activation. Never 0.
	TTL time.Duration `json:"ttl"`
	// Seed makes the draws repeatable.
	Seed uint64 `json:"seed,omitempty"`
	// Seeded says that Seed was chosen, so that 0 is a seed like any other. See Rule.EnsureSeed.
	Seeded bool `json:"seeded,omitempty"`
}

// Aged gives the trigger of a rule that has been active for so long already,
// for a rule that is made anew and keeps its clock.
func (t Trigger) Aged(by time.Duration) Trigger {
	t.TTL -= by
	t.Delay -= by
	if period := uint64(t.Active) + uint64(t.Idle); t.Delay < 0 && t.Active > 0 && t.Idle > 0 && uint64(-t.Delay) >= period {
		t.Delay = -time.Duration(uint64(-t.Delay) % period)
	}
	if t.Active <= 0 {
		t.Delay = max(t.Delay, 0)
	}
	return t
}

// Check reports why a rule that did not come from ParseRule (but from JSON, for
// instance) is not one that ParseRule could have made. It does not judge how
// long the ttl is, which is up to the node and shrinks as time passes.
func (r Rule) Check() error {
	if (r.IO == nil) == (r.Kernel == nil) {
		return fmt.Errorf("rule %q must have an io fault or a kernel fault, one of them", r.Name)
	}
	if r.Trigger.TTL <= 0 {
		return fmt.Errorf("rule %q: a ttl of %v makes no sense", r.Name, r.Trigger.TTL)
	}
	r.Text, r.Policy, r.Run, r.Trigger.TTL = "", "", 0, math.MaxInt64
	if r.Trigger.Active > 0 && r.Trigger.Idle > 0 {
		r.Trigger.Delay = max(r.Trigger.Delay, 0) // see Aged
	}
	again, err := ParseRule(r.Name, r.String(), Defaults{MaxTTL: math.MaxInt64})
	if err != nil {
		return fmt.Errorf("rule %q: %w", r.Name, err)
	}
	if again.Text = ""; !reflect.DeepEqual(again, r) {
		return fmt.Errorf("rule %q is not in canonical form: it reads as %q", r.Name, again.String())
	}
	return nil
}

// FullName is POLICY/NAME for a rule of a policy, else its name: what tells the rules of one graft apart.
func (r Rule) FullName() string { return FullName(r.Policy, r.Name) }

// FullName is Rule.FullName of a rule with that policy and name.
func FullName(policy, name string) string {
	if policy == "" {
		return name
	}
	return policy + "/" + name
}

// EnsureSeed gives the rule a seed if its author gave none. The caller shows
// the seed to the user, who can repeat the faults with it.
func (r *Rule) EnsureSeed(random func() uint64) {
	if !r.Trigger.Seeded {
		r.Trigger.Seed, r.Trigger.Seeded = random(), true
	}
}
