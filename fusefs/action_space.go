package fusefs

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// spacesOf are the live rules whose space is what lies under these paths. Every
// operation there counts, whoever makes it and whether or not the rule names it:
// ops and filters say which of them are refused.
func (s *ruleSet) spacesOf(paths []string) []*liveRule {
	var out []*liveRule
	now := time.Now()
	for _, r := range s.spaces {
		if _, ok := match(r, r.IO.Ops, paths); ok && !r.counter.Expired(now) {
			out = append(out, r)
		}
	}
	return out
}

// spaces are the rules whose space a node takes; none, at no cost, when no rule is about space.
func (l *Layer) spaces(n *node) []*liveRule {
	set := l.rules.Load()
	if len(set.spaces) == 0 || n == nil {
		return nil
	}
	return set.spacesOf(l.nodes.paths(n))
}

// claim is the space that one operation has taken before it is carried out.
type claim struct {
	rules   []*liveRule
	need    func(n int64) int64
	fit     int64     // how many bytes of the operation there is space for
	refused []*change // by whom it was made less
}

// claim takes the space for the first n bytes of an operation, or for as many as there is space for.
func (l *Layer) claim(q *request, node *node, rules []*liveRule, n int64, need func(int64) int64, fit func(n, space int64) int64) *claim {
	c := &claim{rules: rules, need: need, fit: n}
	who := caller{header: q.header}
	for i, r := range rules {
		want := need(c.fit)
		got := r.space.take(want)
		if got == want {
			continue
		}
		refused := l.refuse(q, node, r, &who)
		if refused == nil { // not this operation: it goes beyond the limit
			r.space.charge(want - got)
			continue
		}
		less := fit(c.fit, got)
		for _, o := range rules[:i] {
			o.space.charge(need(less) - want)
		}
		r.space.charge(need(less) - got)
		c.fit, c.refused = less, append(c.refused, refused)
	}
	return c
}

// refuse asks a rule without space whether it refuses the operation.
func (l *Layer) refuse(q *request, n *node, r *liveRule, who *caller) *change {
	ops := r.IO.Ops & q.ops()
	if ops == 0 {
		return nil
	}
	path, ok := match(r, ops, l.nodes.paths(n))
	if !ok || !r.IO.MatchRequest(q.place()) || !l.faultable(q.header.Pid) || !who.matches(&r.IO.Caller) {
		return nil
	}
	number, at, d, fire := l.fire(q, r)
	if !fire {
		return nil
	}
	c := r.fired(q, path, number, at)
	c.draw = d
	c.settle()
	return c
}

// spaceErrno is the error of a rule about space.
func spaceErrno(s *policy.Space) (Action, syscall.Errno) {
	if s.Quota {
		return ActionQuota, unix.EDQUOT
	}
	return ActionNoSpace, unix.ENOSPC
}

// end gives back what the operation, of which n bytes were done, did not need,
// and records who made it less. The errno is that of the first of them, if
// nothing was done or the answer cannot tell how much was.
func (l *Layer) end(c *claim, n int64, whole bool) syscall.Errno {
	if unused := c.need(c.fit) - c.need(n); unused != 0 {
		for _, r := range c.rules {
			r.space.charge(-unused)
		}
	}
	var errno syscall.Errno
	for _, by := range c.refused {
		if by.event.Bytes = n; n > 0 && !whole {
			by.event.Errno = 0
		}
		if errno == 0 {
			errno = by.event.Errno
		}
		l.record(by)
	}
	return errno
}

// put writes data at the operation's place, as far as there is space.
func (w *write) put(data []byte) (int, error) {
	if n, done := w.doneBefore(data); done {
		return w.finish(data, n), nil
	}
	rules := w.l.spaces(w.h.node)
	if len(rules) == 0 || len(data) == 0 {
		return w.store(data)
	}
	mu := w.l.spaceLocks.of(w.h.node.key)
	mu.Lock()
	defer mu.Unlock()
	m, at, err := w.blocks(int64(len(data)))
	if err != nil {
		return 0, err
	}
	need := func(n int64) int64 { return m.need(at, n) }
	c := w.l.claim(w.q, w.h.node, rules, int64(len(data)), need, func(n, space int64) int64 { return m.fit(at, n, space) })
	n := 0
	if c.fit > 0 {
		n, err = w.store(data[:c.fit])
	}
	// Of a page that is written back the kernel does not ask how much was written.
	if errno := w.l.end(c, int64(n), w.back); errno != 0 && err == nil {
		return 0, errno
	}
	return n, err
}

// blocks looks at the blocks where the write goes, and says where that is.
func (w *write) blocks(size int64) (*blockMap, int64, error) {
	fd, err := w.h.alias(false)
	if err != nil {
		return nil, 0, err
	}
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		return nil, 0, err
	}
	at := w.q.offset
	if !w.back && w.flags&unix.O_APPEND != 0 {
		at = int64(st.Size)
	}
	m, err := blocksOf(fd, &st, min(at, int64(st.Size)), at+size)
	return m, at, err
}
