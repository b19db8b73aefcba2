package policy

import "strings"

// What kinds of operations there are for actions, filters and triggers.
var (
	// OpsMoving move data: their bytes count for afterBytes and for a rate of bytes.
	OpsMoving = setOf(OpRead, OpWrite, OpMmapRead, OpMmapWrite, OpCopyFileRange)
	// OpsSized have a number of bytes, for the filter size.
	OpsSized = OpsMoving.With(OpFallocate)
	// OpsPlaced are at a place of a file, for the filter offset.
	OpsPlaced = OpsSized.With(OpLseek)

	opsReleasing = setOf(OpRelease, OpReleasedir)
	// opsAnswered are those whose answer somebody looks at (fs/fuse/file.c, fuse_file_put).
	opsAnswered = GroupAll &^ opsReleasing
	// opsUncalled are the kernel's own and carry no process (fs/fuse/file.c, nocreds): the last close and write-back.
	opsUncalled = opsReleasing.With(OpMmapWrite)
	opsCalled   = GroupAll &^ opsUncalled
)

// What actions there are for.
var (
	opsShort   = setOf(OpRead, OpWrite)
	opsCorrupt = setOf(OpRead, OpWrite, OpMmapRead, OpMmapWrite, OpReadlink)
	opsTorn    = setOf(OpWrite, OpMmapWrite)
	opsLost    = setOf(OpWrite, OpMmapWrite, OpFsync, OpFdatasync, OpFsyncdir)
	// opsSpace take space, and tell how much there is.
	opsSpace = setOf(OpWrite, OpMmapWrite, OpFallocate, OpCopyFileRange, OpCreate, OpMkdir, OpMknod, OpSymlink, OpLink, OpTmpfile, OpSetxattr, OpStatfs)
	opsAttr  = setOf(OpGetattr)
)

// fit is a field that means something for some operations only.
type fit struct {
	field string
	ops   OpSet
	fix   string // in place of the list of operations
}

// fits lists what the rule's fields ask of its operations.
func (f *IOFault) fits() []fit {
	var all []fit
	add := func(is bool, field string, ops OpSet, fix string) {
		if is {
			all = append(all, fit{field, ops, fix})
		}
	}
	add(len(f.Errors) > 0, "error", opsAnswered, "use flush: close(2) returns its error")
	add(f.Short != nil, "short", opsShort, "")
	add(f.Corrupt != nil, "corrupt", opsCorrupt, "")
	add(f.Torn != nil, "torn", opsTorn, "")
	add(f.Lost, "lost", opsLost, "")
	if f.Space != nil {
		add(!f.Space.Quota, "nospace", opsSpace, "")
		add(f.Space.Quota, "quota", opsSpace, "")
	}
	add(f.Attr != nil, "attr", opsAttr, "")
	add(f.Throttle != nil && f.Throttle.OpsPerSec == 0, "throttle", OpsMoving, "write throttle=200ops/s to bound the number of operations")
	add(f.Offset != nil, "offset", OpsPlaced, "")
	add(f.Size != nil, "size", OpsSized, "")
	add(f.Caller.NeedsComm(), "comm", opsCalled, "")
	add(f.Caller.NeedsExe(), "exe", opsCalled, "")
	add(f.Caller.NeedsUID(), "uid", opsCalled, "")
	add(f.Caller.NeedsPID(), "pid", opsCalled, "")
	return all
}

// fitting gives the operations on which all fields of the rule mean something.
func (f *IOFault) fitting() OpSet {
	ops := GroupAll
	for _, t := range f.fits() {
		ops &= t.ops
	}
	return ops
}

// narrow gives the rule its operations: those named, which must fit all other
// fields, and of the groups named those that do.
func (p *ruleParser) narrow() *SyntaxError {
	io := p.rule.IO
	fits, fitting := io.fits(), io.fitting()
	for _, named := range p.ops {
		ops, group := named.ops&fitting, groups[named.text] != 0
		if ops == named.ops || group && ops != 0 {
			io.Ops |= ops
			continue
		}
		for _, t := range fits {
			if named.ops&t.ops == 0 {
				return p.misfit(named, t)
			}
		}
		// A group of which each field fits some, but all fields none.
		return p.at(named.at(0), "use a rule for each", "there is no operation in the group %s for which all fields of the rule mean something", named.text)
	}
	return nil
}

func (p *ruleParser) misfit(named namedOps, t fit) *SyntaxError {
	releasing := named.ops&^opsReleasing == 0
	fix := t.fix
	if fix == "" {
		fix = "it is for " + t.ops.list()
		if t.ops == opsCalled {
			fix = "leave it out, or use other operations"
		}
	}
	switch {
	case t.field == "error":
		return p.at(named.at(0), fix, "%s cannot fail: the kernel does not look at its answer", named.text)
	case t.ops == opsCalled && releasing:
		return p.at(named.at(0), fix, "%s means nothing for %s: the kernel sends it without saying for which process", t.field, named.text)
	case t.ops == opsCalled:
		return p.at(named.at(0), fix, "%s means nothing for %s: it is the kernel that writes memory maps back, for no process", t.field, named.text)
	}
	return p.at(named.at(0), fix, "%s means nothing for %s", t.field, named.text)
}

// list names the members for a sentence.
func (s OpSet) list() string {
	names := make([]string, 0, 4)
	for _, o := range s.Ops() {
		names = append(names, o.String())
	}
	if n := len(names); n > 1 {
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
	return strings.Join(names, "")
}
