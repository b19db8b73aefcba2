package graft

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// openBelow opens rel below dir for a file of that kind (S_IFREG or S_IFDIR), with flags.
// Both belong to the target, whose other processes run and may rename anything to rel
// meanwhile, so nothing that they put there is trusted: no symbolic link is followed (an
// absolute one would lead to a file of the host, where this process has its root), "..",
// and with stay a mount, lead nowhere, and what is there is looked at before it is opened
// for good. The open of a device node acts on the device, which the container itself may not
// be allowed to do (that is asked of the cgroup of who opens), and that of a FIFO waits.
func openBelow(dir int, rel string, flags int, kind uint32, stay bool) (int, error) {
	resolve := uint64(unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS)
	if stay {
		resolve |= unix.RESOLVE_NO_XDEV
	}
	if flags&unix.O_PATH != 0 {
		return unix.Openat2(dir, rel, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve})
	}
	found, err := unix.Openat2(dir, rel, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: resolve})
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(found) }() // O_PATH
	var x unix.Statx_t
	if err := unix.Statx(found, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &x); err != nil {
		return -1, fmt.Errorf("statx: %w", err)
	}
	if got := uint32(x.Mode) & unix.S_IFMT; got != kind&unix.S_IFMT {
		return -1, fmt.Errorf("its path leads to something of another kind now (st_mode %#o): %w", got, unix.ESTALE)
	}
	// The link of procfs leads to the very inode (proc_pid_fd(5)), whatever has its name by now.
	return unix.Open(fmt.Sprintf("/proc/self/fd/%d", found), flags&^unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}
