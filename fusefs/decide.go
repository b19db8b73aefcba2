package fusefs

import (
	"math/bits"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/faultgraft/faultgraft/policy"
)

// request is what a decision needs to know of one operation.
type request struct {
	cancel       <-chan struct{} // closed by FUSE_INTERRUPT
	header       *fuse.InHeader
	op           policy.Op
	also         policy.OpSet // further names under which rules match it
	offset, size int64
}

// ops are all names under which rules match the operation.
func (q *request) ops() policy.OpSet { return q.also.With(q.op) }

// releasing are the operations whose answer the kernel does not wait for.
var releasing = ops(policy.OpRelease, policy.OpReleasedir)

func ops(list ...policy.Op) policy.OpSet {
	var s policy.OpSet
	for _, o := range list {
		s = s.With(o)
	}
	return s
}

// place gives place and size of the operation as filters understand them: negative where it has none.
func (q *request) place() (offset, size int64) {
	switch {
	case policy.OpsSized.Has(q.op):
		return q.offset, q.size
	case q.op == policy.OpLseek:
		return q.offset, -1
	}
	return -1, -1
}

// bytes is how much data the operation moves.
func (q *request) bytes() int64 {
	if policy.OpsMoving.Has(q.op) {
		return q.size
	}
	return 0
}

// decide is the one point that every operation goes through. It asks the rules
// in their order; each that fires makes the operation wait as it says. The
// first one that fires with an errno ends the operation, the first one that
// changes it in another way settles what is done: rules after that one neither
// see nor count it. paths are all names under which the operation's object is
// known; a rule acts once however many of them it matches. Nothing is locked
// while it waits. The change is nil for an operation that goes on as it is.
func (l *Layer) decide(q request, paths func() []string) (*change, syscall.Errno) {
	set := l.rules.Load()
	if set.ops&q.ops() == 0 {
		return nil, 0
	}
	return l.ask(set, q, paths)
}

func (l *Layer) ask(set *ruleSet, q request, paths func() []string) (*change, syscall.Errno) {
	var known []string
	var seen *change // the attributes overridden so far
	who := caller{header: q.header}
	asked := false
	for _, r := range set.rules {
		ops := r.acts & q.ops()
		if ops == 0 {
			continue
		}
		if known == nil {
			known = paths()
		}
		path, ok := match(r, ops, known)
		if !ok || !r.IO.MatchRequest(q.place()) || !r.able(&q) {
			continue
		}
		if q.op == policy.OpFlush && (l.o.Scope != nil || r.IO.Caller.NeedsExe()) && withinExec(q.header.Pid) {
			continue
		}
		if !asked {
			if !l.faultable(q.header.Pid) {
				return nil, 0
			}
			asked = true
		}
		if !who.matches(&r.IO.Caller) {
			continue
		}
		n, at, d, fire := l.fire(&q, r)
		if !fire {
			continue
		}
		c := r.fired(&q, path, n, at)
		c.draw = d
		how := l.wait(&q, r, c)
		if how == interrupted && l.settling() {
			// A swapper stops the caller's process, which arrives here as a signal does. No program is to see EINTR
			// for that: the wait is over, and the operation goes on.
			how = ruleOver
		}
		if how == interrupted && !r.IO.Hang {
			// A slow disk is no reason for EINTR: a file's read, write, open and fsync do not know it (signal(7)), and PostgreSQL
			// takes it for an error. The wait is cut short, for a signal that is to kill, and the rest of the rule carried out.
			how = served
		}
		switch how {
		case interrupted:
			c.event.Errno = syscall.EINTR
			l.record(c)
			return nil, syscall.EINTR
		case ruleOver: // the fault has ended: the operation goes on as if it had never been
			l.record(c)
			continue
		}
		c.settle()
		if c.pending() {
			return c, 0
		}
		l.record(c)
		if c.event.Errno != 0 {
			return nil, c.event.Errno
		}
		if c.event.Action == ActionAttr {
			seen = seen.merge(c)
		}
	}
	return seen, 0
}

func match(r *liveRule, ops policy.OpSet, paths []string) (string, bool) {
	op := policy.Op(bits.TrailingZeros64(uint64(ops))) // whichever it is: the rule names it
	for _, p := range paths {
		if r.IO.Match(op, p) {
			return p, true
		}
	}
	return "", false
}

// record counts a fault that has happened and puts it into the log, unless a server before this one has.
func (l *Layer) record(c *change) {
	if !c.draw.report() {
		return
	}
	l.counted.add(&c.event)
	if l.o.Record != nil {
		l.o.Record(c.event)
	}
}

// faultable reports whether faults may reach the caller.
func (l *Layer) faultable(tid uint32) bool {
	if l.trusted.has(tid) {
		return false
	}
	return l.o.Scope == nil || l.o.Scope(tid)
}

// node decides about an operation on a node that rules can delay or fail, not change.
func (l *Layer) node(q request, n *node) syscall.Errno {
	_, e := l.decide(q, func() []string { return l.nodes.paths(n) })
	return e
}

// judge decides about an operation on a node that rules can change too.
func (l *Layer) judge(q request, n *node) (*change, syscall.Errno) {
	return l.decide(q, func() []string { return l.nodes.paths(n) })
}

// entry decides about an operation on a name in a directory.
func (l *Layer) entry(q request, dir *node, name string) syscall.Errno {
	_, e := l.decide(q, func() []string { return l.nodes.entryPaths(dir, name) })
	return e
}
