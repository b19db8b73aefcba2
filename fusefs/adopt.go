package fusefs

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Adoption tells the layer to wrap an existing open file description: an
// OPEN or OPENDIR makes a file of the layer that reads and writes
// through exactly that description, so that its offset sharing, access mode,
// flock and OFD locks stay what they were.
type Adoption struct {
	// Description is a descriptor of it; the layer owns it from a successful Arm on.
	Description int
	// Token is empty when the thread opens the object's real path. Else it is a name of at least 16 bytes that nothing in the
	// layer's root has: it resolves, for this thread only, to the description's object. Disarm has the kernel forget it.
	Token string
	// Path is the object's path as the target sees it, for rules, when Token is set.
	Path string
}

// Adopted is what has become of an Adoption.
type Adopted struct {
	// Handle is that of the file that adopted the description.
	Handle uint64
	// Nth tells which of the thread's opens that was, of those that adopted something, from 1 on; 0: none did, and the description is closed.
	Nth int
}

type armedAdoption struct {
	Adoption
	Adopted
	key    key // without the mount, which a description may have another one of; see adopt
	looked bool
}

// armedThread is a thread that opens files for descriptions, in their order.
type armedThread struct {
	all    []armedAdoption
	next   int // those before it are taken, or were passed over because the open for them did not come here
	opened int
}

// armTable holds what threads are armed with.
type armTable struct {
	n  atomic.Int32 // entries, so that the usual case costs no lock
	mu sync.Mutex
	m  map[uint32]*armedThread
}

func (t *armTable) init() { t.m = map[uint32]*armedThread{} }

func (t *armTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for tid, a := range t.m {
		a.close()
		delete(t.m, tid)
	}
	t.n.Store(0)
}

// close closes what was not adopted: only duplicates of what the target holds.
func (a *armedThread) close() {
	for i := range a.all {
		if a.all[i].Nth == 0 {
			_ = unix.Close(a.all[i].Description)
		}
	}
}

