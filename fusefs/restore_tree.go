package fusefs

import (
	"fmt"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func (s *nodeSlot) key() key { return key{major: s.major, minor: s.minor, ino: s.ino, mount: s.mount} }

// nodes makes the nodes, without names.
func (r *restorer) nodes() error {
	t, kept := &r.l.nodes, r.l.handles.kept
	t.start(r.l.o.Prefix, kept)
	t.next = r.from.head.nextNode.Load()
	kept.head.nextNode.Store(t.next)
	for _, v := range r.from.nodes {
		s := v.at
		if s.lookups.Load() == 0 {
			r.leaving = append(r.leaving, s)
			continue
		}
		n, err := r.node(s)
		if err != nil {
			return err
		}
		if t.byID[n.id] != nil || n.id >= t.next && n.id != fuse.FUSE_ROOT_ID {
			return fmt.Errorf("node %d is there twice, or is none of %d", n.id, t.next)
		}
		t.byID[n.id] = n
		switch {
		case n.open.retired.Load():
			t.retired[n.key] = append(t.retired[n.key], n)
			t.splits.Add(1)
		case t.byKey[n.key] != nil:
			return fmt.Errorf("two nodes, %d and %d, are for one object", n.id, t.byKey[n.key].id)
		default:
			t.byKey[n.key] = n
		}
	}
	if t.root = t.byID[fuse.FUSE_ROOT_ID]; t.root == nil {
		return fmt.Errorf("there is no root among %d nodes", len(t.byID))
	}
	return nil
}

func (r *restorer) node(s *nodeSlot) (*node, error) {
	fd, err := r.fd(s.fd)
	if err != nil {
		return nil, fmt.Errorf("node %d: %w", s.id, err)
	}
	var st unix.Statx_t
	// It has to be what it was, else data would go to another file. A file system below that hangs is not asked.
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, attrMask, &st); err != nil {
		return nil, fmt.Errorf("node %d: look at descriptor %d: %w", s.id, s.fd, err)
	}
	if keyOf(&st) != s.key() && (uint32(st.Mode)&unix.S_IFMT != s.kind || !renumbers(fd)) {
		return nil, fmt.Errorf("node %d: descriptor %d is not what it was", s.id, s.fd)
	}
	n := &node{id: s.id, fd: fd, key: s.key(), kind: s.kind, lookups: s.lookups.Load(), gone: s.gone.Load(), freed: s.freed.Load()}
	n.locks = r.locks[n.key]
	if n.locks == nil {
		n.locks = newLockTable(r.l.handles.kept)
		r.locks[n.key] = n.locks
	} else {
		n.locks.share(1)
	}
	o := &n.open
	o.passed, o.refused = s.passed.Load(), s.refused.Load()
	o.retired.Store(s.retired.Load())
	o.unmoved.Store(s.unmoved.Load())
	now := time.Now()
	o.since.Store(&now) // whoever moves what is open of it begins anew
	o.owner = ownerOf(s.owner.Load())
	switch b := int32(s.backing.Load()); {
	case b > 0:
		o.backing = b
	case b < 0:
		r.names = append(r.names, -b)
	}
	n.kept = r.l.handles.kept.node(n)
	return n, nil
}

// renumbers tells of overlayfs, where a file may get another number when it is copied up (Documentation/filesystems/overlayfs.rst, "Inode properties").
func renumbers(fd int) bool {
	var s unix.Statfs_t
	return unix.Fstatfs(fd, &s) == nil && s.Type == unix.OVERLAYFS_SUPER_MAGIC
}

func ownerOf(v uint64) fuse.Owner { return fuse.Owner{Uid: uint32(v >> 32), Gid: uint32(v)} }

// nodeNames gives the nodes their names, in the order in which they got them.
func (r *restorer) nodeNames() error {
	t := &r.l.nodes
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range r.from.names {
		if dir, n := t.byID[v.at.dir], t.byID[v.at.node]; dir != nil && n != nil { // else one of them was about to go
			t.bind(dir, string(v.at.text()), n)
		}
	}
	for _, v := range r.from.lasts {
		if n := t.byID[v.at.node]; n != nil {
			n.last = string(v.at.text())
			t.kept.last(n)
		}
	}
	return nil
}

// forgotten restores what is known of objects that the kernel has forgotten.
func (r *restorer) forgotten() error {
	for _, v := range r.from.forgotten {
		r.l.nodes.forgotten.remember(v.at.node())
	}
	return nil
}

// leave ends nodes that were on their way out, and gives back what nobody knows any more.
func (r *restorer) leave() error {
	t := &r.l.nodes
	for _, s := range r.leaving {
		if b := s.backing.Load(); b != 0 {
			r.names = append(r.names, int32(max(b, -b)))
		}
		fd, err := r.fd(s.fd)
		if err != nil {
			return fmt.Errorf("node %d: %w", s.id, err)
		}
		r.taken = r.taken[:len(r.taken)-1]
		n := &node{id: s.id, fd: fd, key: s.key(), kind: s.kind, gone: s.gone.Load()}
		if t.byID[n.id] == nil && t.byKey[n.key] == nil && n.key.mount == t.root.key.mount {
			t.forgotten.add(n, r.lastPath(n.id))
		}
		_ = unix.Close(fd) // O_PATH
	}
	for _, b := range r.names {
		r.l.device.dropBackingID(b)
	}
	r.l.sweepBackings()
	return nil
}

// lastPath is a path that a node had which is on its way out.
func (r *restorer) lastPath(id uint64) string {
	t := &r.l.nodes
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, v := range r.from.names {
		if dir := t.byID[v.at.dir]; v.at.node == id && dir != nil {
			return join(t.path(dir), string(v.at.text()))
		}
	}
	for _, v := range r.from.lasts {
		if v.at.node == id {
			return string(v.at.text())
		}
	}
	return ""
}

// sweptNames is how many of the latest names of files are looked at, far more than are made at a time.
const sweptNames = 1024

// sweepBackings gives back names that the kernel gave to files and nobody has recorded, as the process was killed before
// that. The kernel gives numbers in turn (fuse_backing_id_alloc in fs/fuse/backing.c), so they are among the latest.
func (l *Layer) sweepBackings() {
	if !l.passthrough {
		return
	}
	known := map[int32]bool{}
	for _, n := range l.nodes.byID {
		known[n.open.backing] = true
	}
	probe, err := unix.MemfdCreate("faultgraft-probe", unix.MFD_CLOEXEC) // any regular file
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(probe) }()
	last, err := l.device.openBacking(probe)
	if err != nil {
		l.o.Logger.Warn("names that the kernel gave to files below may be left over until the layer is off", "path", l.o.Prefix, "err", err)
		return
	}
	l.device.closeBacking(last)
	for id := max(last-sweptNames, 1); id < last; id++ {
		if !known[id] {
			l.device.dropBackingID(id)
		}
	}
}
