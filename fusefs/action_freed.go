package fusefs

import (
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tally is what some rules know a file to take, to be looked at again after an
// operation that gives or takes space. It is nil when no rule is about space.
type tally struct {
	l        *Layer
	n        *node
	rules    []*liveRule
	from, to int64
	before   int64
	unlock   func()
}

// tally begins an operation that changes what a node takes between two places; to below 0 means its end.
func (l *Layer) tally(n *node, from, to int64) *tally {
	rules := l.spaces(n)
	if len(rules) == 0 || n.kind != unix.S_IFREG {
		return nil
	}
	mu := l.spaceLocks.of(n.key)
	mu.Lock()
	t := &tally{l: l, n: n, rules: rules, from: from, to: to, unlock: mu.Unlock}
	t.before = t.look()
	return t
}

func (t *tally) look() int64 {
	fd, err := unix.Open(magic(t.n.fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return t.before
	}
	defer func() { _ = unix.Close(fd) }() // only looked at
	now, err := taken(fd, t.from, t.to)
	if err != nil {
		t.l.o.Logger.Warn("look at the blocks of a file", "err", err)
		return t.before
	}
	return now
}

// done ends the operation and counts what came of it.
func (t *tally) done() {
	if t == nil {
		return
	}
	change := t.look() - t.before
	for _, r := range t.rules {
		r.space.charge(change)
	}
	t.unlock()
}

// resizing begins a truncation. What it adds in the file's last block is not refused, only counted.
func (l *Layer) resizing(n *node, size int64) *tally {
	if len(l.rules.Load().spaces) == 0 {
		return nil
	}
	var st unix.Statx_t
	if err := statx(n.fd, &st); err != nil {
		return nil // so will the truncation
	}
	return l.tally(n, min(size, int64(st.Size)), -1)
}

// truncating begins an open that cuts the file to nothing.
func (l *Layer) truncating(n *node, flags uint32) *tally {
	if flags&unix.O_TRUNC == 0 {
		return nil
	}
	return l.tally(n, 0, -1)
}

// fallocate changes a file's blocks, as far as there is space: all or nothing.
func (l *Layer) fallocate(q *request, h *handle, mode uint32) error {
	do := func() error {
		return l.creds.asWriter(q.header, func() error { return unix.Fallocate(h.fd, mode, q.offset, q.size) })
	}
	rules := l.spaces(h.node)
	if len(rules) == 0 {
		return do()
	}
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE) != 0 {
		t := l.tally(h.node, 0, -1)
		defer t.done()
		return do()
	}
	mu := l.spaceLocks.of(h.node.key)
	mu.Lock()
	defer mu.Unlock()
	fd, err := h.alias(false)
	if err != nil {
		return err
	}
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		return err
	}
	size, end := int64(st.Size), q.offset+q.size
	m, err := blocksOf(fd, &st, min(q.offset, size), end)
	if err != nil {
		return err
	}
	need := func(n int64) int64 { return m.need(q.offset, n) }
	c := l.claim(q, h.node, rules, q.size, need, func(int64, int64) int64 { return 0 })
	if c.fit == 0 && len(c.refused) > 0 {
		return l.end(c, 0, true)
	}
	n := q.size
	err = do()
	switch {
	case err != nil:
		n = 0
	case mode&unix.FALLOC_FL_KEEP_SIZE != 0: // what lies beyond the end counts when the file has grown over it
		n = max(min(end, size)-q.offset, 0)
	}
	_ = l.end(c, n, true)
	return err
}

