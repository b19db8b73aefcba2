package fusefs

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// attrMask is what is asked for.
const attrMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

// statx reads the attributes of what an O_PATH descriptor refers to.
func statx(fd int, st *unix.Statx_t) error {
	return retry(func() error { return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, attrMask, st) })
}

// statxAt reads the attributes of what a name in a directory is.
func statxAt(dir int, name string, st *unix.Statx_t) error {
	return retry(func() error {
		return unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, attrMask, st)
	})
}

// retry repeats a system call that a signal of the Go runtime interrupted.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// magic is the path by which calls that take no O_PATH descriptor reach the
// object of one (proc(5), /proc/pid/fd).
func magic(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
