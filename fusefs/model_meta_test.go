package fusefs_test

import (
	"encoding/binary"
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Attributes, extended attributes, access lists, and who makes the calls.

var _ = register(
	op{
		name: "chmod", weight: 20, path: true,
		args: func(t *rapid.T, c *call) { c.Path, c.Mode = drawPath(t), drawMode(t) },
		run: func(p *process, side int, c call) string {
			return result(unix.Fchmodat(p.roots[side], c.Path, c.Mode, 0))
		},
		show: func(c call) string { return fmt.Sprintf("chmod(%s, %#o)", quote(c.Path), c.Mode) },
	},
	op{
		name: "fchmod", weight: 10, fd: true,
		args: func(t *rapid.T, c *call) { c.FD, c.Mode = drawSlot(t), drawMode(t) },
		run:  func(p *process, side int, c call) string { return result(unix.Fchmod(p.fds[side][c.FD], c.Mode)) },
		show: func(c call) string { return fmt.Sprintf("fchmod(fd%d, %#o)", c.FD, c.Mode) },
	},
	op{
		name: "chown", weight: 12, path: true,
		args: func(t *rapid.T, c *call) {
			c.Path, c.Flags = drawPath(t), pick(t, 0, unix.AT_SYMLINK_NOFOLLOW)
			c.UID, c.GID = drawOwner(t), drawOwner(t)
		},
		run: func(p *process, side int, c call) string {
			return result(unix.Fchownat(p.roots[side], c.Path, c.UID, c.GID, c.Flags))
		},
		show: func(c call) string {
			return fmt.Sprintf("chown(%s, %d, %d, flags %#x)", quote(c.Path), c.UID, c.GID, c.Flags)
		},
	},
	op{
		name: "fchown", weight: 6, fd: true,
		args: func(t *rapid.T, c *call) { c.FD, c.UID, c.GID = drawSlot(t), drawOwner(t), drawOwner(t) },
		run:  func(p *process, side int, c call) string { return result(unix.Fchown(p.fds[side][c.FD], c.UID, c.GID)) },
		show: func(c call) string { return fmt.Sprintf("fchown(fd%d, %d, %d)", c.FD, c.UID, c.GID) },
	},
	op{
		name: "truncate", weight: 12, path: true,
		args: func(t *rapid.T, c *call) { c.Path, c.Off = drawPath(t), drawOff(t) },
		run: func(p *process, side int, c call) string {
			// there is no truncateat
			return result(unix.Truncate(fmt.Sprintf("/proc/self/fd/%d/%s", p.roots[side], c.Path), c.Off))
		},
		show: func(c call) string { return fmt.Sprintf("truncate(%s, %d)", quote(c.Path), c.Off) },
	},
	op{
		name: "utimens", weight: 10, path: true,
		args: func(t *rapid.T, c *call) {
			c.Path, c.Flags, c.Times = drawPath(t), pick(t, 0, unix.AT_SYMLINK_NOFOLLOW), drawTimes(t)
		},
		run: func(p *process, side int, c call) string {
			return result(unix.UtimesNanoAt(p.roots[side], c.Path, c.Times[:], c.Flags))
		},
		show: func(c call) string {
			return fmt.Sprintf("utimensat(%s, %v, flags %#x)", quote(c.Path), c.Times, c.Flags)
		},
	},
	op{
		name: "futimens", weight: 5, fd: true,
		args: func(t *rapid.T, c *call) { c.FD, c.Times = drawSlot(t), drawTimes(t) },
		run: func(p *process, side int, c call) string {
			return result(unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", p.fds[side][c.FD]), c.Times[:], 0))
		},
		show: func(c call) string { return fmt.Sprintf("utimensat(/proc/self/fd/fd%d, %v)", c.FD, c.Times) },
	},
	op{
		name: "access", weight: 8, path: true,
		args: func(t *rapid.T, c *call) {
			c.Path, c.Mode, c.Flags = drawPath(t), uint32(below(t, 8)), pick(t, 0, unix.AT_EACCESS)
		},
		run: func(p *process, side int, c call) string {
			return result(unix.Faccessat(p.roots[side], c.Path, c.Mode, c.Flags))
		},
		show: func(c call) string { return fmt.Sprintf("access(%s, %#o)", quote(c.Path), c.Mode) },
	},
	op{
		name: "stat", weight: 12, path: true,
		args: func(t *rapid.T, c *call) { c.Path = drawPath(t) },
		run:  func(p *process, side int, c call) string { return p.stat(p.roots[side], c.Path) },
		show: func(c call) string { return fmt.Sprintf("statx(%s)", quote(c.Path)) },
	},
	op{
		name: "fstat", weight: 12, fd: true,
		args: func(t *rapid.T, c *call) { c.FD = drawSlot(t) },
		run:  func(p *process, side int, c call) string { return p.stat(p.fds[side][c.FD], "") },
		show: func(c call) string { return fmt.Sprintf("statx(fd%d)", c.FD) },
	},
	op{
		name: "statfs", weight: 2, fd: true,
		args: func(t *rapid.T, c *call) { c.FD = drawSlot(t) },
		run: func(p *process, side int, c call) string {
			var st unix.Statfs_t
			if err := unix.Fstatfs(p.fds[side][c.FD], &st); err != nil {
				return result(err)
			}
			return fmt.Sprintf("bsize %d frsize %d namelen %d", st.Bsize, st.Frsize, st.Namelen)
		},
		show: func(c call) string { return fmt.Sprintf("fstatfs(fd%d)", c.FD) },
	},
	op{
		name: "setxattr", weight: 20, path: true,
		args: func(t *rapid.T, c *call) {
			c.Path, c.Flags = drawPath(t), pick(t, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
			drawAttr(t, c)
		},
		run: func(p *process, side int, c call) string {
			return result(unix.Lsetxattr(p.name(side, c.Path), c.Key, c.Value, c.Flags))
		},
		show: func(c call) string {
			return fmt.Sprintf("lsetxattr(%s, %q, %.20q, %d)", quote(c.Path), c.Key, c.Value, c.Flags)
		},
	},
	op{
		name: "fsetxattr", weight: 6, fd: true,
		args: func(t *rapid.T, c *call) { c.FD = drawSlot(t); drawAttr(t, c) },
		run: func(p *process, side int, c call) string {
			return result(unix.Fsetxattr(p.fds[side][c.FD], c.Key, c.Value, 0))
		},
		show: func(c call) string { return fmt.Sprintf("fsetxattr(fd%d, %q, %.20q)", c.FD, c.Key, c.Value) },
	},
	op{
		name: "getxattr", weight: 10, path: true,
		args: func(t *rapid.T, c *call) { c.Path, c.Len = drawPath(t), drawLen(t); drawAttr(t, c) },
		run: func(p *process, side int, c call) string {
			b := make([]byte, min(c.Len, 4096))
			n, err := unix.Lgetxattr(p.name(side, c.Path), c.Key, b)
			if err != nil {
				return result(err)
			}
			return fmt.Sprintf("%d %x", n, b[:min(n, len(b))])
		},
		show: func(c call) string {
			return fmt.Sprintf("lgetxattr(%s, %q, %d bytes)", quote(c.Path), c.Key, min(c.Len, 4096))
		},
	},
	op{
		name: "listxattr", weight: 5, path: true,
		args: func(t *rapid.T, c *call) { c.Path = drawPath(t) },
		run:  func(p *process, side int, c call) string { return attrNames(p.name(side, c.Path)) },
		show: func(c call) string { return fmt.Sprintf("llistxattr(%s)", quote(c.Path)) },
	},
	op{
		name: "removexattr", weight: 8, path: true,
		args: func(t *rapid.T, c *call) { c.Path = drawPath(t); drawAttr(t, c) },
		run: func(p *process, side int, c call) string {
			return result(unix.Lremovexattr(p.name(side, c.Path), c.Key))
		},
		show: func(c call) string { return fmt.Sprintf("lremovexattr(%s, %q)", quote(c.Path), c.Key) },
	},
	op{
		name: "setflags", weight: 4, fd: true,
		args: func(t *rapid.T, c *call) { c.FD, c.Flags = drawSlot(t), pick(t, 0x40, 0x80, 0) }, // FS_NODUMP_FL, FS_NOATIME_FL
		run: func(p *process, side int, c call) string {
			fd := p.fds[side][c.FD]
			const settable = 0x40 | 0x80
			v, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
			if err != nil {
				return result(err)
			}
			err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, v&^settable|c.Flags)
			after, gerr := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
			return result(err) + " " + number(int64(uint32(after)), gerr)
		},
		show: func(c call) string { return fmt.Sprintf("ioctl(fd%d, FS_IOC_SETFLAGS, %#x)", c.FD, c.Flags) },
	},
	op{
		name: "become", weight: 12,
		args: func(t *rapid.T, c *call) {
			c.UID, c.GID = pick(t, users...), pick(t, []int{0, 1000, 2000}...)
		},
		run: func(p *process, side int, c call) string {
			if side == 1 {
				return "ok" // it is for both
			}
			return result(p.become(c.UID, c.GID))
		},
		show: func(c call) string { return fmt.Sprintf("be user %d, group %d", c.UID, c.GID) },
	},
	op{
		name: "umask", weight: 6,
		args: func(t *rapid.T, c *call) { c.Flags = pick(t, 0o022, 0, 0o077, 0o777, 0o002) },
		run: func(_ *process, _ int, c call) string {
			unix.Umask(c.Flags)
			return "ok"
		},
		show: func(c call) string { return fmt.Sprintf("umask(%#o)", c.Flags) },
	},
)

func drawOwner(t *rapid.T) int {
	return pick(t, []int{1000, 0, -1, 1001, 2000}...)
}

// drawTimes draws times that are long past, so that they can be told from those of a change.
func drawTimes(t *rapid.T) (out [2]unix.Timespec) {
	for i := range out {
		out[i] = pick(t, []unix.Timespec{{Sec: 1000, Nsec: 7}, {Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_OMIT}, {Sec: 900_000_000, Nsec: 999_999_999}, {Sec: -5}}...)
	}
	return out
}

var attrKeys = []string{"user.x", "user.y", "trusted.t", "security.s", "system.posix_acl_access", "system.posix_acl_default", "user.", "none.x"}

func drawAttr(t *rapid.T, c *call) {
	c.Key = pick(t, attrKeys...)
	if strings.HasPrefix(c.Key, "system.posix_acl") {
		c.Value = pick(t, lists...)
		return
	}
	c.Value = data(pick(t, []int64{5, 0, 100, 1000, 70000}...), 3)
}

// lists are access lists, the last no valid one (struct posix_acl_xattr_header, include/uapi/linux/posix_acl_xattr.h).
var lists = [][]byte{
	aclValue([3]int{1, 7, -1}, [3]int{2, 6, 1000}, [3]int{4, 5, -1}, [3]int{0x10, 6, -1}, [3]int{0x20, 0, -1}),
	aclValue([3]int{1, 6, -1}, [3]int{4, 4, -1}, [3]int{0x20, 4, -1}),
	aclValue([3]int{1, 6, -1}, [3]int{4, 0, -1}, [3]int{8, 7, 2000}, [3]int{0x10, 7, -1}, [3]int{0x20, 1, -1}),
	{2, 0, 0, 0, 1},
}

func aclValue(entries ...[3]int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(e[2]))
	}
	return b
}

// name is a path for calls that have no form with a folder's descriptor.
func (p *process) name(side int, path string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", p.roots[side], path)
}

func attrNames(path string) string {
	b := make([]byte, 4096)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		return result(err)
	}
	names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	sort.Strings(names)
	return fmt.Sprintf("%q", names)
}

// become changes the effective user, group and groups of the thread that makes
// the calls; the saved ones stay root's.
func (p *process) become(uid, gid int) error {
	keep := ^uintptr(0)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep); e != 0 {
		return fmt.Errorf("be root again: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(gid), keep); e != 0 {
		return e
	}
	if err := setGroups(gid); err != nil {
		return err
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); e != 0 {
		return e
	}
	return nil
}
