package fusefs

import (
	"bytes"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// File handles (name_to_handle_at(2), NFS). The kernel makes those of a layer of the
// number of a node (fuse_encode_fh in fs/fuse/inode.c), asks nobody, and looks up "."
// in a number that it has forgotten when one is opened (FUSE_EXPORT_SUPPORT). So a
// node that goes leaves the handle of the object below, and an object that comes back
// gets the number that it had.

// maxForgotten is how many nodes that have gone are remembered; handles of older ones are stale.
const maxForgotten = 4096

// forgottenNode is a node that the kernel has forgotten and could ask for.
type forgottenNode struct {
	id     uint64
	key    key
	handle unix.FileHandle
	path   string // the last one
	kept   *forgottenSlot
}

// forgottenTable remembers nodes that have gone, the latest ones.
type forgottenTable struct {
	mu    sync.Mutex
	byID  map[uint64]*forgottenNode
	byKey map[key]*forgottenNode
	ring  [maxForgotten]uint64
	next  int
	kept  *stateTable
}

// add remembers a node that has gone. Its descriptor is still open.
func (t *forgottenTable) add(n *node, path string) {
	var st unix.Statx_t
	if n.gone && (statx(n.fd, &st) != nil || st.Nlink == 0) {
		return // most nodes that go: those of removed files, whose handles are stale
	}
	handle, _, err := unix.NameToHandleAt(n.fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return // the file system below has no handles
	}
	t.remember(&forgottenNode{id: n.id, key: n.key, handle: handle, path: path})
}

func (t *forgottenTable) remember(f *forgottenNode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID == nil {
		t.byID, t.byKey = map[uint64]*forgottenNode{}, map[key]*forgottenNode{}
	}
	t.remove(t.byID[t.ring[t.next]])
	t.remove(t.byKey[f.key]) // an object that had the same inode number
	f.kept = t.kept.forgotten(f)
	t.byID[f.id], t.byKey[f.key] = f, f
	t.ring[t.next] = f.id
	t.next = (t.next + 1) % maxForgotten
}

// remove forgets for good. The caller holds mu.
func (t *forgottenTable) remove(f *forgottenNode) {
	if f != nil {
		delete(t.byID, f.id)
		delete(t.byKey, f.key)
		t.kept.dropForgotten(f.kept)
	}
}

func (t *forgottenTable) get(id uint64) *forgottenNode {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// number is the number that an object had, 0 if it is not known to have had one.
func (t *forgottenTable) number(k key, fd int) uint64 {
	t.mu.Lock()
	f := t.byKey[k]
	t.mu.Unlock()
	if f == nil {
		return 0
	}
	// Inode numbers are used again; the handle says whether it is the same object.
	handle, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil || handle.Type() != f.handle.Type() || !bytes.Equal(handle.Bytes(), f.handle.Bytes()) {
		return 0
	}
	return f.id
}

// back is called when a node has its number again.
func (t *forgottenTable) back(id uint64) {
	t.mu.Lock()
	t.remove(t.byID[id])
	t.mu.Unlock()
}

// lookupSelf answers for "." and "..", which the kernel looks up for file handles only.
func (l *Layer) lookupSelf(h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	var fd int
	var err error
	last := ""
	n := l.nodes.get(h.NodeId)
	switch f := l.nodes.forgotten.get(h.NodeId); {
	case n != nil && name == ".":
		fd, err = unix.Open(magic(n.fd), unix.O_PATH|unix.O_CLOEXEC, 0)
	case n != nil && n != l.nodes.root:
		fd, err = openPath(n.fd, "..")
	case n == nil && name == "." && f != nil:
		fd, err = l.openHandle(f.handle)
		last = f.path
	default:
		err = unix.ESTALE
	}
	if err != nil {
		return status(err)
	}
	st := l.enter(fd, nil, "", out)
	if n := l.nodes.get(out.NodeId); st.Ok() && n != nil && last != "" {
		l.nodes.setLast(n, last)
	}
	return st
}

// openHandle opens an object by its handle in the file system of the root. A kernel
// may not take an O_PATH descriptor for the mount.
func (l *Layer) openHandle(handle unix.FileHandle) (int, error) {
	mount, err := unix.Open(magic(l.nodes.root.fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(mount) }() // only read
	return unix.OpenByHandleAt(mount, handle, unix.O_PATH|unix.O_CLOEXEC)
}