// token finds the adoption of a thread that has this name.
func (t *armTable) token(tid uint32, name string) *armedAdoption {
	if t.n.Load() == 0 || name == "" {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := t.m[tid]; a != nil {
		for i := range a.all {
			if a.all[i].Token == name {
				return &a.all[i]
			}
		}
	}
	return nil
}

// Arm prepares adoptions by the thread tid, which is going to open a file for each, in this order. It can be armed once at a time.
func (l *Layer) Arm(tid int, all ...Adoption) error {
	if tid <= 0 || len(all) == 0 {
		return errors.New("adoption: thread or description is missing")
	}
	for _, a := range all {
		switch {
		case a.Description < 0:
			return errors.New("adoption: thread or description is missing")
		case a.Token != "" && len(a.Token) < 16:
			return fmt.Errorf("adoption: the token %q is shorter than 16 bytes", a.Token)
		case a.Token != "" && l.nodes.root.kind != unix.S_IFDIR:
			return errors.New("adoption by token: the layer is over a single file, which has no names below it")
		}
	}
	t := &l.armed
	t.mu.Lock()
	defer t.mu.Unlock()
	if l.state.Load() == stateClosed {
		return errors.New("adoption: the layer's mount is gone")
	}
	if t.m[uint32(tid)] != nil {
		return fmt.Errorf("adoption: thread %d is armed already", tid)
	}
	a := &armedThread{all: make([]armedAdoption, len(all))}
	for i := range all {
		a.all[i].Adoption = all[i]
	}
	t.m[uint32(tid)] = a
	t.n.Add(1)
	return nil
}

// Disarm ends what Arm began, and tells what has become of it. Descriptions that were not adopted are closed.
func (l *Layer) Disarm(tid int) []Adopted {
	a := l.armed.take(uint32(tid))
	if a == nil {
		return nil
	}
	a.close()
	all := make([]Adopted, len(a.all))
	for i := range a.all {
		all[i] = a.all[i].Adopted
		if a.all[i].Token != "" {
			l.forgetToken(a.all[i].Token)
		}
	}
	return all
}

// forgetToken has the kernel drop a name that was made up. Its file shows as deleted from
// here on, as one that has no name does. Not by unlink(2): the kernel would count one name of
// the file less, and link(2) refuses a file that it believes to have none (vfs_link, fs/namei.c).
func (l *Layer) forgetToken(token string) {
	err := l.notify.dropEntry(l.nodes.root.id, token)
	if err != nil && err != unix.ENOENT && err != unix.ENODEV && err != unix.EPERM { // it was never looked up; the connection is closed
		l.o.Logger.Warn("drop the name by which a file was adopted", "err", err)
	}
}

func (t *armTable) take(tid uint32) *armedThread {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.m[tid]
	if a != nil {
		delete(t.m, tid)
		t.n.Add(-1)
	}
	return a
}

// adopt makes a handle of what the thread is armed with for this object. It reports false when
// the thread is not armed, or all its adoptions have been made.
func (l *Layer) adopt(tid uint32, n *node, flags uint32, dir bool) (*handle, error, bool) {
	t := &l.armed
	if t.n.Load() == 0 {
		return nil, nil, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	th := t.m[tid]
	if th == nil || th.next == len(th.all) {
		return nil, nil, false
	}
	at := th.next
	for ; at < len(th.all); at++ {
		is, err := th.all[at].is(n.key)
		if err != nil {
			return nil, err, true
		}
		if is {
			break
		}
	}
	if at == len(th.all) {
		return nil, unix.ESTALE, true // the path names another object by now
	}
	a := &th.all[at]
	h := &handle{fd: a.Description, node: n, dir: dir, adopted: true, exact: !dir && needsLayer(n, flags)}
	have, err := unix.FcntlInt(uintptr(a.Description), unix.F_GETFL, 0)
	if err != nil {
		return nil, err, true
	}
	h.flags.Store(uint32(have))
	h.ofd = holdsOFDLock(a.Description)
	l.handles.add(h, nil, nil)
	th.next = at + 1
	th.opened++
	a.Handle, a.Nth = h.id, th.opened
	return h, nil, true
}

// is tells whether the description is of an object. Its mount may be another one.
func (a *armedAdoption) is(k key) (bool, error) {
	if !a.looked {
		var st unix.Stat_t
		if err := unix.Fstat(a.Description, &st); err != nil {
			return false, err
		}
		a.key, a.looked = key{major: unix.Major(st.Dev), minor: unix.Minor(st.Dev), ino: st.Ino}, true
	}
	k.mount = 0
	return a.key == k, nil
}

// trustTable holds the processes that are never faulted.
type trustTable struct {
	n    atomic.Int32
	mu   sync.Mutex
	pids map[int]struct{}
}

func (t *trustTable) init() { t.pids = map[int]struct{}{} }

// has reports whether a thread belongs to a trusted process.
func (t *trustTable) has(tid uint32) bool {
	if t.n.Load() == 0 || tid == 0 {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for pid := range t.pids {
		if unix.Access("/proc/"+strconv.Itoa(pid)+"/task/"+strconv.FormatUint(uint64(tid), 10), unix.F_OK) == nil {
			return true
		}
	}
	return false
}

// Trust says whether all threads of a process are never faulted and may use
// IoctlHandle. It is meant for a swapper, while it is at work: some of the target
// uses files below then, some the layer, and from the return of Trust on the
// kernel keeps no name and no attribute that would hide the one from the other.
func (l *Layer) Trust(pid int, on bool) {
	l.trusted.set(pid, on)
	if on {
		l.dropKnown()
	} else {
		l.tables.clear()
	}
}

func (t *trustTable) set(pid int, on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if on {
		t.pids[pid] = struct{}{}
	} else {
		delete(t.pids, pid)
	}
	t.n.Store(int32(len(t.pids)))
}

// Description returns a duplicate of the description behind an open handle; the caller closes it.
func (l *Layer) Description(id uint64) (int, error) {
	t := &l.handles
	t.mu.RLock() // held so that a release cannot close the number first
	defer t.mu.RUnlock()
	h := t.m[id]
	if h == nil {
		return -1, fmt.Errorf("fault layer of %q: no open file has handle %d", l.o.Prefix, id)
	}
	own, err := h.file()
	if err != nil {
		return -1, fmt.Errorf("fault layer of %q: open the file under handle %d: %w", l.o.Prefix, id, err)
	}
	fd, err := unix.FcntlInt(uintptr(own), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, fmt.Errorf("fault layer of %q: duplicate the description of handle %d: %w", l.o.Prefix, id, err)
	}
	return fd, nil
}
