package policies

import (
	"fmt"
	"slices"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

// Phase is where a policy is in its life.
type Phase string

// The phases of a policy.
const (
	// Pending: no container is chosen yet, or the stop conditions are being checked before the faults begin.
	Pending Phase = "pending"
	// Running: the run's time is passing, and the chosen containers are to have the faults.
	Running Phase = "running"
	// Paused: a person paused it; its time stands.
	Paused Phase = "paused"
	// Waiting: for the next time of the schedule.
	Waiting Phase = "waiting"
	// Stopped: a guard ended it, or the node does not allow it any more. Applying or resuming it begins anew.
	Stopped Phase = "stopped"
	// Ended: its time is up.
	Ended Phase = "ended"
)

// record is what the file keeps of a policy.
type record struct {
	// Policy is as it was applied, with defaults.
	Policy faultpolicy.FaultPolicy `json:"policy"`
	// Seed is the policy's, or was drawn when it was applied.
	Seed uint64 `json:"seed"`
	// By is who applied it, and Applied when.
	By      string    `json:"by,omitempty"`
	Applied time.Time `json:"applied"`
	Phase   Phase     `json:"phase"`
	Reason  string    `json:"reason,omitempty"`
	Since   time.Time `json:"since"`
	// Run is the number of the run, 0 before the first. A resumed run has a new one.
	Run uint64 `json:"run,omitempty"`
	// TTL is the run's, and Watch says how much of it is spent.
	TTL   time.Duration `json:"ttl,omitempty"`
	Watch stopwatch     `json:"watch,omitzero"`
	Hits  hitCount      `json:"hits,omitzero"`
}

func (r *record) name() string { return r.Policy.Metadata.Name }

// hitCount adds up a counter that may begin again from 0.
type hitCount struct {
	Total uint64 `json:"total,omitempty"`
	Last  uint64 `json:"last,omitempty"`
}

// see takes a reading of the counter; true: it has moved.
func (h *hitCount) see(now uint64) bool {
	if now == h.Last {
		return false
	}
	if now > h.Last {
		h.Total += now - h.Last
	} else {
		h.Total += now
	}
	h.Last = now
	return true
}

// fileForm is the form of the file.
type fileForm struct {
	fileHead
	Policies []record `json:"policies"`
}

// fileHead is what is in it besides the policies.
type fileHead struct {
	// Version is fileVersion; there is no other one so far.
	Version int       `json:"version"`
	Written time.Time `json:"written"`
	// Runs has the last run of policies that were deleted: one that is applied under
	// the same name counts on, so that no container takes its faults for those that it has had.
	Runs map[string]uint64 `json:"runs,omitempty"`
	// FirstRun is where policies begin to count that are not in Runs.
	FirstRun uint64 `json:"firstRun,omitempty"`
}

const fileVersion = 1

// maxDeleted is how many names of deleted policies are remembered one by one.
const maxDeleted = 1000

func parseFile(b []byte) (fileForm, error) {
	var form fileForm
	if err := keeper.DecodeForm(b, fileVersion, &form); err != nil {
		return form, err
	}
	seen := map[string]bool{}
	for i := range form.Policies {
		r := &form.Policies[i]
		switch {
		case seen[r.name()]:
			return form, fmt.Errorf("policy %q is there twice", r.name())
		case !slices.Contains([]Phase{Pending, Running, Paused, Waiting, Stopped, Ended}, r.Phase):
			return form, fmt.Errorf("policy %q: unknown phase %q", r.name(), r.Phase)
		case r.TTL < 0 || r.Watch.Before < 0:
			return form, fmt.Errorf("policy %q: a time below zero", r.name())
		case r.Phase == Running && (r.TTL == 0 || r.Run == 0 || !r.Watch.Running):
			return form, fmt.Errorf("policy %q runs without a clock", r.name())
		}
		seen[r.name()] = true
	}
	return form, nil
}
