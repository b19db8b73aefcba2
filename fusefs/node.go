package fusefs

import (
	"fmt"
	"path"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// key identifies an object under the layer. The mount is part of it, because
// two mounts of one file system below the root may have different attributes.
type key struct {
	major, minor uint32
	ino, mount   uint64
}

func keyOf(st *unix.Statx_t) key {
	return key{major: st.Dev_major, minor: st.Dev_minor, ino: st.Ino, mount: st.Mnt_id}
}

// node is one object that the kernel knows by number. Its descriptor pins the
// object, so that the key stays unique as long as the node lives.
type node struct {
	id   uint64
	fd   int // O_PATH
	key  key
	kind uint32 // S_IFMT bits

	// The rest is guarded by nodeTable.mu.
	lookups  uint64
	names    []link
	last     string // the path it had when its last name went; "" when it never had one
	gone     bool   // its last name that was known was removed
	freed    bool   // the space it took was given back; see vanished
	children map[string]*node

	open  openFiles
	locks *lockTable // shared with retired nodes of the same file

	kept     *nodeSlot
	keptLast *textSlot // of last
}

// nodeTable maps the kernel's node numbers to nodes. Numbers are never used
// again for another object, so that one that the kernel still holds cannot mean it.
type nodeTable struct {
	mu     sync.RWMutex
	root   *node
	prefix string
	byID   map[uint64]*node
	byKey  map[key]*node
	// retired are nodes that another has replaced, or will when its name is looked up; see retire.go.
	retired map[key][]*node
	splits  atomic.Int32 // of them
	next    uint64

	forgotten forgottenTable

	kept *stateTable // nil: nothing is kept
}

func (t *nodeTable) init(root int, st *unix.Statx_t, prefix string, kept *stateTable) {
	t.start(prefix, kept)
	t.root = &node{id: fuse.FUSE_ROOT_ID, fd: root, key: keyOf(st), kind: uint32(st.Mode) & unix.S_IFMT, lookups: 1, locks: newLockTable(kept)}
	t.next = fuse.FUSE_ROOT_ID + 1
	kept.numbers(func(h *tableHead) { h.nextNode.Store(t.next) })
	t.root.kept = kept.node(t.root)
	t.byID[t.root.id], t.byKey[t.root.key] = t.root, t.root
}

// start is for a table without nodes.
func (t *nodeTable) start(prefix string, kept *stateTable) {
	t.kept, t.prefix = kept, prefix
	t.forgotten.kept = kept
	t.byID, t.byKey, t.retired = map[uint64]*node{}, map[key]*node{}, map[key][]*node{}
}

func (t *nodeTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, n := range t.byID {
		_ = unix.Close(n.fd) // O_PATH: nothing to report
		n.locks.close()
		delete(t.byID, id)
	}
	clear(t.byKey)
	clear(t.retired)
}

func (t *nodeTable) get(id uint64) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

// count is the number of nodes, each with a descriptor.
func (t *nodeTable) count() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byID)
}

// enter gives the node of what fd refers to and counts one lookup of it. It
// owns fd. dir and name, if dir is not nil, are where it was found.
func (t *nodeTable) enter(fd int, st *unix.Statx_t, dir *node, name string) *node {
	k := keyOf(st)
	had := t.forgotten.number(k, fd)
	t.mu.Lock()
	n := t.byKey[k]
	if n == nil {
		id := had
		if id == 0 || t.byID[id] != nil {
			id = t.next
			t.next++
			t.kept.numbers(func(h *tableHead) { h.nextNode.Store(t.next) })
		} else {
			defer t.forgotten.back(id)
		}
		n = &node{id: id, fd: fd, key: k, kind: uint32(st.Mode) & unix.S_IFMT, locks: t.locksOf(k), lookups: 1}
		n.kept = t.kept.node(n)
		t.byID[n.id], t.byKey[k] = n, n
		fd = -1
	} else {
		n.lookups++
		n.kept.lookups.Store(n.lookups)
	}
	if dir != nil {
		done := t.kept.changing()
		t.bind(dir, name, n)
		done()
	}
	t.mu.Unlock()
	if fd >= 0 {
		_ = unix.Close(fd) // O_PATH
	}
	return n
}

