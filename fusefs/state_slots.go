package fusefs

import (
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What is kept of each kind of thing. All functions may be called for a table that is nil: nothing is kept then. Nodes
// and lock owners have slots in any case, of the process's own memory where there is no table or no room in it.
//
// Descriptors are recorded after they were opened, and what records one is freed before it is closed: a number in the
// table always means what the record says. A descriptor that is in no record, because the process was killed in between, goes
// with the old process's table.

// nodeSlot is a node.
type nodeSlot struct {
	slot
	id, ino, mount     uint64
	major, minor, kind uint32
	fd                 int32
	lookups            atomic.Uint64 // 0: it is on its way out
	gone, freed        atomic.Bool

	// openFiles
	passed, retired, unmoved, refused atomic.Bool
	backing                           atomic.Int64 // 0 for none; below 0: being given back
	owner                             atomic.Uint64
}

// node keeps a node that was made. The caller holds nodeTable.mu.
func (t *stateTable) node(n *node) *nodeSlot {
	s := (*nodeSlot)(t.take(int(unsafe.Sizeof(nodeSlot{}))))
	if s == nil {
		s = &nodeSlot{}
	}
	s.id, s.fd, s.kind = n.id, int32(n.fd), n.kind
	s.ino, s.mount, s.major, s.minor = n.key.ino, n.key.mount, n.key.major, n.key.minor
	s.lookups.Store(n.lookups)
	s.gone.Store(n.gone)
	s.freed.Store(n.freed)
	o := &n.open
	s.passed.Store(o.passed)
	s.retired.Store(o.retired.Load())
	s.unmoved.Store(o.unmoved.Load())
	s.refused.Store(o.refused)
	s.backing.Store(int64(o.backing))
	s.owner.Store(uint64(o.owner.Uid)<<32 | uint64(o.owner.Gid))
	t.commit(&s.slot, slotNode)
	return s
}

func (t *stateTable) dropNode(s *nodeSlot) { t.drop(&s.slot, int(unsafe.Sizeof(*s))) }

// named keeps the kernel's name of the file below, and for whom it was made.
func (s *nodeSlot) named(backing int32, owner fuse.Owner) {
	s.owner.Store(uint64(owner.Uid)<<32 | uint64(owner.Gid))
	s.backing.Store(int64(backing))
}

// textSlot is a name of a node in a directory, or the last path of a node (slotLast). Its text follows it.
type textSlot struct {
	slot
	dir, node, size uint64
}

const textHead = int(unsafe.Sizeof(textSlot{}))

func (s *textSlot) text() []byte {
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(s), textHead)), s.size)
}

func (t *stateTable) keepText(k slotKind, dir, node uint64, text string) *textSlot {
	text = text[:min(len(text), slotSizes[len(slotSizes)-1]-textHead)]
	s := (*textSlot)(t.take(textHead + len(text)))
	if s == nil {
		return nil
	}
	s.dir, s.node, s.size = dir, node, uint64(len(text))
	copy(s.text(), text)
	t.commitName(&s.slot, k)
	return s
}

// name keeps a name of a node. The caller of this and of the next three holds nodeTable.mu.
func (t *stateTable) name(dir *node, name string, n *node) *textSlot {
	if t == nil {
		return nil
	}
	return t.keepText(slotName, dir.id, n.id, name)
}

func (t *stateTable) dropText(s *textSlot) {
	if s != nil {
		t.dropName(&s.slot, textHead+int(s.size))
	}
}

// last keeps the path that a node had when its last name went, in place of the one that was kept before.
func (t *stateTable) last(n *node) {
	if t == nil || n.keptLast == nil && n.last == "" {
		return
	}
	old := n.keptLast
	n.keptLast = t.keepText(slotLast, 0, n.id, n.last)
	t.dropText(old)
}

// handleSlot is an open file.
type handleSlot struct {
	slot
	id, node                 uint64
	cut                      atomic.Int64
	ofdOwner, posixOwner     atomic.Uint64
	fd                       atomic.Int32
	flags                    atomic.Uint32
	mode                     mode
	dir, adopted, ofd, exact bool
	learned                  atomic.Bool
}

