package fusefs

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// lockOwner is one owner of record locks on a node. The kernel's POSIX locks
// belong to a process; as the layer's process asks for all owners, each has an
// open file description of its own, and its locks are OFD locks of that.
// They conflict with each other and with those of processes that do not go
// through the layer.
type lockOwner struct {
	id    uint64 // the kernel's scrambled name of the owner
	fd    int
	pid   uint32 // process of the last request
	fh    uint64 // handle of the last request
	spans []span
}

// lockTable holds the record locks of a node.
type lockTable struct {
	mu      sync.Mutex
	owners  map[uint64]*lockOwner
	changed chan struct{} // closed and replaced when a lock may have become free
}

func (t *lockTable) close() { t.drop(func(*lockOwner) bool { return true }) }

// drop lets go of all locks of the owners that match.
func (t *lockTable) drop(match func(*lockOwner) bool) {
	t.mu.Lock()
	any := false
	for id, o := range t.owners {
		if match(o) {
			_ = unix.Close(o.fd) // the description's last descriptor: its locks go with it
			delete(t.owners, id)
			any = true
		}
	}
	t.mu.Unlock()
	if any {
		t.wake()
	}
}

// wake has those that wait for a lock try again.
func (t *lockTable) wake() {
	t.mu.Lock()
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
	t.mu.Unlock()
}

func (t *lockTable) wait() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return t.changed
}

// set asks the file system below for the lock, without waiting.
func (t *lockTable) set(n *node, in *fuse.LkIn, s span) error {
	t.mu.Lock()
	defer t.mu.Unlock() // setting a lock without waiting does not block
	o := t.owners[in.Owner]
	if o == nil {
		if s.typ == unix.F_UNLCK {
			return nil
		}
		fd, err := openForLocks(n)
		if err != nil {
			return err
		}
		o = &lockOwner{id: in.Owner, fd: fd}
		if t.owners == nil {
			t.owners = map[uint64]*lockOwner{}
		}
		t.owners[in.Owner] = o
	}
	if s.typ != unix.F_UNLCK { // an unlock says no process
		o.pid, o.fh = in.Lk.Pid, in.Fh
	}
	l := s.flock()
	err := retry(func() error { return unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, &l) })
	if err == nil {
		o.spans = withSpan(o.spans, s)
	}
	if len(o.spans) == 0 {
		_ = unix.Close(o.fd) // holds nothing
		delete(t.owners, o.id)
	}
	return err
}

// openForLocks opens the file for locks of both kinds; what the caller may lock was checked by the kernel.
func openForLocks(n *node) (fd int, err error) {
	for _, mode := range []int{unix.O_RDWR, unix.O_RDONLY, unix.O_WRONLY} {
		err = retry(func() error {
			fd, err = unix.Open(magic(n.fd), mode|unix.O_CLOEXEC, 0)
			return err
		})
		if err == nil {
			return fd, nil
		}
	}
	return -1, err
}

// get asks who is in the way of a lock.
func (t *lockTable) get(n *node, in *fuse.LkIn, s span) (unix.Flock_t, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := s.flock()
	fd := -1
	if o := t.owners[in.Owner]; o != nil {
		fd = o.fd
	} else {
		var err error
		if fd, err = openForLocks(n); err != nil {
			return l, err
		}
		defer func() { _ = unix.Close(fd) }() // holds nothing
	}
	if err := retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l) }); err != nil {
		return l, err
	}
	if l.Type == unix.F_UNLCK || l.Pid > 0 {
		return l, nil
	}
	// An OFD lock has no process. If it is one of ours we know better.
	for _, o := range t.owners {
		for _, h := range o.spans {
			if o.id != in.Owner && h.overlaps(s) && (h.typ == unix.F_WRLCK || s.typ == unix.F_WRLCK) {
				l = h.flock()
				l.Pid = int32(o.pid)
				return l, nil
			}
		}
	}
	return l, nil
}

func spanOf(lk *fuse.FileLock) span {
	return span{typ: int16(lk.Typ), start: int64(lk.Start), end: int64(min(lk.End, toEnd))}
}

// holdsOFDLock tells whether a description has OFD locks (fdinfo of proc(5)).
func holdsOFDLock(fd int) bool {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	return err == nil && strings.Contains(string(b), "OFDLCK")
}

