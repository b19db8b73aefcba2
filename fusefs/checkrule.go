package fusefs

import (
	"errors"
	"fmt"
	"math"
	"syscall"

	"github.com/faultgraft/faultgraft/policy"
)

// checkRule refuses what would do other than it says, wherever the rule comes from.
func checkRule(r *policy.Rule) error {
	f := r.IO
	if f == nil {
		return errors.New("it is not an io rule, and a layer carries no others")
	}
	for _, e := range f.Errors {
		switch {
		case e.Errno == syscall.ENOSYS:
			// The kernel takes ENOSYS as "never implemented" and stops sending the operation until the file system is unmounted (fs/fuse/file.c, dir.c): the fault would have no end.
			return errors.New("ENOSYS cannot be injected: the kernel would turn the operation off for good; use EOPNOTSUPP")
		case e.Errno == 0 || e.Errno > 511:
			return fmt.Errorf("errno %d is outside of what FUSE can answer (1 to 511)", int(e.Errno))
		case e.Weight == 0:
			return fmt.Errorf("%s has no weight among the errors", policy.ErrnoName(e.Errno))
		}
	}
	if l := f.Latency; l != nil && (l.Base < 0 || l.Spread < 0 || l.Cap < 0 || l.Kind == policy.Pareto && !(l.Shape > 0)) {
		return fmt.Errorf("the latency %+v makes no sense", *l)
	}
	return errors.Join(checkChange(f), checkNumbers(f))
}

// checkChange sees to it that the rule does one thing.
func checkChange(f *policy.IOFault) error {
	changes := 0
	for _, has := range []bool{len(f.Errors) > 0 && f.Torn == nil, f.Short != nil, f.Corrupt != nil, f.Torn != nil, f.Lost, f.Space != nil, f.Attr != nil} {
		if has {
			changes++
		}
	}
	waits := f.Throttle != nil || f.Latency != nil || f.Hang
	switch {
	case changes == 0 && !waits:
		return errors.New("it does nothing")
	case changes > 1:
		return errors.New("it does several things to one operation; write a rule for each")
	case f.Space != nil && waits:
		return errors.New("nospace and quota cannot make an operation wait; write a rule of its own for that")
	case f.Space == nil && actsOn(f) == 0:
		return fmt.Errorf("what it does means nothing for %s", f.Ops)
	}
	return nil
}

// checkNumbers refuses numbers that an action could not follow.
func checkNumbers(f *policy.IOFault) error {
	if s := f.Short; s != nil && (s.Bytes < 0 || !(s.Share >= 0 && s.Share < 1) || s.Bytes == 0 && s.Share == 0 && !s.Random) {
		return fmt.Errorf("short to %d bytes or a share of %v makes no sense", s.Bytes, s.Share)
	}
	if c := f.Corrupt; c != nil && (c.Places == 0 || c.Bytes == 0 || c.Kind > policy.Random) {
		return fmt.Errorf("corrupting %d places of %d bytes makes no sense", c.Places, c.Bytes)
	}
	if t := f.Torn; t != nil && (t.Unit == 0 || t.Kind > policy.Sectors) {
		return errors.New("torn writes need a unit of at least one byte")
	}
	if s := f.Space; s != nil && s.Bytes < 0 {
		return fmt.Errorf("there cannot be %d bytes of space", s.Bytes)
	}
	if t := f.Throttle; t != nil {
		if t.BytesPerSec < 0 || t.BurstBytes < 0 || !(t.OpsPerSec >= 0) || !(t.BurstOps >= 0) || t.OpsPerSec > math.MaxInt32 || t.BytesPerSec == 0 && t.OpsPerSec == 0 {
			return fmt.Errorf("the rate %+v makes no sense", *t)
		}
	}
	return checkAttr(f)
}

// checkAttr refuses attributes that no file can have.
func checkAttr(f *policy.IOFault) error {
	a := f.Attr
	if a == nil {
		return nil
	}
	switch {
	case *a == policy.Attr{}:
		return errors.New("it overrides no attribute")
	case a.Perm != nil && *a.Perm > 0o7777:
		return fmt.Errorf("perm %#o has more than the lower 12 bits of a mode", *a.Perm)
	case a.Size != nil && *a.Size > math.MaxInt64:
		return fmt.Errorf("size %d is more than a file can have", *a.Size) // fuse_valid_size in fs/fuse/dir.c: the inode would turn bad
	}
	return nil
}
