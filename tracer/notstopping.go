package tracer

import (
	"fmt"
	"time"
)

// errNotStopping is a thread that did not stop by the deadline.
type errNotStopping struct {
	tid   int
	comm  string
	state byte
	where string // wait channel
	after time.Duration
}

func (e *errNotStopping) Error() string {
	switch e.state {
	case 'D':
		return fmt.Sprintf("thread %d (%s) is in uninterruptible sleep (%s) for %v", e.tid, e.comm, e.where, e.after)
	default:
		return fmt.Sprintf("thread %d (%s) in state %c (%s) did not stop within %v", e.tid, e.comm, e.state, e.where, e.after)
	}
}

func notStopping(tid int, after time.Duration) error {
	e := &errNotStopping{tid: tid, state: '?', where: "unknown", after: after.Round(time.Millisecond)}
	if s, err := readStatus(tid); err == nil {
		e.comm, e.state = s.name, s.state
	}
	if err := Frozen(tid, e.comm); err != nil {
		return err // it was frozen just now
	}
	if b, err := readProc(procPath(tid, "wchan")); err == nil && len(b) > 0 && string(b) != "0" {
		e.where = string(b)
	}
	return e
}
