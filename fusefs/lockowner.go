package fusefs

import (
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// lockOwner is one owner of POSIX locks on a node. The kernel's POSIX locks
// belong to a process; as the layer's process asks for all owners, each has an
// open file description of its own, and its locks are OFD locks of that.
// They conflict with each other and with those of processes that do not go
// through the layer.
type lockOwner struct {
	id      uint64 // the kernel's scrambled name of the owner
	fd      int
	pid     uint32 // process of the last request
	fh      uint64 // handle of the last request
	spans   []span
	waiting int // requests that wait on fd
	kept    *ownerSlot
}

// tableNames are the kernel's names of the descriptor tables, as owners of locks, of threads that a swapper has stopped. A
// process may have several (CLONE_FILES of clone(2)), and its number tells them not apart.
type tableNames struct {
	mu sync.Mutex
	of map[uint32]uint64 // by thread
}

func (t *tableNames) store(tid uint32, owner uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = map[uint32]uint64{}
	}
	t.of[tid] = owner
}

// has reports whether an owner is the table of a thread, or that is not known.
func (t *tableNames) has(tid int, owner uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	own, known := t.of[uint32(tid)]
	return !known || own == owner
}

func (t *tableNames) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of = nil
}

// lockTable holds the POSIX locks of a node.
type lockTable struct {
	shared int // nodes that have it; guarded by nodeTable.mu
	mu     sync.Mutex
	owners map[uint64]*lockOwner
	guards []*lockGuard
	kept   *stateTable
}

func newLockTable(kept *stateTable) *lockTable { return &lockTable{shared: 1, kept: kept} }

// share counts the nodes that have the table, and reports whether none is left.
func (t *lockTable) share(by int) bool {
	t.shared += by
	return t.shared == 0
}

func (t *lockTable) held() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.owners) > 0
}

func (t *lockTable) close() {
	t.mu.Lock()
	t.endGuards(0)
	t.mu.Unlock()
	t.drop(func(*lockOwner) bool { return true })
}

// drop lets go of all locks of the owners that match.
func (t *lockTable) drop(match func(*lockOwner) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.owners {
		if match(o) {
			o.spans = nil
			if o.waiting > 0 { // who waits on it keeps the description, and with it the locks
				l := span{typ: unix.F_UNLCK, end: toEnd}.flock()
				_ = unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, &l) // an unlock of everything needs no memory
			}
			t.tidy(o)
		}
	}
}

// tidy ends an owner that holds nothing and waits for nothing. The caller holds mu.
func (t *lockTable) tidy(o *lockOwner) {
	if len(o.spans) == 0 && o.waiting == 0 {
		t.kept.dropOwner(o.kept)
		_ = unix.Close(o.fd) // the description's last descriptor: its locks go with it
		delete(t.owners, o.id)
	}
}

// owner gives the owner of that name. The caller holds mu, and tidies.
func (t *lockTable) owner(n *node, id uint64) (*lockOwner, error) {
	if o := t.owners[id]; o != nil {
		return o, nil
	}
	fd, err := openForLocks(n)
	if err != nil {
		return nil, err
	}
	o := &lockOwner{id: id, fd: fd}
	o.kept = t.kept.owner(o, n.key) // before it has locks: a request that is sent again has to find them to be its own
	if t.owners == nil {
		t.owners = map[uint64]*lockOwner{}
	}
	t.owners[id] = o
	return o, nil
}

// set asks the file system below for the lock, without waiting.
func (t *lockTable) set(n *node, in *fuse.LkIn, s span) error {
	t.mu.Lock()
	defer t.mu.Unlock() // setting a lock without waiting does not block
	if s.typ == unix.F_UNLCK && t.owners[in.Owner] == nil {
		return nil
	}
	if g, _ := t.guardAgainst(in.Lk.Pid, s); g != nil {
		return unix.EAGAIN
	}
	o, err := t.owner(n, in.Owner)
	if err != nil {
		return err
	}
	defer t.tidy(o)
	l := s.flock()
	if err := retry(func() error { return unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, &l) }); err != nil {
		return err
	}
	if s.typ != unix.F_UNLCK { // an unlock says no process
		o.pid, o.fh = in.Lk.Pid, in.Fh
		o.kept.pid.Store(o.pid)
		o.kept.fh.Store(o.fh)
	}
	o.spans = withSpan(o.spans, s)
	return nil
}

// wait waits until the owner has the lock below.
func (t *lockTable) wait(n *node, cancel <-chan struct{}, id uint64, pid uint32, s span) error {
	t.mu.Lock()
	for {
		g, _ := t.guardAgainst(pid, s)
		if g == nil {
			break
		}
		t.mu.Unlock()
		select {
		case <-g.over:
		case <-cancel:
			return unix.EINTR
		}
		t.mu.Lock()
	}
	o, err := t.owner(n, id)
	if err != nil {
		t.mu.Unlock()
		return err
	}
	o.waiting++
	t.mu.Unlock()
	l := s.flock()
	err = interruptible(cancel, func() error { return unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLKW, &l) })
	t.mu.Lock()
	o.waiting--
	if err != nil {
		t.tidy(o)
	} // else set books the lock, and tidies
	t.mu.Unlock()
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

// get asks what is in the way of a lock.
func (t *lockTable) get(n *node, id uint64, pid uint32, s span) (unix.Flock_t, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := s.flock()
	if g, held := t.guardAgainst(pid, s); g != nil {
		l = held.flock()
		l.Pid = int32(g.pid)
		return l, nil
	}
	o, err := t.owner(n, id)
	if err != nil {
		return l, err
	}
	defer t.tidy(o)
	err = retry(func() error { return unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_GETLK, &l) })
	return l, err
}

// holder is the process of the owner, other than id, that holds a lock; 0 if none of ours does.
func (t *lockTable) holder(id uint64, held span) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.owners {
		for _, h := range o.spans {
			if o.id != id && h == held {
				return o.pid
			}
		}
	}
	return 0
}

// blockers are the owners whose locks are in the way of a lock of id.
func (t *lockTable) blockers(id uint64, s span) (out []uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.owners {
		for _, h := range o.spans {
			if o.id != id && h.overlaps(s) && (h.typ == unix.F_WRLCK || s.typ == unix.F_WRLCK) {
				out = append(out, o.id)
				break
			}
		}
	}
	return out
}

// holdsOFDLock tells whether a description has OFD locks (fdinfo of proc(5)).
func holdsOFDLock(fd int) bool {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	return err == nil && strings.Contains(string(b), "OFDLCK")
}
