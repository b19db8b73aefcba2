package keeper

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// raiseDescriptorLimit asks for as many descriptors as the kernel gives a
// process (fs.nr_open) and else for the hard limit: one is needed for each open
// file and each cached inode of a target. Failing leaves the limit as it is;
// what does not fit is reported where it happens.
func raiseDescriptorLimit() {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return
	}
	const want = 1 << 20
	if lim.Max < want && unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: want}) == nil {
		return
	}
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: lim.Max, Max: lim.Max})
}

func errnoName(e syscall.Errno) string {
	if n := unix.ErrnoName(e); n != "" {
		return n
	}
	return fmt.Sprintf("errno %d", int(e))
}
