package tracer

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// POSIX locks go with any close of a file (fcntl(2)), and the kernel hands none
// from one owner to another. But read locks of several owners may lie on the same
// range, and an owner changes the kind of its own in one step. So a lock goes over
// in between two of them:
//
//  1. the process makes its write locks read locks;
//  2. a guard takes the same read locks (GuardLocks with LocksLeave);
//  3. the files are exchanged, and the process takes read locks on the new ones;
//  4. the guard lets go (LocksTaken);
//  5. the process makes write locks of them again; then all is over (LocksKept).
//
// At no time could another process have taken a write lock, nor a read lock where
// the process has read locks. Only a read lock against one of its write locks can
// come between 1 and 5; then 5 fails, and with it the swap.

// LockPhase is how far the locks of a process have gone over.
type LockPhase int

// The phases, in this order.
const (
	LocksLeave LockPhase = iota // the process has read locks, which it is about to lose
	LocksTaken                  // it has them on the new files
	LocksKept                   // its locks are what they were
)

// LockedFile is a file at which a process has POSIX locks.
type LockedFile struct {
	Object Object // one of the descriptors of it, as it was before the swap
	Locks  []Lock
}

// heldLock is a POSIX lock to take again through descriptor fd. reader is a
// descriptor of the same file through which a read lock can be taken, -1 for none:
// then a write lock can only be dropped and taken again.
type heldLock struct {
	fd, reader int
	obj        *Object
	Lock
}

// shared reports that the lock can become a read lock for a while.
func (l *heldLock) shared() bool { return l.reader >= 0 }

// passing is the lock that the process has while files are exchanged, and the descriptor to set it through.
func (l *heldLock) passing() (fd int, lock Lock) {
	if !l.shared() {
		return l.fd, l.Lock
	}
	lock = l.Lock
	lock.Type = unix.F_RDLCK
	return l.reader, lock
}

// findReaders looks for descriptors to set read locks through.
func (j *job) findReaders() {
	for i := range j.locks {
		l := &j.locks[i]
		l.reader = -1
		for _, s := range j.table.slots {
			mode := s.obj.Flags & unix.O_ACCMODE
			if s.obj.Flags&unix.O_PATH == 0 && s.obj.Dev == l.obj.Dev && s.obj.Ino == l.obj.Ino && (mode == unix.O_RDONLY || mode == unix.O_RDWR) {
				l.reader = s.fd
				break
			}
		}
	}
}

func (b *batch) setLock(fd int, l Lock) *call {
	return b.add(unix.SYS_FCNTL, uint64(fd), unix.F_SETLK, b.bytes(l.flock()))
}

// guardLocks does steps 1 and 2.
func (j *job) guardLocks() error {
	if len(j.locks) > 0 && !j.back {
		if err := j.leaveOwn(); err != nil {
			return err
		}
	}
	if j.guard == nil || len(j.locks) == 0 {
		return nil
	}
	if !j.back && j.lost == nil {
		if err := j.refuseWaiters(); err != nil {
			return err
		}
	}
	j.begun = true
	b := j.r.batch()
	for i := range j.locks {
		if l := &j.locks[i]; l.Type == unix.F_WRLCK && l.shared() && (j.lost == nil || j.back) {
			fd, lock := l.passing()
			b.setLock(fd, lock).mayFail = j.back // it may be lost already
		}
	}
	if err := b.run(); err != nil {
		return fmt.Errorf("share the locks of process %d (%s): %w", j.p.pid, j.p.comm, err)
	}
	return j.tellGuard(LocksLeave)
}

func (j *job) tellGuard(phase LockPhase) error {
	if j.guard == nil || len(j.locks) == 0 {
		return nil
	}
	var files []LockedFile
	for i := range j.locks {
		l := &j.locks[i]
		if !l.shared() && j.lost == nil { // nothing that a guard's read lock could lie beside
			continue
		}
		k := slices.IndexFunc(files, func(f LockedFile) bool { return f.Object.Dev == l.obj.Dev && f.Object.Ino == l.obj.Ino })
		if k < 0 {
			files, k = append(files, LockedFile{Object: *l.obj}), len(files)
			files[k].Object.TID = j.t.tid // see ownLocks
		}
		files[k].Locks = append(files[k].Locks, l.Lock)
	}
	if len(files) == 0 {
		return nil
	}
	if err := j.guard(phase, files, j.back); err != nil {
		return fmt.Errorf("guard the locks of process %d (%s): %w", j.p.pid, j.p.comm, err)
	}
	return nil
}

