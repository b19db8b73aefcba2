package policy

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// Op is one operation of the FUSE protocol, under the name the protocol gives
// it (include/uapi/linux/fuse.h), plus the two directions of memory-map I/O.
type Op uint8

// The operations a rule can name.
const (
	OpLookup Op = iota
	OpGetattr
	OpSetattr
	OpReadlink
	OpMknod
	OpMkdir
	OpUnlink
	OpRmdir
	OpSymlink
	OpRename
	OpLink
	OpOpen
	OpCreate
	OpTmpfile
	OpRead
	OpWrite
	OpFlush
	OpRelease
	OpFsync
	OpFdatasync
	OpOpendir
	OpReaddir
	OpReleasedir
	OpFsyncdir
	OpStatfs
	OpSetxattr
	OpGetxattr
	OpListxattr
	OpRemovexattr
	OpAccess
	OpGetlk
	OpSetlk
	OpIoctl
	OpFallocate
	OpLseek
	OpCopyFileRange
	OpMmapRead
	OpMmapWrite
	opCount
)

var opNames = [opCount]string{
	"lookup", "getattr", "setattr", "readlink", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link",
	"open", "create", "tmpfile", "read", "write", "flush", "release", "fsync", "fdatasync", "opendir", "readdir",
	"releasedir", "fsyncdir", "statfs", "setxattr", "getxattr", "listxattr", "removexattr", "access", "getlk", "setlk",
	"ioctl", "fallocate", "lseek", "copy_file_range", "mmap-read", "mmap-write",
}

// String returns the protocol's name of the operation.
func (o Op) String() string {
	if o < opCount {
		return opNames[o]
	}
	return "op(" + strconv.Itoa(int(o)) + ")"
}

// MarshalText gives the protocol's name, for JSON.
func (o Op) MarshalText() ([]byte, error) {
	if o >= opCount {
		return nil, fmt.Errorf("there is no operation number %d", uint8(o))
	}
	return []byte(opNames[o]), nil
}

// UnmarshalText reads the protocol's name.
func (o *Op) UnmarshalText(text []byte) error {
	i := slices.Index(opNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("unknown operation %q", text)
	}
	*o = Op(i)
	return nil
}

// OpSet is a set of operations, one bit for each Op.
type OpSet uint64

// Has reports whether o is in the set.
func (s OpSet) Has(o Op) bool { return s&(1<<o) != 0 }

// With returns the set with o added.
func (s OpSet) With(o Op) OpSet { return s | 1<<o }

// Ops lists the members in the order of the constants.
func (s OpSet) Ops() []Op {
	ops := make([]Op, 0, bits.OnesCount64(uint64(s)))
	for o := Op(0); o < opCount; o++ {
		if s.Has(o) {
			ops = append(ops, o)
		}
	}
	return ops
}

// String joins the members with a plus sign, as a rule writes them.
func (s OpSet) String() string {
	names := make([]string, 0, 4)
	for _, o := range s.Ops() {
		names = append(names, o.String())
	}
	return strings.Join(names, "+")
}

// MarshalText writes the set as a rule does, for JSON.
func (s OpSet) MarshalText() ([]byte, error) {
	if s&^GroupAll != 0 {
		return nil, fmt.Errorf("a set of operations with unknown members (%#x)", uint64(s))
	}
	return []byte(s.short(GroupAll)), nil
}

// UnmarshalText reads names of operations and groups joined with plus signs.
func (s *OpSet) UnmarshalText(text []byte) error {
	var set OpSet
	for name := range strings.SplitSeq(string(text), "+") {
		ops, ok := opsNamed(name)
		if !ok && len(text) > 0 {
			return fmt.Errorf("unknown operation %q", name)
		}
		set |= ops
	}
	*s = set
	return nil
}

// short is like String, but names whole groups by their name. fitting are the
// operations on which the rule's fields mean something: a group stands also for
// what is left of it without those that no program calls.
func (s OpSet) short(fitting OpSet) string {
	var names []string
	for _, g := range []string{"all", "data", "meta", "sync"} {
		ops := groups[g] & fitting
		if ops != 0 && groups[g]&^ops&^opsUncalled == 0 && s&ops == ops {
			names = append(names, g)
			s &^= ops
		}
	}
	if s != 0 {
		names = append(names, s.String())
	}
	return strings.Join(names, "+")
}

func setOf(ops ...Op) OpSet {
	var s OpSet
	for _, o := range ops {
		s = s.With(o)
	}
	return s
}

// The op groups of the rule language.
var (
	GroupData = setOf(OpRead, OpWrite, OpMmapRead, OpMmapWrite, OpCopyFileRange, OpFallocate, OpLseek)
	GroupSync = setOf(OpFlush, OpFsync, OpFdatasync, OpFsyncdir)
	GroupAll  = OpSet(1<<opCount - 1)
	GroupMeta = GroupAll &^ GroupData &^ GroupSync
)

var (
	groups     = map[string]OpSet{"data": GroupData, "meta": GroupMeta, "sync": GroupSync, "all": GroupAll}
	groupNames = []string{"data", "meta", "sync", "all"}
)

// opsNamed gives the operations of a name: of one, or of a group.
func opsNamed(name string) (OpSet, bool) {
	if set, ok := groups[name]; ok {
		return set, true
	}
	if i := slices.Index(opNames[:], name); i >= 0 {
		return OpSet(0).With(Op(i)), true
	}
	return 0, false
}
