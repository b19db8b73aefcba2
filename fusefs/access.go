package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/faultgraft/faultgraft/policy"
)

// attrOp tells access(2) from stat(2). A mount with default_permissions, and
// any whose access lists the kernel checks, never sends ACCESS: access(2)
// arrives as the GETATTR by which the kernel refreshes mode and owner, which it
// needs on every call where a rule makes the attributes expire at once. The
// caller sleeps until it is answered, so that /proc says which call it is in.
func (l *Layer) attrOp(h *fuse.InHeader, n *node) policy.Op {
	only := policy.OpSet(0).With(policy.OpAccess)
	set := l.rules.Load()
	if set.ops&only == 0 || h.Pid == 0 || !set.could(only, l.nodes.paths(n)) || !inAccess(h.Pid) {
		return policy.OpGetattr
	}
	return policy.OpAccess
}

// inAccess reports whether a thread that waits in the kernel is in access(2) or a relative of it.
func inAccess(tid uint32) bool { return inCall(tid, accessCalls) }

// inStat reports whether a GETATTR is for a program that asked for the
// attributes, and not for the kernel, which refreshes them by itself before it
// checks permissions or seeks to the end of a file.
func inStat(h *fuse.InHeader) bool { return h.Pid != 0 && inCall(h.Pid, statCalls) }

// inCall reports whether a thread is in one of these system calls.
func inCall(tid uint32, calls []int) bool {
	c, ok := callOf(tid)
	return ok && c.among(calls)
}