// again counts a lookup of a node that is known already, unless it is on its way out.
func (t *nodeTable) again(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byKey[n.key] != n {
		return false
	}
	n.lookups++
	n.kept.lookups.Store(n.lookups)
	return true
}

// split reports whether another node is about the same file: one of them is retired.
func (t *nodeTable) split(n *node) bool {
	if t.splits.Load() == 0 {
		return false
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.retired[n.key]) > 0
}

// forget takes back lookups; at none the node goes, and is returned: its descriptor is still open, see leave.
func (t *nodeTable) forget(id, lookups uint64) *node {
	t.mu.Lock()
	n := t.byID[id]
	if n == nil || n == t.root {
		t.mu.Unlock()
		return nil
	}
	n.lookups -= min(lookups, n.lookups)
	n.kept.lookups.Store(n.lookups)
	if n.lookups > 0 {
		t.mu.Unlock()
		return nil
	}
	delete(t.byID, id)
	if t.byKey[n.key] == n {
		delete(t.byKey, n.key)
	} else {
		t.unretire(n)
	}
	remembered := t.byKey[n.key] == nil && n.key.mount == t.root.key.mount
	path := t.path(n)
	for _, l := range slices.Clone(n.names) {
		t.unbind(l.dir, l.name)
	}
	for name := range n.children { // without a node here no path can be made of them
		t.unbind(n, name)
	}
	t.kept.dropText(n.keptLast)
	t.mu.Unlock()
	if remembered {
		t.forgotten.add(n, path)
	}
	return n
}

// leave closes a node that was forgotten, after all that it stands for has been given back.
func (t *nodeTable) leave(n *node) {
	t.mu.Lock()
	last := n.locks.share(-1)
	t.mu.Unlock()
	t.kept.dropNode(n.kept)
	_ = unix.Close(n.fd) // O_PATH
	if last {
		n.locks.close()
	}
}

// locksOf are the locks of a file below. The caller holds mu.
func (t *nodeTable) locksOf(k key) *lockTable {
	if all := t.retired[k]; len(all) > 0 {
		all[0].locks.share(1)
		return all[0].locks
	}
	return newLockTable(t.kept)
}

// unretire takes a retired node out that goes. The caller holds mu.
func (t *nodeTable) unretire(n *node) {
	t.splits.Add(-1)
	left := slices.DeleteFunc(t.retired[n.key], func(o *node) bool { return o == n })
	if len(left) == 0 {
		delete(t.retired, n.key)
	} else {
		t.retired[n.key] = left
	}
}

// Backing returns an O_PATH duplicate of what lies under the object of the
// layer that has inode number ino; the caller closes it. rel is the object's
// path below the layer: it decides when sub-mounts have equal inode numbers.
func (l *Layer) Backing(ino uint64, rel string) (int, error) {
	t := &l.nodes
	t.mu.RLock() // held so that a forget cannot close the number first
	defer t.mu.RUnlock()
	found := t.numbered(ino)
	want := path.Join(t.prefix, rel)
	at := 0
	if len(found) > 1 {
		at = -1
		for i, n := range found {
			for _, p := range t.allPaths(n) {
				if p == want {
					at = i
				}
			}
		}
	}
	if len(found) == 0 || at < 0 {
		return -1, fmt.Errorf("fault layer of %q: %d known objects have inode number %d, none of them is %s", t.prefix, len(found), ino, want)
	}
	fd, err := unix.FcntlInt(uintptr(found[at].fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, fmt.Errorf("fault layer of %q: duplicate the object under %s: %w", t.prefix, want, err)
	}
	return fd, nil
}

// numbered are the nodes with an inode number, one for each file below. The caller holds mu.
func (t *nodeTable) numbered(ino uint64) []*node {
	var out []*node
	for k, n := range t.byKey {
		if k.ino == ino {
			out = append(out, n)
		}
	}
	for k, all := range t.retired {
		if k.ino == ino && t.byKey[k] == nil {
			out = append(out, all[0])
		}
	}
	return out
}
