package fusefs

import (
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/policy"
)

// Action says what was done to an operation, in the words of the rule language.
type Action string

// The actions. An event of a rule that makes an operation wait and then does
// something else to it has the name of the latter.
const (
	ActionError    Action = "error"
	ActionLatency  Action = "latency"
	ActionHang     Action = "hang"
	ActionThrottle Action = "throttle"
	ActionShort    Action = "short"
	ActionCorrupt  Action = "corrupt"
	ActionTorn     Action = "torn"
	ActionLost     Action = "lost"
	ActionNoSpace  Action = "nospace"
	ActionQuota    Action = "quota"
	ActionAttr     Action = "attr"
)

// What each action can be done to.
var (
	shortened = ops(policy.OpRead, policy.OpWrite)
	corrupted = ops(policy.OpRead, policy.OpWrite, policy.OpMmapRead, policy.OpMmapWrite, policy.OpReadlink)
	torn      = ops(policy.OpWrite, policy.OpMmapWrite)
	lost      = ops(policy.OpWrite, policy.OpMmapWrite, policy.OpFsync, policy.OpFdatasync, policy.OpFsyncdir)
)

// actsOn are the operations that decide asks the rule about: those it names, as
// far as all that it does means something for them.
func actsOn(f *policy.IOFault) policy.OpSet {
	set := f.Ops
	if len(f.Errors) > 0 {
		set &^= releasing
	}
	if f.Short != nil {
		set &= shortened
	}
	if f.Corrupt != nil {
		set &= corrupted
	}
	if f.Torn != nil {
		set &= torn
	}
	if f.Lost {
		set &= lost
	}
	if f.Attr != nil {
		set &= ops(policy.OpGetattr)
	}
	if f.Space != nil {
		set &= makes // what takes space asks when it is carried out
	}
	return set
}

// able reports whether the rule could act on this very request: one that it
// could not act on is not matched, and not counted.
func (r *liveRule) able(q *request) bool {
	switch f := r.IO; {
	case f.Short != nil:
		// A page that is filled short would be filled up with zeros (fuse_short_read in fs/fuse/file.c).
		return shortened.Has(q.op) && q.size > max(f.Short.Bytes, 1)
	case f.Attr != nil:
		return inStat(q.header)
	case f.Space != nil:
		return r.space.left() <= 0
	}
	return true
}

// change is a rule that has fired on an operation and what comes of it.
type change struct {
	rule  *liveRule
	event Event
	attr  policy.Attr    // of ActionAttr: all that is overridden
	src   *policy.Source // what the rule draws for this operation, in the order of use
	then  syscall.Errno  // of ActionTorn: the answer when the part is written
	draw  *draw          // where it is booked; nil if it is not
}

func (r *liveRule) fired(q *request, path string, n uint64, now time.Time) *change {
	return &change{rule: r, src: r.counter.Source(n), event: Event{
		Time: now, Rule: r.Name, Policy: r.Policy, Op: q.op, Path: path, Offset: q.offset, Size: q.size,
		PID: q.header.Pid, UID: q.header.Uid, N: n,
	}}
}

// settle says, once the waiting is over, what the rule does.
func (c *change) settle() {
	f, e := c.rule.IO, &c.event
	if len(f.Errors) > 0 {
		e.Errno = policy.PickErrno(f.Errors, c.src)
		e.Action = ActionError
	}
	switch {
	case f.Torn != nil:
		e.Action, c.then = ActionTorn, e.Errno
	case f.Short != nil:
		e.Action = ActionShort
	case f.Corrupt != nil:
		e.Action = ActionCorrupt
	case f.Lost:
		e.Action = ActionLost
	case f.Space != nil:
		e.Action, e.Errno = spaceErrno(f.Space)
	case f.Attr != nil:
		e.Action, c.attr = ActionAttr, *f.Attr
	}
}

// pending reports whether the operation is still to be carried out in another way; its event is not recorded yet.
func (c *change) pending() bool {
	switch c.event.Action {
	case ActionShort, ActionCorrupt, ActionTorn, ActionLost:
		return true
	}
	return false
}

// is reports whether the operation, which need not be changed at all, is changed in this way.
func (c *change) is(a Action) bool { return c != nil && c.event.Action == a }

// merge adds the attributes of c to those that rules before it override; of two rules about one attribute the first one counts.
func (c *change) merge(next *change) *change {
	if c == nil {
		return next
	}
	c.attr = mergeAttr(c.attr, next.attr)
	return c
}