func (l *Layer) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	h := l.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if e := l.node(request{cancel: cancel, header: &in.InHeader, op: policy.OpGetlk, offset: int64(in.Lk.Start)}, h.node); e != 0 {
		return fuse.Status(e)
	}
	s := spanOf(&in.Lk)
	var lock unix.Flock_t
	var err error
	if h.ofd {
		lock = s.flock()
		err = retry(func() error { return unix.FcntlFlock(uintptr(h.fd), unix.F_OFD_GETLK, &lock) })
	} else {
		lock, err = h.node.locks.get(h.node, in, s)
	}
	if err != nil {
		return status(err)
	}
	out.Lk = fuse.FileLock{Typ: uint32(lock.Type)}
	if lock.Type != unix.F_UNLCK {
		out.Lk.Start, out.Lk.End = uint64(lock.Start), toEnd
		if lock.Len != 0 {
			out.Lk.End = uint64(lock.Start + lock.Len - 1)
		}
		out.Lk.Pid = uint32(max(lock.Pid, 0))
	}
	return fuse.OK
}

func (l *Layer) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return l.setLock(cancel, in, false)
}

func (l *Layer) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return l.setLock(cancel, in, true)
}

// How long a waiting lock request sleeps between tries when nothing that the
// layer knows of changes: holders outside of the layer do not tell it.
const (
	firstTry = time.Millisecond
	lastTry  = 32 * time.Millisecond
)

// setLock sets a lock, and waits for it if asked to. It waits by trying again:
// a thread that blocks in fcntl(2) or flock(2) could not be got out of it when
// the caller is interrupted.
func (l *Layer) setLock(cancel <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	h := l.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if e := l.node(request{cancel: cancel, header: &in.InHeader, op: policy.OpSetlk, offset: int64(in.Lk.Start)}, h.node); e != 0 {
		return fuse.Status(e)
	}
	for nap := firstTry; ; nap = min(2*nap, lastTry) {
		changed := h.node.locks.wait() // before the try, so that no change is missed
		err := h.setLock(in)
		if in.Lk.Typ == unix.F_UNLCK && err == nil {
			h.node.locks.wake()
		}
		if !wait || (err != unix.EAGAIN && err != unix.EACCES) {
			return status(err)
		}
		t := time.NewTimer(nap)
		select {
		case <-cancel:
			t.Stop()
			return fuse.EINTR
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}

// setLock tries once. flock(2) locks belong to the description, and so do the
// OFD locks that an adopted one had: these are set on the description itself.
func (h *handle) setLock(in *fuse.LkIn) error {
	if in.LkFlags&fuse.FUSE_LK_FLOCK != 0 {
		how := unix.LOCK_UN
		switch in.Lk.Typ {
		case unix.F_RDLCK:
			how = unix.LOCK_SH
		case unix.F_WRLCK:
			how = unix.LOCK_EX
		}
		return retry(func() error { return unix.Flock(h.fd, how|unix.LOCK_NB) })
	}
	s := spanOf(&in.Lk)
	if h.ofd {
		l := s.flock()
		return retry(func() error { return unix.FcntlFlock(uintptr(h.fd), unix.F_OFD_SETLK, &l) })
	}
	return h.node.locks.set(h.node, in, s)
}

// PosixLocks are the POSIX locks that a process (tgid) was granted through the
// layer on the objects with inode number ino.
func (l *Layer) PosixLocks(tgid int, ino uint64) []Lock {
	var out []Lock
	for _, n := range l.nodes.withIno(ino) {
		n.locks.mu.Lock()
		for _, o := range n.locks.owners {
			if o.pid != uint32(tgid) {
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

// anyLocks reports whether a record lock is held through the layer.
func (l *Layer) anyLocks() bool {
	l.nodes.mu.RLock()
	defer l.nodes.mu.RUnlock()
	for _, n := range l.nodes.byID {
		n.locks.mu.Lock()
		held := len(n.locks.owners) > 0
		n.locks.mu.Unlock()
		if held {
			return true
		}
	}
	return false
}

func (t *nodeTable) withIno(ino uint64) []*node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []*node
	for k, n := range t.byKey {
		if k.ino == ino {
			out = append(out, n)
		}
	}
	return out
}
