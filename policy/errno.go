package policy

import (
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxErrno is the last errno that user space knows by name on any Linux
// architecture that Go supports (EDQUOT is 1133 on MIPS).
const maxErrno = 1133

// errnoAliases are second names (errno(3)) of numbers that have another first
// name.
var errnoAliases = map[string]syscall.Errno{
	"EWOULDBLOCK": unix.EWOULDBLOCK,
	"EDEADLOCK":   unix.EDEADLK,
	"ENOTSUP":     unix.ENOTSUP,
	"EOPNOTSUPP":  unix.EOPNOTSUPP,
}

var errnoByName, errnoNames = buildErrnos()

func buildErrnos() (map[string]syscall.Errno, []string) {
	byName := make(map[string]syscall.Errno, 140)
	for e := syscall.Errno(1); e <= maxErrno; e++ {
		if name := unix.ErrnoName(e); name != "" {
			byName[name] = e
		}
	}
	for name, e := range errnoAliases {
		byName[name] = e
	}
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	return byName, names
}

// ParseErrno gives the number of an errno name such as EIO (errno(3), exact
// spelling), and whether there is one.
func ParseErrno(name string) (syscall.Errno, bool) {
	e, ok := errnoByName[name]
	return e, ok
}

// ErrnoName gives the name of an errno, "0" for none, and the number for one
// that has no name.
func ErrnoName(e syscall.Errno) string {
	if name := unix.ErrnoName(e); name != "" {
		return name
	}
	return strconv.Itoa(int(e))
}
