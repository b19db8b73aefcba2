package fusefs

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// RetiredFile is a file that a rule came to match while it was open in
// passthrough mode, or mapped: what is done through these open files and maps does not reach the layer.
type RetiredFile struct {
	// Node is the FUSE node id of the inode that is open, Ino the inode number on the layer and below it, which others have too.
	Node uint64 `json:"node"`
	Ino  uint64 `json:"ino"`
	// Path is the file's path as the target sees it.
	Path string `json:"path"`
}

// An inode of the kernel that is open in passthrough mode stays so until the
// last of these files is closed (fs/fuse/iomode.c). So a file that a rule comes to
// match gets another: its node is retired, keeps its number, its open files and
// its inode, and the next look-up of the name makes a new node of the same
// file below, with an inode that is open in no way yet. Whoever moves the open
// files from one to the other finds them by Retired. Both share the locks.

// retire retires the files that a rule has come to match.
func (l *Layer) retire() (retired []*node) {
	var files []*node
	l.nodes.mu.RLock()
	for _, n := range l.nodes.byID {
		if n.kind == unix.S_IFREG {
			files = append(files, n)
		}
	}
	l.nodes.mu.RUnlock()
	for _, n := range files {
		if l.retireNode(n) {
			retired = append(retired, n)
		}
	}
	return retired
}

// retireNode retires a node if it has to be: the next look-up of its name makes a new one.
func (l *Layer) retireNode(n *node) bool {
	n.open.mu.Lock()
	defer n.open.mu.Unlock()
	if n.open.retired.Load() || !n.open.passed || !l.mustSee(n) || !l.mapped(n) {
		return false
	}
	now := time.Now()
	n.open.since.Store(&now)
	n.open.unmoved.Store(true)
	n.kept.unmoved.Store(true)
	n.open.retired.Store(true)
	n.kept.retired.Store(true)
	l.nodes.retire(n)
	return true
}

func (t *nodeTable) retire(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byKey[n.key] == n {
		delete(t.byKey, n.key)
		t.retired[n.key] = append(t.retired[n.key], n)
		t.splits.Add(1)
	}
}

// renamed is called when something got a new name, by which a rule may match
// what it did not match before. The kernel is told beside the request: it holds
// locks of the directory until it is answered.
func (l *Layer) renamed(n *node) {
	if n == nil || l.rules.Load().ops&cacheable == 0 {
		return
	}
	var retired []*node
	if n.kind == unix.S_IFDIR {
		retired = l.retire()
	} else if l.retireNode(n) {
		retired = []*node{n}
	}
	if len(retired) == 0 {
		return
	}
	l.notify.start(func() {
		for _, n := range retired {
			l.nodes.mu.RLock()
			names := slices.Clone(n.names)
			l.nodes.mu.RUnlock()
			l.notify.drop(stale{node: n.id, attr: true, names: names})
		}
	})
	if l.o.Retire != nil {
		l.o.Retire()
	}
}

// movedLocks are POSIX locks that a swapper takes from retired files to those that take
// their place: those of a process at an inode number.
type movedLocks struct {
	on atomic.Bool  // a swapper exchanges files
	n  atomic.Int32 // entries, so that the usual case costs no lock
	mu sync.Mutex
	of map[lockHolder]bool
}

type lockHolder struct {
	pid uint32
	ino uint64
}

// KeepLocks begins and ends the exchange of open files of retired inodes for others. It
// reports whether a process has POSIX locks at one of these files. Those that LocksToKeep
// is asked for stay until the end.
func (l *Layer) KeepLocks(on bool) (held bool, err error) {
	l.moved.mu.Lock()
	l.moved.of = nil
	l.moved.n.Store(0)
	l.moved.mu.Unlock()
	l.moved.on.Store(on)
	if !on {
		return false, nil
	}
	if err := l.takeInUse(); err != nil {
		l.moved.on.Store(false)
		return false, err
	}
	l.nodes.mu.RLock()
	defer l.nodes.mu.RUnlock()
	for _, all := range l.nodes.retired {
		if all[0].locks.held() { // one table for all
			return true, nil
		}
	}
	return false, nil
}

// LocksToKeep is PosixLocks, and has closes of the process leave these locks alone from
// here on: a swapper closes its files, and it is stopped. Closes of others, which run,
// end their locks as always.
func (l *Layer) LocksToKeep(tgid, tid int, ino uint64) []Lock {
	l.moved.mu.Lock()
	if l.moved.of == nil {
		l.moved.of = map[lockHolder]bool{}
	}
	l.moved.of[lockHolder{uint32(tgid), ino}] = true
	l.moved.n.Store(int32(len(l.moved.of)))
	l.moved.mu.Unlock()
	return l.PosixLocks(tgid, tid, ino)
}

// moving reports whether the locks of those owners of a node that match are being moved elsewhere.
func (l *Layer) moving(n *node, match func(*lockOwner) bool) bool {
	if l.moved.n.Load() == 0 {
		return false
	}
	l.moved.mu.Lock()
	defer l.moved.mu.Unlock()
	n.locks.mu.Lock()
	defer n.locks.mu.Unlock()
	for _, o := range n.locks.owners {
		if match(o) && l.moved.of[lockHolder{o.pid, n.key.ino}] {
			return true
		}
	}
	return false
}

// Retired lists the files of which open files do not reach the layer although a
// rule can match them, and those of which maps may be left that do not, until Moved.
func (l *Layer) Retired() []RetiredFile {
	var files [][]*node // all inodes of each file: any of them may have its names
	l.nodes.mu.RLock()
	for key, all := range l.nodes.retired {
		all = slices.Clone(all)
		if n := l.nodes.byKey[key]; n != nil {
			all = append(all, n)
		}
		files = append(files, all)
	}
	l.nodes.mu.RUnlock()
	files = slices.DeleteFunc(files, func(all []*node) bool { return !slices.ContainsFunc(all, l.mustSee) })
	var out []RetiredFile
	l.nodes.mu.RLock()
	defer l.nodes.mu.RUnlock()
	for _, n := range slices.Concat(files...) {
		if n.open.retired.Load() && (n.open.through.Load() > 0 || n.open.unmoved.Load()) {
			out = append(out, RetiredFile{Node: n.id, Ino: n.key.ino, Path: l.nodes.path(l.nodes.current(n))})
		}
	}
	slices.SortFunc(out, func(a, b RetiredFile) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// current is the node that stands for a retired one now, or did last; its names are followed. The caller holds mu.
func (t *nodeTable) current(n *node) *node {
	if next := t.byKey[n.key]; next != nil {
		return next
	}
	if all := t.retired[n.key]; len(all) > 0 {
		return all[len(all)-1]
	}
	return n
}
