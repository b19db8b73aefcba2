// Package policy is the fault language: it turns labels, annotations and the
// text of rules into rules that a fault layer can apply. It is pure: no system
// calls and no clock of its own.
package policy

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Rule is one fault: where (path, op), what (error, latency), when (trigger).
// The zero value matches nothing; rules come from ParseRule or ParseLabels.
type Rule struct {
	// Name is the rule's name: the RULE of the label RULE.faultgraft.io, or one that the user's command gives it.
	Name string `json:"name"`
	// Text is the rule as its author wrote it.
	Text string `json:"text"`
	// IO is the fault of an `io` rule.
	IO *IOFault `json:"io,omitempty"`
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
	// Errno is the error returned; 0 when the rule only delays.
	Errno syscall.Errno `json:"errno,omitempty"`
	// Latency is how long the operation waits before it goes on or fails.
	Latency time.Duration `json:"latency,omitempty"`
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
	// Times is how often the rule fires at most; 0 means without limit.
	Times uint64 `json:"times,omitempty"`
	// TTL is how long the rule lives, counted from its activation. Never 0.
	TTL time.Duration `json:"ttl"`
	// Seed makes the draws repeatable.
	Seed uint64 `json:"seed,omitempty"`
	// Seeded says that Seed was chosen, so that 0 is a seed like any other. See Rule.EnsureSeed.
	Seeded bool `json:"seeded,omitempty"`
}

// Check reports why a rule that did not come from ParseRule (but from JSON, for
// instance) is not one that ParseRule could have made. It does not judge how
// long the ttl is, which is up to the node and shrinks as time passes.
func (r Rule) Check() error {
	if r.IO == nil {
		return fmt.Errorf("rule %q has no io fault", r.Name)
	}
	if r.Trigger.TTL <= 0 {
		return fmt.Errorf("rule %q: a ttl of %v makes no sense", r.Name, r.Trigger.TTL)
	}
	r.Text, r.Trigger.TTL = "", math.MaxInt64
	again, err := ParseRule(r.Name, r.String(), Defaults{MaxTTL: math.MaxInt64})
	if err != nil {
		return fmt.Errorf("rule %q: %w", r.Name, err)
	}
	if again.Text = ""; !reflect.DeepEqual(again, r) {
		return fmt.Errorf("rule %q is not in canonical form: it reads as %q", r.Name, again.String())
	}
	return nil
}

// ioJSON is IOFault with the errno by name.
type ioJSON struct {
	*ioFields
	Errno string `json:"errno,omitempty"`
}

type ioFields IOFault

// MarshalJSON writes the errno by its name.
func (f IOFault) MarshalJSON() ([]byte, error) {
	j := ioJSON{ioFields: (*ioFields)(&f)}
	if f.Errno != 0 {
		j.Errno = ErrnoName(f.Errno)
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads the errno by its name.
func (f *IOFault) UnmarshalJSON(b []byte) error {
	*f = IOFault{}
	j := ioJSON{ioFields: (*ioFields)(f)}
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	if j.Errno == "" {
		return nil
	}
	e, ok := ParseErrno(j.Errno)
	if !ok {
		return fmt.Errorf("unknown errno %q", j.Errno)
	}
	f.Errno = e
	return nil
}

// EnsureSeed gives the rule a seed if its author gave none. The caller shows
// the seed to the user, who can repeat the faults with it.
func (r *Rule) EnsureSeed(random func() uint64) {
	if !r.Trigger.Seeded {
		r.Trigger.Seed, r.Trigger.Seeded = random(), true
	}
}

// String writes the rule in the rule language, every field but the name; it
// parses to an equal rule (Text aside).
func (r Rule) String() string {
	var b strings.Builder
	field := func(name, value string) { b.WriteString(" " + name + "=" + value) }
	if r.IO != nil {
		b.WriteString("io")
		if r.IO.Errno != 0 {
			field("error", ErrnoName(r.IO.Errno))
		}
		if r.IO.Latency != 0 {
			field("latency", r.IO.Latency.String())
		}
		field("op", r.IO.Ops.short())
		field("path", quote(r.IO.Path))
		if len(r.IO.Exclude) > 0 {
			field("exclude", quote(strings.Join(r.IO.Exclude, ",")))
		}
	}
	t := r.Trigger
	if t.P != 1 {
		field("p", strconv.FormatFloat(t.P, 'g', -1, 64))
	}
	for _, n := range []struct {
		name  string
		value uint64
	}{{"after", t.After}, {"every", t.Every}, {"times", t.Times}} {
		if n.value != 0 {
			field(n.name, strconv.FormatUint(n.value, 10))
		}
	}
	field("ttl", t.TTL.String())
	if t.Seeded {
		field("seed", strconv.FormatUint(t.Seed, 10))
	}
	return b.String()
}
