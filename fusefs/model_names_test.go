package fusefs_test

import (
	"encoding/binary"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Names: what makes, moves, removes and lists them.

var _ = register(
	two("rename", 40, func(root int, c call) error {
		err := unix.Renameat2(root, c.Path, root, c.Into, uint(c.Flags))
		if err != nil && c.Flags&unix.RENAME_WHITEOUT != 0 {
			// On ext4 one that fails may have changed the folders' times, which the
			// kernel does not expect of FUSE: they are seen when attributes expire.
			var st unix.Statx_t
			for _, dir := range []string{path.Dir(c.Path), path.Dir(c.Into)} {
				_ = unix.Statx(root, dir, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st) // may not be there
			}
		}
		return err
	},
		0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT, unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE),
	two("link", 25, func(root int, c call) error { return unix.Linkat(root, c.Path, root, c.Into, c.Flags) }, 0, unix.AT_SYMLINK_FOLLOW),
	op{
		name: "symlink", weight: 12, path: true,
		args: func(t *rapid.T, c *call) {
			c.Path, c.Into = drawFresh(t), pick(t, []string{"a", "d", "d/b", "d/../a", "s", "nowhere/x", "n\xff\n", long}...)
		},
		run: func(p *process, side int, c call) string {
			return result(unix.Symlinkat(c.Into, p.roots[side], c.Path))
		},
		show: func(c call) string { return fmt.Sprintf("symlink(%s, %s)", quote(c.Into), quote(c.Path)) },
	},
	op{
		name: "readlink", weight: 6, path: true,
		args: func(t *rapid.T, c *call) { c.Path = drawPath(t) },
		run: func(p *process, side int, c call) string {
			b := make([]byte, 300)
			n, err := unix.Readlinkat(p.roots[side], c.Path, b)
			if err != nil {
				return result(err)
			}
			return quote(string(b[:n]))
		},
		show: func(c call) string { return fmt.Sprintf("readlink(%s)", quote(c.Path)) },
	},
	one("unlink", 25, func(root int, c call) error { return unix.Unlinkat(root, c.Path, 0) }),
	one("rmdir", 12, func(root int, c call) error { return unix.Unlinkat(root, c.Path, unix.AT_REMOVEDIR) }),
	op{
		name: "mkdir", weight: 20, path: true,
		args: func(t *rapid.T, c *call) { c.Path, c.Mode = drawFresh(t), drawMode(t) },
		run:  func(p *process, side int, c call) string { return result(unix.Mkdirat(p.roots[side], c.Path, c.Mode)) },
		show: func(c call) string { return fmt.Sprintf("mkdir(%s, %#o)", quote(c.Path), c.Mode) },
	},
	op{
		name: "mknod", weight: 15, path: true,
		args: func(t *rapid.T, c *call) {
			c.Path = drawFresh(t)
			c.Mode = drawMode(t) | pick(t, []uint32{unix.S_IFIFO, unix.S_IFREG, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK, 0, unix.S_IFDIR}...)
		},
		run: func(p *process, side int, c call) string {
			dev := uint64(0)
			switch c.Mode & unix.S_IFMT {
			case unix.S_IFCHR:
				dev = unix.Mkdev(1, 3) // null
			case unix.S_IFBLK:
				dev = unix.Mkdev(259, 1<<19+5) // no such device; also a large minor number
			}
			return result(unix.Mknodat(p.roots[side], c.Path, c.Mode, int(dev)))
		},
		show: func(c call) string { return fmt.Sprintf("mknod(%s, %#o)", quote(c.Path), c.Mode) },
	},
	op{
		name: "linkfd", weight: 10, fd: true, path: true,
		args: func(t *rapid.T, c *call) {
			c.FD, c.Path, c.Flags = drawSlot(t), drawFresh(t), pick(t, unix.AT_SYMLINK_FOLLOW, unix.AT_EMPTY_PATH)
		},
		run: func(p *process, side int, c call) string {
			if c.Flags == unix.AT_EMPTY_PATH {
				return result(unix.Linkat(p.fds[side][c.FD], "", p.roots[side], c.Path, unix.AT_EMPTY_PATH))
			}
			return result(unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", p.fds[side][c.FD]), p.roots[side], c.Path, unix.AT_SYMLINK_FOLLOW))
		},
		show: func(c call) string {
			if c.Flags == unix.AT_EMPTY_PATH {
				return fmt.Sprintf("linkat(fd%d, \"\", %s, AT_EMPTY_PATH)", c.FD, quote(c.Path))
			}
			return fmt.Sprintf("linkat(/proc/self/fd/fd%d, %s, AT_SYMLINK_FOLLOW)", c.FD, quote(c.Path))
		},
	},
	op{
		// as libc's readdir, seekdir: some entries, then on from the position of one of them
		name: "getdents", weight: 15, fd: true,
		args: func(t *rapid.T, c *call) { c.FD, c.Len = drawSlot(t), int64(below(t, 9)) },
		run:  func(p *process, side int, c call) string { return p.getdents(side, c) },
		show: func(c call) string {
			return fmt.Sprintf("readdir(fd%d) to the end, then seekdir to entry %d", c.FD, c.Len)
		},
	},
	op{
		name: "rewinddir", weight: 4,
		args: func(t *rapid.T, c *call) { c.FD = drawSlot(t) },
		run: func(p *process, side int, c call) string {
			if !p.isDir(side, c.FD) {
				return "no folder"
			}
			return number(unix.Seek(p.fds[side][c.FD], 0, unix.SEEK_SET))
		},
		show: func(c call) string { return fmt.Sprintf("rewinddir(fd%d)", c.FD) },
	},
	op{
		name: "writefile", weight: 0, path: true, // behind the layer only
		args: func(t *rapid.T, c *call) {
			c.Path, c.Len, c.Off, c.Seed = drawPath(t), drawLen(t), drawOff(t), drawSeed(t)
		},
		run: func(p *process, side int, c call) string {
			fd, err := unix.Openat(p.roots[side], c.Path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o644)
			if err != nil {
				return result(err)
			}
			n, err := unix.Pwrite(fd, data(c.Len, c.Seed), c.Off)
			return number(int64(n), err) + result(unix.Close(fd))
		},
		show: func(c call) string { return fmt.Sprintf("write to %s, %d bytes, at %d", quote(c.Path), c.Len, c.Off) },
	},
)

// one is a call with a path.
func one(name string, weight int, f func(root int, c call) error) op {
	return op{
		name: name, weight: weight, path: true,
		args: func(t *rapid.T, c *call) { c.Path = drawPath(t) },
		run:  func(p *process, side int, c call) string { return result(f(p.roots[side], c)) },
		show: func(c call) string { return fmt.Sprintf("%s(%s)", name, quote(c.Path)) },
	}
}

// two is a call with two paths and flags.
func two(name string, weight int, f func(root int, c call) error, flags ...int) op {
	return op{
		name: name, weight: weight, path: true, into: true,
		args: func(t *rapid.T, c *call) {
			c.Path, c.Into, c.Flags = drawPath(t), drawFresh(t), pick(t, flags...)
		},
		run: func(p *process, side int, c call) string { return result(f(p.roots[side], c)) },
		show: func(c call) string {
			return fmt.Sprintf("%s(%s, %s, flags %d)", name, quote(c.Path), quote(c.Into), c.Flags)
		},
	}
}

// getdents reads a folder from where its description stands to the end.
func (p *process) getdents(side int, c call) string {
	fd := p.fds[side][c.FD]
	if !p.isDir(side, c.FD) {
		return "no folder"
	}
	var list []string
	var back int64
	buf := make([]byte, 600) // some entries at a time
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return fmt.Sprintf("%q %s", list, result(err))
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; b = b[binary.NativeEndian.Uint16(b[16:]):] { // struct linux_dirent64, getdents(2)
			name := unix.ByteSliceToString(b[19:])
			list = append(list, fmt.Sprintf("%s:%d", name, b[18]))
			if int64(len(list)) == c.Len {
				back = int64(binary.NativeEndian.Uint64(b[8:]))
			}
		}
	}
	if _, err := unix.Seek(fd, back, unix.SEEK_SET); err != nil {
		return fmt.Sprintf("%q seek: %s", list, result(err))
	}
	return fmt.Sprintf("%q", list)
}
