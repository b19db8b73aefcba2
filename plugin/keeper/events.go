package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
)

// EventType says what an Event is about.
type EventType string

// The types of events.
const (
	EventGraft   EventType = "graft"
	EventUngraft EventType = "ungraft"
	EventRules   EventType = "rules"
	EventFault   EventType = "fault"
	EventExpired EventType = "expired"
	EventRefused EventType = "refused"
	EventServer  EventType = "server"
	EventLost    EventType = "lost"
	// EventArm and EventDisarm: a kernel fault is in force, and is no more.
	EventArm    EventType = "arm"
	EventDisarm EventType = "disarm"
	// EventStop: nothing starts on this node any more. EventRelease lifts that.
	EventStop    EventType = "stop"
	EventRelease EventType = "release"
	// EventPolicy: something happened to a policy; Action says what.
	EventPolicy EventType = "policy"
	// EventOOM and EventExit are what containerd says of a container that has faults:
	// the kernel's OOM killer was at work in it, and its first process has ended.
	EventOOM  EventType = "oom"
	EventExit EventType = "exit"
)

// Event is one line of the event log: a graft, an ungraft, a change of rules, an injected fault, a refusal.
type Event struct {
	Time time.Time `json:"time"`
	Type EventType `json:"type"`
	// Graft is the id of the graft, or of the kernel fault.
	Graft  string `json:"graft,omitempty"`
	Target string `json:"target,omitempty"`
	Name   string `json:"name,omitempty"`
	// By is where it comes from, Who the person's process that asked the agent for it, if one did.
	By   Origin `json:"by,omitempty"`
	Who  string `json:"who,omitempty"`
	Path string `json:"path,omitempty"`
	Rule string `json:"rule,omitempty"`
	// Rules are those that were put in force, as NAME: TEXT.
	Rules []string `json:"rules,omitempty"`
	// Policy is the FaultPolicy that the rule comes from.
	Policy string `json:"policy,omitempty"`
	// Run is the run of that policy, where the event is about the policy itself.
	Run uint64 `json:"run,omitempty"`
	Op  string `json:"op,omitempty"`
	// Action is what a rule did to the operation.
	Action string `json:"action,omitempty"`
	Offset int64  `json:"offset,omitempty"`
	Size   int64  `json:"size,omitempty"`
	// PID is the thread that made the call, for a kernel fault the process (TID is the thread); UID its user.
	PID   uint32 `json:"pid,omitempty"`
	UID   uint32 `json:"uid,omitempty"`
	Errno string `json:"errno,omitempty"`
	// LatencyMs is an injected delay, PauseMs how long a target stood still; milliseconds.
	// Cut: the delay ended before its time, by a signal, a release or the end of the rule.
	LatencyMs float64 `json:"latencyMs,omitempty"`
	Cut       bool    `json:"cut,omitempty"`
	PauseMs   float64 `json:"pauseMs,omitempty"`
	// LongestPauseMs is how long the one process stood that did so for the longest.
	LongestPauseMs float64 `json:"longestPauseMs,omitempty"`
	// Bytes is how much an operation transferred that was cut short, or of a write that was torn;
	// Places are the bytes that were corrupted, or the parts of a torn write that reached the file.
	Bytes  int64          `json:"bytes,omitempty"`
	Places []fusefs.Place `json:"places,omitempty"`
	// N is the number of the operation among those that the rule matched.
	N       uint64 `json:"n,omitempty"`
	Message string `json:"message,omitempty"`
	// ExitStatus is that of a container's first process, 128 more than the signal if one ended it.
	ExitStatus *uint32 `json:"exitStatus,omitempty"`
	// What follows is of kernel faults. Hook is the rule's hook point, Function the
	// kernel function that failed for it, Backend the way.
	Hook     string `json:"hook,omitempty"`
	Function string `json:"function,omitempty"`
	Backend  string `json:"backend,omitempty"`
	TID      uint32 `json:"tid,omitempty"`
	Comm     string `json:"comm,omitempty"`
	// Cgroup is the id of the cgroup that the thread was in.
	Cgroup uint64 `json:"cgroup,omitempty"`
	// Stack are kernel functions, the failed one first, if the rule asks for them.
	Stack []string `json:"stack,omitempty"`
}

// maxEventLog is the size at which the log is moved aside as events.jsonl.1, bytes.
const maxEventLog = 64 << 20

// EventLog appends events to the node's log. Several processes write to it; a
// line is one write(2) to a file opened O_APPEND, so lines do not mix.
type EventLog struct {
	dir stateDir
	mu  sync.Mutex
	f   *os.File
	// written is how much this process has written since it last looked at the size of the file.
	written int
	limit   int64 // maxEventLog, less in tests
	// torn: the last line is half a line, which a full disk left. The next one begins anew.
	torn bool
}

// sizeCheck is how much one process writes between two looks at the size of the log, bytes.
const sizeCheck = 256 << 10