// handle keeps an open file, once all is known of it and before it is answered.
func (t *stateTable) handle(h *handle) {
	if t == nil {
		return
	}
	s := (*handleSlot)(t.take(int(unsafe.Sizeof(handleSlot{}))))
	if s == nil {
		return
	}
	s.id, s.node = h.id, h.node.id
	s.mode, s.dir, s.adopted, s.ofd, s.exact = h.mode, h.dir, h.adopted, h.ofd, h.exact
	s.fd.Store(int32(h.fd))
	s.flags.Store(h.flags.Load())
	s.cut.Store(h.cut.Load())
	s.ofdOwner.Store(h.ofdOwner.Load())
	s.posixOwner.Store(h.posixOwner.Load())
	s.learned.Store(h.known)
	t.commit(&s.slot, slotHandle)
	h.kept.Store(s)
}

func (t *stateTable) dropHandle(h *handle) {
	if s := h.kept.Swap(nil); s != nil {
		t.drop(&s.slot, int(unsafe.Sizeof(*s)))
	}
}

// keep writes to the slot of a handle, if it has one.
func (h *handle) keep(f func(*handleSlot)) {
	if s := h.kept.Load(); s != nil {
		f(s)
	}
}

// ownerSlot is an owner of POSIX locks. Its locks are those of its descriptor (fdinfo of proc(5)).
type ownerSlot struct {
	slot
	id, ino, mount uint64
	major, minor   uint32
	fh             atomic.Uint64
	pid            atomic.Uint32
	fd             int32
}

func (t *stateTable) owner(o *lockOwner, k key) *ownerSlot {
	s := (*ownerSlot)(t.take(int(unsafe.Sizeof(ownerSlot{}))))
	if s == nil {
		s = &ownerSlot{}
	}
	s.id, s.fd, s.ino, s.mount, s.major, s.minor = o.id, int32(o.fd), k.ino, k.mount, k.major, k.minor
	s.pid.Store(o.pid)
	s.fh.Store(o.fh)
	t.commit(&s.slot, slotOwner)
	return s
}

func (t *stateTable) dropOwner(s *ownerSlot) { t.drop(&s.slot, int(unsafe.Sizeof(*s))) }

// forgottenSlot is a node that the kernel has forgotten; the bytes of its handle and its path follow.
type forgottenSlot struct {
	slot
	id, ino, mount       uint64
	major, minor         uint32
	handleType           int32
	handleSize, pathSize uint32
}

const forgottenHead = int(unsafe.Sizeof(forgottenSlot{}))

func (s *forgottenSlot) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(s), forgottenHead)), int(s.handleSize)+int(s.pathSize))
}

func (t *stateTable) forgotten(f *forgottenNode) *forgottenSlot {
	if t == nil {
		return nil
	}
	handle := f.handle.Bytes()
	path := f.path[:min(len(f.path), slotSizes[len(slotSizes)-1]-forgottenHead-len(handle))]
	s := (*forgottenSlot)(t.take(forgottenHead + len(handle) + len(path)))
	if s == nil {
		return nil
	}
	s.id, s.ino, s.mount, s.major, s.minor = f.id, f.key.ino, f.key.mount, f.key.major, f.key.minor
	s.handleType, s.handleSize, s.pathSize = f.handle.Type(), uint32(len(handle)), uint32(len(path))
	copy(s.bytes()[copy(s.bytes(), handle):], path)
	t.commit(&s.slot, slotForgotten)
	return s
}

func (t *stateTable) dropForgotten(s *forgottenSlot) {
	if s != nil {
		t.drop(&s.slot, forgottenHead+int(s.handleSize)+int(s.pathSize))
	}
}

func (s *forgottenSlot) node() *forgottenNode {
	b := s.bytes()
	return &forgottenNode{
		id: s.id, key: key{major: s.major, minor: s.minor, ino: s.ino, mount: s.mount},
		handle: unix.NewFileHandle(s.handleType, b[:s.handleSize]), path: string(b[s.handleSize:]),
	}
}
