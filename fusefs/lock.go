package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// The kernel says neither of a record lock whether it is a POSIX or an OFD lock
// (fuse_setlk in fs/fuse/file.c); the caller's system call does. flock(2) and OFD
// locks belong to the description and are set on the description itself. POSIX
// locks belong to a process, see lockOwner.

// fcntls are the numbers of fcntl(2): ours, and those of 32-bit programs on x86 and arm. No call that has one of them otherwise sets locks.
var fcntls = []int{unix.SYS_FCNTL, 55, 221}

// Commands of fcntl(2) for OFD locks (include/uapi/asm-generic/fcntl.h).
const firstOFD, lastOFD = unix.F_OFD_GETLK, unix.F_OFD_SETLKW

// ofdLock reports whether a request is about an OFD lock. The owner of OFD locks
// is the open file, so that it is one for a handle; that of POSIX locks stays
// until it closes the file.
func (h *handle) ofdLock(in *fuse.LkIn) bool {
	switch in.Owner {
	case h.ofdOwner.Load():
		return true
	case h.posixOwner.Load():
		return false
	}
	c, ok := callOf(in.Pid)
	if !ok || !c.among(fcntls) {
		return h.ofd
	}
	if firstOFD <= c.args[1] && c.args[1] <= lastOFD {
		h.ofdOwner.Store(in.Owner)
		h.keep(func(s *handleSlot) { s.ofdOwner.Store(in.Owner) })
		return true
	}
	h.posixOwner.Store(in.Owner)
	h.keep(func(s *handleSlot) { s.posixOwner.Store(in.Owner) })
	return false
}

func (l *Layer) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	h := l.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	ofSwap := l.trusted.n.Load() > 0 && l.stopped(in.Pid)
	if !ofSwap {
		if e := l.node(request{cancel: cancel, header: &in.InHeader, op: policy.OpGetlk, offset: int64(in.Lk.Start)}, h.node); e != 0 {
			return fuse.Status(e)
		}
	}
	s := spanOf(&in.Lk)
	var lock unix.Flock_t
	var err error
	if h.ofdLock(in) {
		lock = s.flock()
		var fd int
		if fd, err = h.file(); err == nil {
			err = retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock) })
		}
	} else {
		if ofSwap {
			l.tables.store(in.Pid, in.Owner)
		}
		lock, err = h.node.locks.get(h.node, in.Owner, in.Pid, s)
	}
	if err != nil {
		return status(err)
	}
	out.Lk = fuse.FileLock{Typ: uint32(lock.Type)}
	if lock.Type != unix.F_UNLCK {
		held := spanOfFlock(&lock)
		out.Lk.Start, out.Lk.End = uint64(held.start), uint64(held.end)
		out.Lk.Pid = uint32(max(lock.Pid, 0))
		if lock.Pid <= 0 { // an OFD lock below: of one of our owners, or truly one
			out.Lk.Pid = h.node.locks.holder(in.Owner, held)
		}
	}
	return fuse.OK
}

func (l *Layer) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return l.setLock(cancel, in, false)
}

func (l *Layer) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return l.setLock(cancel, in, true)
}

func (l *Layer) setLock(cancel <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	h := l.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if e := l.node(request{cancel: cancel, header: &in.InHeader, op: policy.OpSetlk, offset: int64(in.Lk.Start)}, h.node); e != 0 {
		return fuse.Status(e)
	}
	if wait {
		l.blocking(&in.InHeader)
	}
	l.ledger.slot(&in.InHeader).begin(&in.InHeader, inodeID{}, inodeID{})
	var err error
	switch {
	case in.LkFlags&fuse.FUSE_LK_FLOCK != 0:
		err = h.flock(cancel, in.Lk.Typ, wait)
	case h.ofdLock(in):
		err = h.setOFD(cancel, spanOf(&in.Lk), wait)
	default:
		err = l.setPosix(cancel, h, in, wait)
	}
	reach(placeDone, &in.InHeader)
	return status(err)
}

func (h *handle) flock(cancel <-chan struct{}, typ uint32, wait bool) error {
	how := unix.LOCK_UN
	switch typ {
	case unix.F_RDLCK:
		how = unix.LOCK_SH
	case unix.F_WRLCK:
		how = unix.LOCK_EX
	}
	fd, err := h.file()
	if err != nil {
		return err
	}
	err = retry(func() error { return unix.Flock(fd, how|unix.LOCK_NB) })
	if err != unix.EAGAIN || !wait {
		return err
	}
	return interruptible(cancel, func() error { return unix.Flock(fd, how) })
}

func (h *handle) setOFD(cancel <-chan struct{}, s span, wait bool) error {
	fd, err := h.file()
	if err != nil {
		return err
	}
	l := s.flock()
	err = retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l) })
	if err != unix.EAGAIN || !wait {
		return err
	}
	return interruptible(cancel, func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, &l) })
}

// setPosix waits on the owner's description, so that the kernel decides who is
// next, and then books what it got: another thread of the owner may have
// unlocked it meanwhile.
func (l *Layer) setPosix(cancel <-chan struct{}, h *handle, in *fuse.LkIn, wait bool) error {
	s := spanOf(&in.Lk)
	t := h.node.locks
	for {
		err := t.set(h.node, in, s)
		if err != unix.EAGAIN || !wait {
			return err
		}
		w := &lockWait{owner: in.Owner, node: h.node, span: s}
		if !l.waits.begin(w) {
			return unix.EDEADLK
		}
		err = t.wait(h.node, cancel, in.Owner, in.Lk.Pid, s)
		l.waits.end(w)
		if err != nil {
			return err
		}
	}
}

// PosixLocks are the POSIX locks that a process (tgid) was granted through the
// layer on the objects with inode number ino. They belong to a descriptor table: if
// thread tid has asked for a lock since a swapper stopped it, only those of its table.
func (l *Layer) PosixLocks(tgid, tid int, ino uint64) []Lock {
	var out []Lock
	for _, n := range l.nodes.withIno(ino) {
		n.locks.mu.Lock()
		for _, o := range n.locks.owners {
			if o.pid != uint32(tgid) || !l.tables.has(tid, o.id) {
				continue
			}
			for _, s := range o.spans {
				out = append(out, s.lock())
			}
		}
		n.locks.mu.Unlock()
	}
	return out
}

// LockedFiles lists the inode numbers of the files on which a POSIX lock is held
// through the layer.
func (l *Layer) LockedFiles() []uint64 {
	l.nodes.mu.RLock()
	defer l.nodes.mu.RUnlock()
	locked := []uint64{}
	for _, n := range l.nodes.byID {
		if n.locks.held() {
			locked = append(locked, n.key.ino)
		}
	}
	return locked
}

func (t *nodeTable) withIno(ino uint64) []*node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.numbered(ino)
}
