package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The audit log is what an operator keeps: who did what to whom, and why. It has
// the events of the event log but for the faults themselves, in the same form, one
// JSON object a line. Several processes write it: the agent, keepers, and commands
// that were refused. So it is opened for each entry, under a lock by which one of
// them rotates it; a library that rotates for one process would lose entries of the others.

// Audit says where the audit log is and how much of it is kept.
type Audit struct {
	// File is the log; empty: audit.jsonl in the state directory, which a reboot empties.
	File string `json:"file,omitempty"`
	// MaxSize is the size at which the file is moved aside as FILE.1, bytes; 0: DefaultAuditSize.
	MaxSize int64 `json:"maxSize,omitempty"`
	// MaxFiles is how many there are in all; 0: DefaultAuditFiles.
	MaxFiles int `json:"maxFiles,omitempty"`
}

// What an Audit has that says nothing.
const (
	DefaultAuditSize  = 16 << 20
	DefaultAuditFiles = 5
)

// auditWait bounds how long an entry waits for another process that writes one.
const auditWait = 5 * time.Second

func (d stateDir) audit() string       { return filepath.Join(string(d), "audit.jsonl") }
func (d stateDir) auditConfig() string { return filepath.Join(string(d), "audit.json") }

// audited: an event that goes into the audit log. Faults are too many, and lost
// ones are about the event log; what a runtime says of containers nobody did to them.
func (t EventType) audited() bool {
	switch t {
	case EventFault, EventLost, EventOOM, EventExit:
		return false
	}
	return true
}

// SetAudit has all processes of a node that share the state directory write their audit log as a says.
func SetAudit(dir string, a Audit) error {
	d := orDefault(dir)
	if a == (Audit{}) {
		if err := os.Remove(d.auditConfig()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("audit log: %w", err)
		}
		return nil
	}
	b, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	if err := ReplaceFile(d.auditConfig(), append(b, '\n')); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// ReadAudit gives what SetAudit wrote, with the defaults filled in.
func ReadAudit(dir string) (Audit, error) {
	d := orDefault(dir)
	a := Audit{}
	b, err := os.ReadFile(d.auditConfig())
	if err == nil {
		if err := json.Unmarshal(b, &a); err != nil {
			a = Audit{}
			// What nobody can read names no other file: the log goes where it goes without. An agent says anew where.
			lost := Event{Type: EventLost, Message: setAside("where the audit log goes", d.auditConfig(), err).Error()}
			if err := WriteEvent(string(d), lost); err != nil {
				return a, fmt.Errorf("audit log: %w", err)
			}
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return a, fmt.Errorf("audit log: %s: %w", d.auditConfig(), err)
	}
	if a.File == "" {
		a.File = d.audit()
	}
	if a.MaxSize <= 0 {
		a.MaxSize = DefaultAuditSize
	}
	if a.MaxFiles <= 0 {
		a.MaxFiles = DefaultAuditFiles
	}
	return a, nil
}

// writeAudit appends one line to the node's audit log.
func writeAudit(d stateDir, line []byte) error {
	a, err := ReadAudit(string(d))
	if err != nil {
		return err
	}
	if err := a.write(line); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

func (a Audit) write(line []byte) error {
	if err := os.MkdirAll(filepath.Dir(a.File), 0o700); err != nil {
		return err
	}
	for end := time.Now().Add(auditWait); ; {
		f, err := os.OpenFile(a.File, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		again, err := a.append(f, line)
		err = errors.Join(err, f.Close()) // gives the lock back
		if err != nil || !again {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is locked by another process", a.File)
		}
	}
}

// append writes to f if it is the log still and there is room; again: open it once more.
func (a Audit) append(f *os.File, line []byte) (again bool, err error) {
	for end := time.Now().Add(auditWait); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			return false, fmt.Errorf("lock %s: %w", a.File, err)
		}
	}
	is, err := f.Stat()
	if err != nil {
		return false, err
	}
	now, err := os.Stat(a.File)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(is, now) {
		return true, nil // another process has rotated it meanwhile
	}
	if err != nil {
		return false, err
	}
	if is.Mode().IsRegular() && is.Size() > 0 && is.Size()+int64(len(line)) > a.MaxSize {
		return true, a.rotate()
	}
	if n, err := f.Write(line); err != nil {
		if n > 0 && is.Mode().IsRegular() { // half a line would spoil the next one
			err = errors.Join(err, f.Truncate(is.Size()))
		}
		return false, err
	}
	return false, nil
}

// rotate moves the files aside, the oldest out; the caller holds the lock of the newest.
func (a Audit) rotate() error {
	name := func(i int) string {
		if i == 0 {
			return a.File
		}
		return fmt.Sprintf("%s.%d", a.File, i)
	}
	if a.MaxFiles == 1 {
		return os.Remove(a.File)
	}
	for i := a.MaxFiles - 1; i > 0; i-- {
		if err := os.Rename(name(i-1), name(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// CheckAudit says why the node's audit log cannot be written.
func CheckAudit(dir string) error {
	a, err := ReadAudit(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(a.File), 0o700); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	f, err := os.OpenFile(a.File, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	var space unix.Statfs_t
	if err = unix.Fstatfs(int(f.Fd()), &space); err == nil && space.Blocks > 0 && space.Bfree == 0 { // what is free for root
		err = fmt.Errorf("%s: %w", a.File, unix.ENOSPC)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}
