package fusefs

import (
	"fmt"
	"path"
	"slices"
	"strconv"
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
}

// link is one name of a node.
type link struct {
	dir  *node
	name string
}

// maxNames bounds the hard links remembered of one node.
const maxNames = 256

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
}

func (t *nodeTable) init(root int, st *unix.Statx_t, prefix string) {
	t.root = &node{id: fuse.FUSE_ROOT_ID, fd: root, key: keyOf(st), kind: uint32(st.Mode) & unix.S_IFMT, lookups: 1, locks: newLockTable()}
	t.prefix = prefix
	t.byID = map[uint64]*node{fuse.FUSE_ROOT_ID: t.root}
	t.byKey = map[key]*node{t.root.key: t.root}
	t.retired = map[key][]*node{}
	t.next = fuse.FUSE_ROOT_ID + 1
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
		} else {
			defer t.forgotten.back(id)
		}
		n = &node{id: id, fd: fd, key: k, kind: uint32(st.Mode) & unix.S_IFMT, locks: t.locksOf(k)}
		t.byID[n.id], t.byKey[k] = n, n
		fd = -1
	}
	n.lookups++
	if dir != nil {
		t.bind(dir, name, n)
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

// forget takes back lookups; at none the node goes, and is returned.
func (t *nodeTable) forget(id, lookups uint64) *node {
	t.mu.Lock()
	n := t.byID[id]
	if n == nil || n == t.root {
		t.mu.Unlock()
		return nil
	}
	if n.lookups -= min(lookups, n.lookups); n.lookups > 0 {
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
	last := n.locks.share(-1)
	t.mu.Unlock()
	if remembered {
		t.forgotten.add(n, path)
	}
	_ = unix.Close(n.fd) // O_PATH
	if last {
		n.locks.close()
	}
	return n
}

// locksOf are the locks of a file below. The caller holds mu.
func (t *nodeTable) locksOf(k key) *lockTable {
	if all := t.retired[k]; len(all) > 0 {
		all[0].locks.share(1)
		return all[0].locks
	}
	return newLockTable()
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

// bind records that name in dir is n. The caller holds mu.
func (t *nodeTable) bind(dir *node, name string, n *node) {
	have := dir.children[name]
	if have == n || n == t.root {
		return
	}
	if have != nil {
		t.unbind(dir, name)
	}
	if n.kind == unix.S_IFDIR && len(n.names) > 0 { // a directory has one name: this is where it is by now
		t.unbind(n.names[0].dir, n.names[0].name)
	}
	if len(n.names) >= maxNames {
		t.unbind(n.names[0].dir, n.names[0].name)
	}
	if dir.children == nil {
		dir.children = map[string]*node{}
	}
	dir.children[name] = n
	n.names = append(n.names, link{dir, name})
	n.gone = false
}

// remove is unbind for a name that was removed. The caller holds mu.
func (t *nodeTable) remove(dir *node, name string) {
	n := dir.children[name]
	t.unbind(dir, name)
	if n != nil {
		n.gone = len(n.names) == 0
	}
}

// unbind records that name in dir is nothing. The caller holds mu.
func (t *nodeTable) unbind(dir *node, name string) {
	n := dir.children[name]
	if n == nil {
		return
	}
	if len(n.names) == 1 {
		n.last = t.path(n)
	}
	delete(dir.children, name)
	for i, l := range n.names {
		if l.dir == dir && l.name == name {
			n.names = append(n.names[:i], n.names[i+1:]...)
			break
		}
	}
}

// maxDepth ends the walk up in a loop, which renames behind the layer can fake
// until the names are seen again; no path of Linux is that deep (PATH_MAX).
const maxDepth = 2048

// path is one path of the node. The caller holds mu.
func (t *nodeTable) path(n *node) string {
	n = t.current(n)
	var few [24]string
	parts := few[:0] // the last one first
	head, total := t.prefix, 0
	for at := n; at != t.root; at = at.names[0].dir {
		if len(at.names) == 0 || len(parts) > maxDepth {
			head = at.last
			break
		}
		parts = append(parts, at.names[0].name)
		total += 1 + len(at.names[0].name)
	}
	if len(parts) == 0 {
		return head
	}
	b := make([]byte, 0, len(head)+total)
	if head != "/" {
		b = append(b, head...)
	}
	for i := len(parts) - 1; i >= 0; i-- {
		b = append(b, '/')
		b = append(b, parts[i]...)
	}
	return string(b)
}

// paths are all paths under which the node is known now; for one that has no name any more, its last.
func (t *nodeTable) paths(n *node) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n = t.current(n)
	if len(n.names) <= 1 {
		return []string{t.path(n)}
	}
	out := make([]string, 0, len(n.names))
	for _, l := range n.names {
		out = append(out, join(t.path(l.dir), l.name))
	}
	return out
}

// entryPaths is the path of a name in a directory.
func (t *nodeTable) entryPaths(dir *node, name string) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return []string{join(t.path(dir), name)}
}

// join does not clean: "" as a name gives the directory's path with a slash at its end.
func join(dir, name string) string {
	if dir == "/" {
		return dir + name
	}
	return dir + "/" + name
}

func (t *nodeTable) bound(dir *node, name string, n *node) {
	t.mu.Lock()
	t.bind(dir, name, n)
	t.mu.Unlock()
}

// named is the node that a name is known to be; nil for none.
func (t *nodeTable) named(dir *node, name string) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return dir.children[name]
}