// OpenEventLog opens the log in the state directory for appending.
func OpenEventLog(dir string) (*EventLog, error) {
	d := stateDir(dir)
	if err := d.make(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.events(), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	l := &EventLog{dir: d, f: f, limit: maxEventLog, torn: endsTorn(f)}
	if err := l.bound(); err != nil {
		return nil, errors.Join(err, l.f.Close())
	}
	return l, nil
}

// bound moves a log aside that has grown too large, and goes on with the new one when another process
// has done so. A target makes as many faults as it does operations, for as long as its rules last: the
// log is in memory (tmpfs), and must not grow with them. The caller holds mu, or is alone.
func (l *EventLog) bound() error {
	l.written = 0
	is, err := l.f.Stat()
	if err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	name := l.dir.events()
	now, err := os.Stat(name)
	same := err == nil && os.SameFile(is, now)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("event log: %w", err)
	}
	if same && is.Size() <= l.limit {
		return nil
	}
	if same {
		// One of those that come here at once does it; the lock goes with the description.
		if err := unix.Flock(int(l.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil // another process is at it, and this one looks again later
		}
		if now, err := os.Stat(name); err == nil && os.SameFile(is, now) {
			if err := os.Rename(name, name+".1"); err != nil {
				return fmt.Errorf("rotate the event log: %w", err)
			}
		}
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	_ = l.f.Close() // every line is written
	l.f, l.torn = f, endsTorn(f)
	return nil
}

// endsTorn says that a log does not end with a whole line.
func endsTorn(f *os.File) bool {
	s, err := f.Stat()
	if err != nil || s.Size() == 0 {
		return false
	}
	var last [1]byte
	_, err = f.ReadAt(last[:], s.Size()-1)
	return err == nil && last[0] != '\n'
}

// Write appends one event, to the audit log too if it belongs there.
func (l *EventLog) Write(e Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	err = l.append(b)
	if e.Type.audited() {
		err = errors.Join(err, writeAudit(l.dir, b))
	}
	return err
}

func (l *EventLog) append(line []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.written += len(line); l.written > sizeCheck {
		if err := l.bound(); err != nil {
			return err
		}
	}
	if l.torn {
		line = slices.Concat([]byte{'\n'}, line)
	}
	n, err := l.f.Write(line)
	if n > 0 {
		l.torn = n < len(line)
	}
	return err
}

// WriteEvent appends one event to the log of a state directory.
func WriteEvent(dir string, e Event) error {
	l, err := OpenEventLog(string(orDefault(dir)))
	if err != nil {
		return err
	}
	return errors.Join(l.Write(e), l.Close())
}

// Close closes the log.
func (l *EventLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}

// faultEvent is the log's form of what a layer recorded.
func faultEvent(graft string, t Target, e fusefs.Event) Event {
	v := Event{
		Time: e.Time, Type: EventFault, Graft: graft, Target: t.ID, Name: t.Name, Path: e.Path, Rule: e.Rule, Policy: e.Policy, Op: e.Op.String(),
		Action: string(e.Action), Cut: e.Cut, Bytes: e.Bytes, Places: e.Places, Offset: e.Offset, Size: e.Size, PID: e.PID, UID: e.UID, LatencyMs: float64(e.Latency) / float64(time.Millisecond), N: e.N,
	}
	if e.Errno != 0 {
		v.Errno = errnoName(e.Errno)
	}
	return v
}

// ReadEvents calls f for each event of the log, and with follow for each that
// comes until ctx ends.
func ReadEvents(ctx context.Context, dir string, follow bool, f func(Event) error) error {
	name := stateDir(dir).events()
	file, err := os.Open(name)
	for follow && errors.Is(err, os.ErrNotExist) && pause(ctx) {
		file, err = os.Open(name)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // nothing has happened yet
	}
	if err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	defer func() { _ = file.Close() }()
	r := bufio.NewReader(file)
	var line []byte
	for {
		part, err := r.ReadBytes('\n')
		line = append(line, part...)
		if err == nil {
			if len(line) == 1 { // between half a line and the next
				line = line[:0]
				continue
			}
			var e Event
			if err := json.Unmarshal(line, &e); err != nil {
				// A disk that was full leaves half a line; those after it are whole.
				e = Event{Type: EventLost, Message: fmt.Sprintf("unreadable line in %s: %.80q: %v", name, line, err)}
			}
			line = line[:0]
			if err := f(e); err != nil {
				return err
			}
			continue
		}
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("event log: %w", err)
		}
		if !follow || !pause(ctx) {
			return nil
		}
		// Rotated or purged: go on with the new file.
		now, serr := os.Stat(name)
		was, ferr := file.Stat()
		if serr == nil && ferr == nil && !os.SameFile(now, was) && len(line) == 0 {
			if next, err := os.Open(name); err == nil {
				_ = file.Close()
				file = next
				r.Reset(file)
			}
		}
	}
}

// pause waits a moment; false: ctx has ended.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(100 * time.Millisecond):
		return true
	}
}
