package policy

import (
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// CallerInfo is what the filters of a Caller look at. What no filter of a rule
// needs may be left empty.
type CallerInfo struct {
	Comm, Exe string
	UID, PID  uint32
	// Kernel says that nobody called: the request is the kernel's own (write-back,
	// release). Only an empty Caller matches it.
	Kernel bool
}

// NeedsComm, NeedsExe, NeedsUID and NeedsPID say what Match will look at.
func (c *Caller) NeedsComm() bool { return len(c.Comm) > 0 }
func (c *Caller) NeedsExe() bool  { return len(c.Exe) > 0 }
func (c *Caller) NeedsUID() bool  { return len(c.UID) > 0 }
func (c *Caller) NeedsPID() bool  { return len(c.PID) > 0 }

// Match reports whether the rule is about operations of this caller: every
// filter that is there must match.
func (c *Caller) Match(p CallerInfo) bool {
	if c.Empty() {
		return true
	}
	return !p.Kernel &&
		(!c.NeedsComm() || matchAny(c.Comm, matchComm, p.Comm)) &&
		(!c.NeedsExe() || matchAny(c.Exe, matchGlob, p.Exe)) &&
		(!c.NeedsUID() || inRanges(c.UID, p.UID)) &&
		(!c.NeedsPID() || inRanges(c.PID, p.PID))
}

func matchAny(globs []string, match func(glob, name string) bool, name string) bool {
	for _, g := range globs {
		if match(g, name) {
			return true
		}
	}
	return false
}

// matchComm matches the name of a thread. A slash in it is a character like
// others, which doublestar would not let * match; no glob of a comm has one.
func matchComm(glob, name string) bool {
	return doublestar.MatchUnvalidated(glob, strings.ReplaceAll(name, "/", "\x00"))
}

func inRanges(ranges []Range, n uint32) bool {
	for _, r := range ranges {
		if r.Contains(uint64(n)) {
			return true
		}
	}
	return false
}

// MatchRequest reports whether the rule is about an operation at this place of
// the file and of this size, as the caller asked for them. A negative offset
// says that the operation has no place, a negative size that it has no size:
// such an operation matches no rule with that filter. An operation with a place
// but no size (lseek) is at that one byte; one of size 0 touches nothing.
func (f *IOFault) MatchRequest(offset, size int64) bool {
	if f.Size != nil && (size < 0 || !f.Size.Contains(uint64(size))) {
		return false
	}
	if f.Offset == nil {
		return true
	}
	if size < 0 {
		size = 1
	}
	if offset < 0 || size == 0 {
		return false
	}
	last := uint64(offset) + uint64(size) - 1 // cannot overflow: both are below 1<<63
	return uint64(offset) <= f.Offset.To && f.Offset.From <= last
}
