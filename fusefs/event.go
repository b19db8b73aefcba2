package fusefs

import (
	"encoding/json"
	"fmt"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// Event is one fault that fired. There is one for each operation on which a rule fired.
type Event struct {
	Time time.Time
	// Rule is the name of the rule, Policy that of the policy it comes from, if it does.
	Rule, Policy string
	Op           policy.Op
	// Action is what was done.
	Action Action
	// Path is the one that the rule matched, as the target sees it.
	Path string
	// Offset and Size are those of the request in bytes, 0 for operations that have none.
	Offset, Size int64
	// PID is the caller's thread id, 0 for the kernel itself.
	PID uint32
	// UID is the caller's file system user id.
	UID uint32
	// Errno is what the operation was answered with because of the rule, 0 if it only waited. EINTR if a signal ended a hang.
	Errno syscall.Errno
	// Latency is how long the operation was made to wait: what the rule says, unless Cut.
	Latency time.Duration
	// Cut says that the wait ended early: a signal came, or the rule ended.
	Cut bool
	// N is the number of the operation under the rule, from 1.
	N uint64
	// Bytes is how much was transferred by an operation that was cut short, or of a write that was torn.
	Bytes int64
	// Places are the bytes that were changed by ActionCorrupt, or the parts that a torn write left in the file.
	Places []Place
}

// Place is a run of bytes of a file, or of a symbolic link's text.
type Place struct {
	Offset int64 `json:"offset"`
	Size   int64 `json:"size"`
}

// eventJSON is the form of an Event in logs and on sockets.
type eventJSON struct {
	Time    time.Time `json:"time"`
	Rule    string    `json:"rule"`
	Op      string    `json:"op"`
	Action  Action    `json:"action,omitempty"`
	Path    string    `json:"path"`
	Offset  int64     `json:"offset,omitempty"`
	Size    int64     `json:"size,omitempty"`
	PID     uint32    `json:"pid"`
	UID     uint32    `json:"uid"`
	Errno   string    `json:"errno,omitempty"`
	Latency string    `json:"latency,omitempty"`
	Cut     bool      `json:"cut,omitempty"`
	N       uint64    `json:"n"`
	Bytes   int64     `json:"bytes,omitempty"`
	Places  []Place   `json:"places,omitempty"`
}

// MarshalJSON writes operation and errno as names, the latency as Go writes durations.
func (e Event) MarshalJSON() ([]byte, error) {
	v := eventJSON{Time: e.Time, Rule: e.Rule, Op: e.Op.String(), Action: e.Action, Path: e.Path, Offset: e.Offset, Size: e.Size, PID: e.PID, UID: e.UID, Cut: e.Cut, N: e.N, Bytes: e.Bytes, Places: e.Places}
	if e.Errno != 0 {
		v.Errno = policy.ErrnoName(e.Errno)
	}
	if e.Latency != 0 {
		v.Latency = e.Latency.String()
	}
	return json.Marshal(v)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (e *Event) UnmarshalJSON(b []byte) error {
	var v eventJSON
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	op, ok := opByName[v.Op]
	if !ok {
		return fmt.Errorf("fault event: unknown operation %q", v.Op)
	}
	r := Event{Time: v.Time, Rule: v.Rule, Op: op, Action: v.Action, Path: v.Path, Offset: v.Offset, Size: v.Size, PID: v.PID, UID: v.UID, Cut: v.Cut, N: v.N, Bytes: v.Bytes, Places: v.Places}
	if v.Errno != "" {
		if r.Errno, ok = policy.ParseErrno(v.Errno); !ok {
			return fmt.Errorf("fault event: unknown errno %q", v.Errno)
		}
	}
	if v.Latency != "" {
		d, err := time.ParseDuration(v.Latency)
		if err != nil {
			return fmt.Errorf("fault event: latency: %w", err)
		}
		r.Latency = d
	}
	*e = r
	return nil
}

var opByName = func() map[string]policy.Op {
	m := map[string]policy.Op{}
	for _, o := range policy.GroupAll.Ops() {
		m[o.String()] = o
	}
	return m
}()
