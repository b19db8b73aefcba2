// Package graft puts a fault layer over a path of a running target and takes it
// off again: mount and swap as one transaction, entered from outside, without a
// helper in the container.
package graft

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
)

// DefaultDeadline bounds how long a target may be stopped.
const DefaultDeadline = 2 * time.Second

// Limits bound what a graft, an ungraft or a move of open files may do to a target.
type Limits struct {
	// Deadline is how long all may take from the first thread stopped to the last
	// exchange begun; 0 means DefaultDeadline.
	Deadline time.Duration `json:"deadline,omitempty"`
	// Budget is how long one process may be stopped before its exchange begins; 0 means as long as the deadline lasts.
	Budget time.Duration `json:"budget,omitempty"`
	// RequireAll makes an object that cannot be swapped an error instead of a line in the report.
	RequireAll bool `json:"requireAll,omitempty"`
}

// Report says what a graft or an ungraft did to the target.
type Report struct {
	// Prepare is the work done while the target ran; Pause how long its threads stood still. Nanoseconds in JSON.
	Prepare time.Duration `json:"prepare"`
	Pause   time.Duration `json:"pause"`
	// Phases are the parts of Pause.
	Phases tracer.Phases `json:"phases"`
	// Longest is how long the process stood still that did so for the longest.
	Longest time.Duration `json:"longest"`
	// RemoteCalls counts the system calls that were made inside the target.
	RemoteCalls int `json:"remoteCalls"`
	// NoPriority is why threads were not lent a real-time priority while they were stopped; empty if they were.
	NoPriority string `json:"noPriority,omitempty"`
	// Stopped are the processes that were stopped; the others never noticed.
	Stopped []tracer.ProcessReport `json:"stopped"`
	// Swapped and Skipped list the open objects, with a reason for each that was left where it was.
	Swapped []tracer.ObjectReport `json:"swapped"`
	Skipped []tracer.ObjectReport `json:"skipped,omitempty"`
	// Kept lists what goes on working on the files as they were, with what that means: watches, aio contexts.
	Kept []tracer.ObjectReport `json:"kept,omitempty"`
	// Notes are remarks that a person should read.
	Notes []string `json:"notes,omitempty"`
}

func (r *Report) add(t *tracer.Report) {
	if t == nil {
		return
	}
	r.Prepare += t.Prepare
	r.Pause += t.Pause
	r.Phases.Add(t.Phases)
	r.RemoteCalls += t.RemoteCalls
	r.NoPriority = cmp.Or(r.NoPriority, t.NoPriority)
	for _, p := range t.Processes {
		r.Longest = max(r.Longest, p.Pause)
	}
	r.Stopped = append(r.Stopped, t.Processes...)
	r.Swapped = append(r.Swapped, t.Swapped...)
	r.Skipped = append(r.Skipped, t.Skipped...)
	r.Kept = append(r.Kept, t.Kept...)
}

// Add adds what another swap did to the same target; nil is none.
func (r *Report) Add(o *Report) {
	if o == nil {
		return
	}
	r.Prepare += o.Prepare
	r.Pause += o.Pause
	r.Phases.Add(o.Phases)
	r.RemoteCalls += o.RemoteCalls
	r.NoPriority = cmp.Or(r.NoPriority, o.NoPriority)
	r.Longest = max(r.Longest, o.Longest)
	r.Stopped = append(r.Stopped, o.Stopped...)
	r.Swapped = append(r.Swapped, o.Swapped...)
	r.Skipped = append(r.Skipped, o.Skipped...)
	r.Kept = append(r.Kept, o.Kept...)
	r.Notes = append(r.Notes, o.Notes...)
}

// addStragglers adds a pass that may have found nothing.
func (r *Report) addStragglers(t *tracer.Report) {
	skipped, kept := r.Skipped, r.Kept
	r.add(t)
	r.Skipped, r.Kept = skipped, kept
	for _, s := range t.Skipped { // mostly the same objects again
		same := func(o tracer.ObjectReport) bool {
			a, b := o.Object, s.Object
			a.Path, b.Path = "", "" // it lost its folder with the mount
			return a == b
		}
		if !slices.ContainsFunc(skipped, same) {
			r.Skipped = append(r.Skipped, s)
		}
	}
}

// partly adds to an error which processes have changed all the same.
func partly(err error, r *tracer.Report) error {
	if !errors.Is(err, tracer.ErrPartly) {
		return err
	}
	pids := map[int]bool{}
	for _, o := range r.Swapped {
		pids[o.Object.PID] = true
	}
	return fmt.Errorf("%w; off the layer are processes %v", err, slices.Sorted(maps.Keys(pids)))
}

// heldNow takes from a later pass what the kernel holds of some kinds: what was in
// flight may have arrived and been swapped, or have been sent since.
func (r *Report) heldNow(t *tracer.Report, kinds ...tracer.Kind) {
	of := func(s tracer.ObjectReport) bool { return slices.Contains(kinds, s.Object.Kind) }
	replace := func(old, now []tracer.ObjectReport) []tracer.ObjectReport {
		old = slices.DeleteFunc(old, of)
		for _, s := range now {
			if of(s) {
				old = append(old, s)
			}
		}
		return old
	}
	r.Skipped, r.Kept = replace(r.Skipped, t.Skipped), replace(r.Kept, t.Kept)
}
