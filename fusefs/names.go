package fusefs

import (
	"golang.org/x/sys/unix"
)

// link is one name of a node.
type link struct {
	dir  *node
	name string
	kept *textSlot
}

// maxNames bounds the hard links remembered of one node.
const maxNames = 256

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
	n.names = append(n.names, link{dir, name, t.kept.name(dir, name, n)})
	t.setGone(n, false)
}

func (t *nodeTable) setGone(n *node, is bool) {
	if n.gone != is {
		n.gone = is
		n.kept.gone.Store(is)
	}
}

// remove is unbind for a name that was removed. The caller holds mu.
func (t *nodeTable) remove(dir *node, name string) {
	n := dir.children[name]
	t.unbind(dir, name)
	if n != nil {
		t.setGone(n, len(n.names) == 0)
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
		t.kept.last(n)
	}
	delete(dir.children, name)
	for i, l := range n.names {
		if l.dir == dir && l.name == name {
			t.kept.dropText(l.kept)
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
	done := t.kept.changing()
	t.bind(dir, name, n)
	done()
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
	done := t.kept.changing()
	t.remove(dir, name)
	done()
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
	defer t.kept.changing()()
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
		t.kept.last(n)
	}
	t.mu.Unlock()
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
