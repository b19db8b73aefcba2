package fusefs

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

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

// decide is the one point that every operation goes through. It asks the rules
// in their order; each that fires delays the operation, and the first that
// fires with an errno ends it: rules after that one neither see nor count it.
// paths are all names under which the operation's object is known; a rule acts
// once however many of them it matches. Nothing is locked while it waits.
func (l *Layer) decide(q request, paths func() []string) syscall.Errno {
	set := l.rules.Load()
	if set.ops&q.ops() == 0 {
		return 0
	}
	var known []string
	asked := false
	for _, r := range set.rules {
		ops := r.IO.Ops & q.ops()
		if ops == 0 {
			continue
		}
		if known == nil {
			known = paths()
		}
		path, ok := match(r, ops.Ops()[0], known)
		if !ok {
			continue
		}
		if !asked {
			if !l.faultable(q.header.Pid) {
				return 0
			}
			asked = true
		}
		now := time.Now()
		n, fire := r.counter.Fire(now, q.size)
		if !fire {
			continue
		}
		e := Event{
			Time: now, Rule: r.Name, Op: q.op, Path: path, Offset: q.offset, Size: q.size,
			PID: q.header.Pid, UID: q.header.Uid, Errno: errnoOf(&r.Rule), Latency: latencyOf(&r.Rule), N: n,
		}
		l.delay(q, r, &e)
		if q.op == policy.OpRelease || q.op == policy.OpReleasedir {
			e.Errno = 0 // the kernel does not wait for the answer: there is nobody to fail
		}
		if l.o.Record != nil {
			l.o.Record(e)
		}
		if e.Errno != 0 {
			return e.Errno
		}
	}
	return 0
}

func match(r *liveRule, op policy.Op, paths []string) (string, bool) {
	for _, p := range paths {
		if r.IO.Match(op, p) {
			return p, true
		}
	}
	return "", false
}

// delay waits as the rule says and writes to e what came of it.
func (l *Layer) delay(q request, r *liveRule, e *Event) {
	if r.IO.Latency == nil {
		return
	}
	t := time.NewTimer(r.IO.Latency.Base)
	defer t.Stop()
	select {
	case <-t.C:
		return
	case <-q.cancel:
		e.Errno = unix.EINTR
	case <-r.over: // the fault has ended: the operation goes on as if it had never been
		e.Errno = 0
	}
	e.Latency, e.Cut = time.Since(e.Time), true
}

// faultable reports whether faults may reach the caller.
func (l *Layer) faultable(tid uint32) bool {
	if l.trusted.has(tid) {
		return false
	}
	return l.o.Scope == nil || l.o.Scope(tid)
}

// node decides about an operation on a node.
func (l *Layer) node(q request, n *node) syscall.Errno {
	return l.decide(q, func() []string { return l.nodes.paths(n) })
}

// entry decides about an operation on a name in a directory.
func (l *Layer) entry(q request, dir *node, name string) syscall.Errno {
	return l.decide(q, func() []string { return l.nodes.entryPaths(dir, name) })
}