// lockPatience is how long a reader that came between may hold its lock.
const lockPatience = 500 * time.Millisecond

// regainLocks does steps 4 and 5.
func (j *job) regainLocks() error {
	if j.guard == nil || len(j.locks) == 0 {
		return nil
	}
	if j.lost != nil {
		return j.takeFromGuard()
	}
	if err := j.tellGuard(LocksTaken); err != nil {
		return err
	}
	for end := time.Now().Add(lockPatience); ; briefly(time.Millisecond) {
		b := j.r.batch()
		for i := range j.locks {
			if l := &j.locks[i]; l.Type == unix.F_WRLCK && l.shared() {
				b.setLock(l.fd, l.Lock)
			}
		}
		err := b.run()
		if err == nil {
			return j.tellGuard(LocksKept)
		}
		var failed *callError
		busy := errors.As(err, &failed) && (errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES))
		if busy && time.Now().Before(end) {
			continue
		}
		if busy {
			return fmt.Errorf("another process has a read lock where process %d (%s) had a write lock: it came between: %w", j.p.pid, j.p.comm, err)
		}
		return err
	}
}

// takeFromGuard has the process take locks that only the guard has, and tells of those that it cannot have.
func (j *job) takeFromGuard() error {
	if j.back { // its files take none: the guard keeps them
		return errors.Join(j.tellGuard(LocksTaken), j.tellGuard(LocksKept))
	}
	var reads, writes []*heldLock
	for i := range j.locks {
		l := &j.locks[i]
		if l.shared() {
			reads = append(reads, l)
		}
		if l.Type == unix.F_WRLCK {
			writes = append(writes, l)
		}
	}
	reads, why, err := j.tryLocks(reads, (*heldLock).passing)
	if err != nil {
		return err
	}
	if err := j.tellGuard(LocksTaken); err != nil {
		return err
	}
	for _, l := range reads {
		if l.Type == unix.F_RDLCK {
			j.lost(l.obj, l.Lock, why)
		}
	}
	for end := time.Now().Add(lockPatience); len(writes) > 0; briefly(time.Millisecond) {
		if writes, why, err = j.tryLocks(writes, func(l *heldLock) (int, Lock) { return l.fd, l.Lock }); err != nil {
			return err
		}
		if time.Now().After(end) {
			break
		}
	}
	for _, l := range writes {
		j.lost(l.obj, l.Lock, fmt.Errorf("another process came between: %w", why))
	}
	return j.tellGuard(LocksKept)
}

// tryLocks sets locks, and gives those that could not be set, and why the last of them.
func (j *job) tryLocks(locks []*heldLock, how func(*heldLock) (fd int, l Lock)) (left []*heldLock, why, err error) {
	if len(locks) == 0 {
		return nil, nil, nil
	}
	b := j.r.batch()
	for _, l := range locks {
		fd, lock := how(l)
		b.setLock(fd, lock).mayFail = true
	}
	if err := b.run(); err != nil {
		return nil, nil, err
	}
	for i, l := range locks {
		if e := b.calls[i].errno(); e != 0 {
			left, why = append(left, l), e
		}
	}
	return left, why, nil
}

// guardLocks calls Options.GuardLocks.
func (x *transaction) guardLocks(phase LockPhase, files []LockedFile, back bool) error {
	if phase == LocksTaken && !back {
		if err := x.step(StepLocks); err != nil {
			return err
		}
	}
	x.pulse.passing.Store(phase != LocksKept)
	return x.patiently("the locks' guard", func() error { return x.o.GuardLocks(phase, files, back) })
}