// copyRange copies between files, as far as there is space in the second.
func (l *Layer) copyRange(q *request, from, to *handle, offOut int64, do func(n int) (int, error)) (int, error) {
	n := min(q.size, 1<<30)
	rules := l.spaces(to.node)
	if len(rules) == 0 {
		return do(int(n))
	}
	mu := l.spaceLocks.of(to.node.key)
	mu.Lock()
	defer mu.Unlock()
	var src, st unix.Statx_t
	fd, err := to.alias(false)
	if err == nil {
		err = statx(fd, &st)
	}
	if err == nil {
		err = statx(from.node.fd, &src)
	}
	if err != nil {
		return 0, err
	}
	if n = min(n, int64(src.Size)-q.offset); n <= 0 {
		return do(int(q.size)) // at the end of the source, or past it
	}
	m, err := blocksOf(fd, &st, min(offOut, int64(st.Size)), offOut+n)
	if err != nil {
		return 0, err
	}
	need := func(n int64) int64 { return m.need(offOut, n) }
	c := l.claim(q, to.node, rules, n, need, func(n, space int64) int64 { return m.fit(offOut, n, space) })
	copied := 0
	if c.fit > 0 {
		copied, err = do(int(c.fit))
	}
	if errno := l.end(c, int64(copied), false); errno != 0 && err == nil {
		err = errno
	}
	return copied, err
}

// vanished gives the space back of a file that has lost a name or a descriptor,
// if it was the last of both: until then it takes its space.
func (l *Layer) vanished(n *node) {
	rules := l.spaces(n)
	if len(rules) == 0 || n.kind != unix.S_IFREG {
		return
	}
	var st unix.Statx_t
	if err := statx(n.fd, &st); err != nil || st.Nlink > 0 || !l.nodes.free(n) {
		return
	}
	size := l.takenBy(n) // the node still holds the file
	for _, r := range rules {
		r.space.charge(-size)
	}
}

func (l *Layer) takenBy(n *node) int64 { return (&tally{l: l, n: n, to: -1}).look() }

// free reports, once for each file, that no descriptor of it is open.
func (t *nodeTable) free(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := append([]*node{n}, t.retired[n.key]...)
	if now := t.byKey[n.key]; now != nil {
		all = append(all, now)
	}
	for _, o := range all {
		if !o.open.none() || o.freed {
			return false
		}
	}
	for _, o := range all {
		o.freed = true
		o.kept.freed.Store(true)
	}
	return true
}

// child is the node known under a name.
func (t *nodeTable) child(dir *node, name string) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return dir.children[name]
}

// relocation follows a file from the paths of some rules to those of others.
type relocation struct {
	l              *Layer
	file, replaced *node
	before         []*liveRule
}

// relocating begins a rename. What is moved between the paths of rules is not refused, only counted.
func (l *Layer) relocating(from *node, name string, to *node, newName string) *relocation {
	if len(l.rules.Load().spaces) == 0 {
		return nil
	}
	r := &relocation{l: l, file: l.nodes.child(from, name), replaced: l.nodes.child(to, newName)}
	r.before = l.spaces(r.file)
	return r
}

func (r *relocation) done() {
	if r == nil {
		return
	}
	r.l.vanished(r.replaced)
	after := r.l.spaces(r.file)
	if r.file == nil || r.file.kind != unix.S_IFREG || slices.Equal(r.before, after) {
		return
	}
	size := r.l.takenBy(r.file)
	for _, rule := range r.before {
		if !slices.Contains(after, rule) {
			rule.space.charge(-size)
		}
	}
	for _, rule := range after {
		if !slices.Contains(r.before, rule) {
			rule.space.charge(size)
		}
	}
}

// fitStatfs has statfs agree with what the rules leave.
func (l *Layer) fitStatfs(q *request, n *node, s *syscall.Statfs_t) {
	if s.Bsize <= 0 {
		return
	}
	unit := s.Bsize
	if s.Frsize > 0 {
		unit = s.Frsize
	}
	who := caller{header: q.header}
	now := time.Now()
	for _, r := range l.spaces(n) {
		if !r.counter.Awake(now) || !l.faultable(q.header.Pid) || !who.matches(&r.IO.Caller) {
			continue
		}
		left := uint64(max(r.space.left(), 0) / unit)
		s.Bfree, s.Bavail = min(s.Bfree, left), min(s.Bavail, left)
	}
}
