package fusefs_test

import (
	"fmt"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Locks of all three kinds; none of the calls waits.

var _ = register(
	op{
		name: "flock", weight: 10,
		args: func(t *rapid.T, c *call) {
			c.FD, c.Flags = drawSlot(t), pick(t, unix.LOCK_EX, unix.LOCK_SH, unix.LOCK_UN)
		},
		run: func(p *process, side int, c call) string {
			return result(unix.Flock(p.fds[side][c.FD], c.Flags|unix.LOCK_NB))
		},
		show: func(c call) string {
			return fmt.Sprintf("flock(fd%d, %s)", c.FD, named(c.Flags, []string{"LOCK_SH", "LOCK_EX", "LOCK_UN"}, []int{unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_UN}))
		},
	},
	record("setlk", 12, unix.F_SETLK), record("getlk", 8, unix.F_GETLK),
	record("ofd-setlk", 12, unix.F_OFD_SETLK), record("ofd-getlk", 8, unix.F_OFD_GETLK),
)

// record is a call about a record lock.
func record(name string, weight, cmd int) op {
	return op{
		name: name, weight: weight,
		args: func(t *rapid.T, c *call) {
			c.FD, c.Flags = drawSlot(t), pick(t, unix.F_WRLCK, unix.F_RDLCK, unix.F_UNLCK)
			c.Off = pick(t, []int64{0, 10, 100}...)
			c.Len = pick(t, []int64{0, 10, 95}...)
		},
		run: func(p *process, side int, c call) string {
			if p.after.Mapped {
				return "not sure"
			}
			l := unix.Flock_t{Type: int16(c.Flags), Whence: unix.SEEK_SET, Start: c.Off, Len: c.Len}
			err := unix.FcntlFlock(uintptr(p.fds[side][c.FD]), cmd, &l)
			if err != nil || cmd == unix.F_SETLK || cmd == unix.F_OFD_SETLK {
				return result(err)
			}
			if l.Type == unix.F_UNLCK {
				return "free"
			}
			// who holds it is not compared: the kernel does not tell a file system which locks are OFD locks
			return fmt.Sprintf("held: type %d, %d+%d", l.Type, l.Start, l.Len)
		},
		show: func(c call) string {
			return fmt.Sprintf("%s(fd%d, %s, %d+%d)", name, c.FD, []string{"F_RDLCK", "F_WRLCK", "F_UNLCK"}[c.Flags], c.Off, c.Len)
		},
	}
}
