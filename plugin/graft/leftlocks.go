package graft

import (
	"fmt"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// A server has the POSIX locks of a process below as OFD locks of a description, which outlives it: its holder has it, and so have
// we. Nobody else can have taken them. So without the server they go over as with it (tracer, lockguard.go), and what the server
// would do about them is done here.

// LeftLocks are the locks of one owner on one file.
type LeftLocks struct {
	PID   int
	Ino   uint64
	Locks []tracer.Lock
	File  int // the description; stays the caller's

	table int // a thread of the descriptor table that has got them
	over  bool
}

// leftLocks are those of a process at an object. Which of several descriptor tables took them nobody knows any more: the first that is asked for.
func (d *detachment) leftLocks(o *tracer.Object) (locks []tracer.Lock) {
	for i := range d.Locks {
		l := &d.Locks[i]
		if l.over || l.PID != o.PID || l.Ino != o.Ino || l.table != 0 && l.table != o.TID {
			continue
		}
		l.table = o.TID
		locks = append(locks, l.Locks...)
	}
	return locks
}

// passLeftLocks is tracer.Options.GuardLocks.
func (d *detachment) passLeftLocks(phase tracer.LockPhase, files []tracer.LockedFile, back bool) error {
	for _, f := range files {
		for i := range d.Locks {
			l := &d.Locks[i]
			if l.PID != f.Object.PID || l.Ino != f.Object.Ino || l.table == 0 {
				continue
			}
			if err := l.pass(phase, back); err != nil {
				return fmt.Errorf("locks of process %d at inode %d, which its dead server had: %w", l.PID, l.Ino, err)
			}
		}
	}
	return nil
}

func (l *LeftLocks) pass(phase tracer.LockPhase, back bool) error {
	switch {
	case phase == tracer.LocksLeave:
		return l.set(func(tracer.Lock) int16 { return unix.F_RDLCK })
	case phase == tracer.LocksTaken && !back:
		l.over = true
		return l.set(func(tracer.Lock) int16 { return unix.F_UNLCK })
	case phase == tracer.LocksKept && back:
		l.over = false
		return l.set(func(k tracer.Lock) int16 { return k.Type })
	}
	return nil
}

// set changes the kind of all locks.
func (l *LeftLocks) set(kind func(tracer.Lock) int16) error {
	for _, k := range l.Locks {
		f := unix.Flock_t{Type: kind(k), Whence: unix.SEEK_SET, Start: k.Start, Len: k.Len}
		if err := unix.FcntlFlock(uintptr(l.File), unix.F_OFD_SETLK, &f); err != nil {
			return err
		}
	}
	return nil
}

// lockLost is tracer.Options.LockLost.
func (d *detachment) lockLost(o *tracer.Object, l tracer.Lock, why error) {
	d.rep.Notes = append(d.rep.Notes, fmt.Sprintf("%s: its POSIX lock (from %d, %d bytes) is lost: %v", o, l.Start, l.Len, why))
}
