package fusefs

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// lockGuard keeps the POSIX locks of a process at a node from others while a
// swapper moves them between files of the layer and those below. Meanwhile the
// process has read locks; to others its locks are what they are meant to be.
type lockGuard struct {
	pid   uint32
	spans []span
	stay  bool          // closes of the process leave its locks alone
	fd    int           // a description with read locks of the same ranges, -1 for none
	over  chan struct{} // closed when the guard ends
}

func (g *lockGuard) letGo() {
	if g.fd >= 0 {
		_ = unix.Close(g.fd) // the description's only descriptor: its locks go with it
		g.fd = -1
	}
}

// GuardLocks begins to keep locks of a process (tgid) from others, who are
// answered as if it had them, at the objects of the layer with inode number ino,
// and for dev != 0 only at those that have it below. hold has the layer take read locks of the same
// ranges, which the process is about to drop below; otherwise the process is
// about to drop those that it has through the layer, which stay.
func (l *Layer) GuardLocks(tgid int, dev, ino uint64, locks []Lock, hold bool) error {
	var spans []span
	for _, k := range locks {
		s := span{typ: k.Type, start: k.Start, end: toEnd}
		if k.Len != 0 {
			s.end = k.Start + k.Len - 1
		}
		spans = append(spans, s)
	}
	for _, n := range l.lockNodes(dev, ino) {
		g := &lockGuard{pid: uint32(tgid), spans: spans, stay: !hold, fd: -1, over: make(chan struct{})}
		if hold {
			if err := g.take(n); err != nil {
				return fmt.Errorf("fault layer of %q: guard the locks of process %d at inode %d: %w", l.o.Prefix, tgid, ino, err)
			}
		}
		n.locks.mu.Lock()
		n.locks.endGuards(g.pid)
		n.locks.guards = append(n.locks.guards, g)
		n.locks.mu.Unlock()
	}
	return nil
}

// take takes read locks where the guarded ones are.
func (g *lockGuard) take(n *node) error {
	fd, err := openForLocks(n)
	if err != nil {
		return err
	}
	for _, s := range g.spans {
		s.typ = unix.F_RDLCK
		k := s.flock()
		if err := retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &k) }); err != nil {
			_ = unix.Close(fd) // its locks go with it
			return err
		}
	}
	g.fd = fd
	return nil
}

// lockNodes are nodes that share no lock table.
func (l *Layer) lockNodes(dev, ino uint64) (out []*node) {
	for _, n := range l.nodes.withIno(ino) {
		if n.kind != unix.S_IFREG || dev != 0 && dev != unix.Mkdev(n.key.major, n.key.minor) {
			continue
		}
		if !slices.ContainsFunc(out, func(o *node) bool { return o.locks == n.locks }) {
			out = append(out, n)
		}
	}
	return out
}

// LocksTaken says that the process has its locks in the other place now: what the
// guard took, or what the process had through the layer, is let go of; as of PosixLocks,
// that may be those of one descriptor table of several.
func (l *Layer) LocksTaken(tgid, tid int, dev, ino uint64) {
	for _, n := range l.lockNodes(dev, ino) {
		n.locks.mu.Lock()
		leaves := false
		for _, g := range n.locks.guards {
			if g.pid == uint32(tgid) {
				g.letGo()
				leaves = leaves || g.stay
				g.stay = false
			}
		}
		n.locks.mu.Unlock()
		if leaves {
			n.locks.drop(func(o *lockOwner) bool { return o.pid == uint32(tgid) && l.tables.has(tid, o.id) })
		}
	}
}

// EndGuards ends the guards of a process at the objects with inode number ino; of all, everywhere, for tgid 0.
func (l *Layer) EndGuards(tgid int, dev, ino uint64) {
	nodes := l.lockNodes(dev, ino)
	if tgid == 0 {
		nodes = nil
		l.nodes.mu.RLock()
		for _, n := range l.nodes.byID {
			nodes = append(nodes, n)
		}
		l.nodes.mu.RUnlock()
	}
	for _, n := range nodes {
		n.locks.mu.Lock()
		n.locks.endGuards(uint32(tgid))
		n.locks.mu.Unlock()
	}
}

// endGuards ends guards of a process, 0 for all. The caller holds mu.
func (t *lockTable) endGuards(pid uint32) {
	t.guards = slices.DeleteFunc(t.guards, func(g *lockGuard) bool {
		if pid != 0 && g.pid != pid {
			return false
		}
		g.letGo()
		close(g.over)
		return true
	})
}

// guardAgainst is the guard that a lock of a process has to wait for, and the guarded lock. The caller holds mu.
func (t *lockTable) guardAgainst(pid uint32, s span) (*lockGuard, span) {
	if s.typ == unix.F_UNLCK {
		return nil, span{}
	}
	for _, g := range t.guards {
		if g.pid == pid {
			continue
		}
		for _, h := range g.spans {
			if h.overlaps(s) && (h.typ == unix.F_WRLCK || s.typ == unix.F_WRLCK) {
				return g, h
			}
		}
	}
	return nil, span{}
}

// stays reports whether a close of an owner leaves its locks alone.
func (t *lockTable) stays(match func(*lockOwner) bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.owners {
		if !match(o) {
			continue
		}
		if slices.ContainsFunc(t.guards, func(g *lockGuard) bool { return g.stay && g.pid == o.pid }) {
			return true
		}
	}
	return false
}