func (t *nodeTable) unbound(dir *node, name string) {
	t.mu.Lock()
	t.remove(dir, name)
	t.mu.Unlock()
}

// mountedOn reports whether something is mounted below the layer on a name.
// Such a name is busy (is_local_mountpoint in fs/namespace.c): to the layer's
// process, which is in another mount namespace, the kernel would not say so but
// take the mount off (may_delete and detach_mounts in fs/namei.c). The kernel
// has looked the name up before it sends what removes it.
func (t *nodeTable) mountedOn(dir *node, name string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := dir.children[name]
	return n != nil && n.key.mount != dir.key.mount
}

// renamed follows a rename that has happened.
func (t *nodeTable) renamed(from *node, name string, to *node, newName string, flags uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a, b := from.children[name], to.children[newName]
	if a == b && flags&unix.RENAME_EXCHANGE == 0 {
		return // two links of one file: rename(2) does nothing
	}
	t.remove(to, newName)
	t.unbind(from, name)
	if a != nil {
		t.bind(to, newName, a)
	}
	if b != nil && flags&unix.RENAME_EXCHANGE != 0 {
		t.bind(from, name, b)
	}
}

// setLast records the path of a node that has no name in the tree.
func (t *nodeTable) setLast(n *node, p string) {
	t.mu.Lock()
	if len(n.names) == 0 {
		n.last = p
	}
	t.mu.Unlock()
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

// allPaths is paths for a caller that holds mu.
func (t *nodeTable) allPaths(n *node) []string {
	n = t.current(n)
	out := []string{t.path(n)}
	for i := 1; i < len(n.names); i++ {
		out = append(out, join(t.path(n.names[i].dir), n.names[i].name))
	}
	return out
}

// attrMask is what is asked for.
const attrMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

// statx reads the attributes of what an O_PATH descriptor refers to.
func statx(fd int, st *unix.Statx_t) error {
	return retry(func() error { return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, attrMask, st) })
}

// statxAt reads the attributes of what a name in a directory is.
func statxAt(dir int, name string, st *unix.Statx_t) error {
	return retry(func() error {
		return unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, attrMask, st)
	})
}

// retry repeats a system call that a signal of the Go runtime interrupted.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// magic is the path by which calls that take no O_PATH descriptor reach the
// object of one (proc(5), /proc/pid/fd).
func magic(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
