package fusefs_test

import (
	"fmt"
	"hash/crc32"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Opening, reading and writing.

var (
	openNames  = []string{"O_DIRECT", "O_TMPFILE", "O_DIRECTORY", "O_SYNC", "O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND", "O_NOFOLLOW", "O_PATH", "O_DSYNC", "O_NOATIME", "O_WRONLY", "O_RDWR"}
	openValues = []int{
		unix.O_DIRECT, unix.O_TMPFILE, unix.O_DIRECTORY, unix.O_SYNC, unix.O_CREAT, unix.O_EXCL, unix.O_TRUNC, unix.O_APPEND, unix.O_NOFOLLOW, unix.O_PATH,
		unix.O_DSYNC, unix.O_NOATIME, unix.O_WRONLY, unix.O_RDWR,
	}
)

func showFlags(flags int) string {
	if flags&unix.O_ACCMODE == 0 {
		if flags == 0 {
			return "O_RDONLY"
		}
		return "O_RDONLY|" + named(flags, openNames, openValues)
	}
	return named(flags, openNames, openValues)
}

func drawAccess(t *rapid.T) int {
	return pick(t, unix.O_RDWR, unix.O_RDONLY, unix.O_WRONLY)
}

var _ = register(
	op{
		name: "open", weight: 100, fd: true, path: true,
		args: func(t *rapid.T, c *call) {
			c.FD, c.Path, c.Mode = drawSlot(t), drawPath(t), drawMode(t)
			c.Flags = drawAccess(t) | pick(t, 0, unix.O_CREAT, unix.O_CREAT, unix.O_CREAT|unix.O_EXCL, unix.O_CREAT|unix.O_TRUNC, unix.O_TRUNC,
				unix.O_APPEND, unix.O_CREAT|unix.O_APPEND, unix.O_NOFOLLOW, unix.O_DIRECTORY, unix.O_PATH, unix.O_PATH|unix.O_NOFOLLOW,
				unix.O_SYNC, unix.O_DSYNC|unix.O_APPEND, unix.O_NOATIME, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, unix.O_DIRECT, unix.O_DIRECT|unix.O_APPEND)
		},
		run: func(p *process, side int, c call) string {
			// O_NONBLOCK: an open of a FIFO would wait for its other end
			fd, err := unix.Openat(p.roots[side], c.Path, c.Flags|unix.O_CLOEXEC|unix.O_NONBLOCK, c.Mode)
			return p.put(side, c.FD, fd, err)
		},
		show: func(c call) string {
			return fmt.Sprintf("fd%d = open(%s, %s, %#o)", c.FD, quote(c.Path), showFlags(c.Flags), c.Mode)
		},
	},
	op{
		name: "tmpfile", weight: 8, fd: true,
		args: func(t *rapid.T, c *call) {
			c.FD, c.Path, c.Mode = drawSlot(t), pick(t, []string{".", "d", "d/e", "a"}...), drawMode(t)
			c.Flags = unix.O_TMPFILE | drawAccess(t) | pick(t, 0, 0, unix.O_EXCL, unix.O_APPEND)
		},
		run: func(p *process, side int, c call) string {
			fd, err := unix.Openat(p.roots[side], c.Path, c.Flags|unix.O_CLOEXEC, c.Mode)
			return p.put(side, c.FD, fd, err)
		},
		show: func(c call) string {
			return fmt.Sprintf("fd%d = open(%s, %s, %#o)", c.FD, quote(c.Path), showFlags(c.Flags), c.Mode)
		},
	},
	op{
		name: "reopen", weight: 15, fd: true, to: true,
		args: func(t *rapid.T, c *call) {
			c.FD, c.To = drawSlot(t), drawSlot(t)
			c.Flags = drawAccess(t) | pick(t, 0, 0, unix.O_TRUNC, unix.O_APPEND, unix.O_PATH, unix.O_NOATIME)
		},
		run: func(p *process, side int, c call) string {
			fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", p.fds[side][c.FD]), c.Flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			return p.put(side, c.To, fd, err)
		},
		show: func(c call) string {
			return fmt.Sprintf("fd%d = open(/proc/self/fd/fd%d, %s)", c.To, c.FD, showFlags(c.Flags))
		},
	},
	op{
		name: "close", weight: 20,
		args: func(t *rapid.T, c *call) { c.FD = drawSlot(t) },
		run:  func(p *process, side int, c call) string { return p.close(side, c.FD) },
		show: func(c call) string { return fmt.Sprintf("close(fd%d)", c.FD) },
	},
	op{
		name: "dup", weight: 8,
		args: func(t *rapid.T, c *call) { c.FD, c.To = drawSlot(t), drawSlot(t) },
		run: func(p *process, side int, c call) string {
			fd, err := unix.FcntlInt(uintptr(p.fds[side][c.FD]), unix.F_DUPFD_CLOEXEC, 0)
			return p.put(side, c.To, fd, err)
		},
		show: func(c call) string { return fmt.Sprintf("fd%d = dup(fd%d)", c.To, c.FD) },
	},
	op{
		name: "setfl", weight: 6,
		args: func(t *rapid.T, c *call) {
			c.FD, c.Flags = drawSlot(t), pick(t, unix.O_APPEND, 0)
		},
		run: func(p *process, side int, c call) string {
			have, _ := unix.FcntlInt(uintptr(p.fds[side][c.FD]), unix.F_GETFL, 0) // fails again below
			// O_DIRECT and O_NOATIME stay: of a file that is passed through the kernel does not heed a change of them
			_, err := unix.FcntlInt(uintptr(p.fds[side][c.FD]), unix.F_SETFL, c.Flags|unix.O_NONBLOCK|max(have, 0)&(unix.O_DIRECT|unix.O_NOATIME))
			got, gerr := unix.FcntlInt(uintptr(p.fds[side][c.FD]), unix.F_GETFL, 0)
			return result(err) + " " + number(int64(got), gerr)
		},
		show: func(c call) string { return fmt.Sprintf("fcntl(fd%d, F_SETFL, %s)", c.FD, showFlags(c.Flags)) },
	},
	rw("read", 40, func(fd int, c call) (int, []byte, error) {
		b := aligned(int(c.Len))
		n, err := unix.Read(fd, b)
		return n, b, err
	}),
	rw("pread", 40, func(fd int, c call) (int, []byte, error) {
		b := aligned(int(c.Len))
		n, err := unix.Pread(fd, b, c.Off)
		return n, b, err
	}),
	rw("preadv", 10, func(fd int, c call) (int, []byte, error) {
		b := aligned(int(c.Len))
		n, err := unix.Preadv(fd, parts(b), c.Off)
		return n, b, err
	}),
	rw("write", 40, func(fd int, c call) (int, []byte, error) {
		n, err := unix.Write(fd, alignedData(c))
		return n, nil, err
	}),
	rw("pwrite", 50, func(fd int, c call) (int, []byte, error) {
		n, err := unix.Pwrite(fd, alignedData(c), c.Off)
		return n, nil, err
	}),
	rw("pwritev", 10, func(fd int, c call) (int, []byte, error) {
		n, err := unix.Pwritev(fd, parts(alignedData(c)), c.Off)
		return n, nil, err
	}),
	rw("pwritev2-append", 4, func(fd int, c call) (int, []byte, error) {
		n, err := unix.Pwritev2(fd, parts(alignedData(c)), c.Off, unix.RWF_APPEND)
		return n, nil, err
	}),
	rw("pwritev2-dsync", 2, func(fd int, c call) (int, []byte, error) {
		n, err := unix.Pwritev2(fd, parts(alignedData(c)), c.Off, unix.RWF_DSYNC)
		return n, nil, err
	}),
	op{
		name: "lseek", weight: 25, fd: true,
		args: func(t *rapid.T, c *call) {
			c.FD, c.Off = drawSlot(t), drawOff(t)
			c.Flags = pick(t, unix.SEEK_SET, unix.SEEK_CUR, unix.SEEK_END, unix.SEEK_DATA, unix.SEEK_HOLE)
		},
		run: func(p *process, side int, c call) string {
			if p.isDir(side, c.FD) {
				return "a folder" // positions of folders are the file system's own: the call getdents has them
			}
			if p.after.Filled && c.Flags >= unix.SEEK_DATA {
				return "not sure"
			}
			return number(unix.Seek(p.fds[side][c.FD], c.Off, c.Flags))
		},
		show: func(c call) string {
			return fmt.Sprintf("lseek(fd%d, %d, %s)", c.FD, c.Off, []string{"SEEK_SET", "SEEK_CUR", "SEEK_END", "SEEK_DATA", "SEEK_HOLE"}[c.Flags])
		},
	},
	op{
		name: "ftruncate", weight: 20, fd: true,
		args: func(t *rapid.T, c *call) { c.FD, c.Off = drawSlot(t), drawOff(t) },
		run:  func(p *process, side int, c call) string { return result(unix.Ftruncate(p.fds[side][c.FD], c.Off)) },
		show: func(c call) string { return fmt.Sprintf("ftruncate(fd%d, %d)", c.FD, c.Off) },
	},
	op{
		name: "fallocate", weight: 20, fd: true,
		args: func(t *rapid.T, c *call) {
			c.FD, c.Off, c.Len = drawSlot(t), drawOff(t), drawLen(t)
			// FUSE has no others: fuse_file_fallocate of Linux 6.18 refuses FALLOC_FL_COLLAPSE_RANGE and INSERT_RANGE
			c.Flags = pick(t, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE,
				unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE)
		},
		run: func(p *process, side int, c call) string {
			if c.Off > 1<<30 {
				return "too much"
			}
			return result(unix.Fallocate(p.fds[side][c.FD], uint32(c.Flags), c.Off, c.Len))
		},
		show: func(c call) string {
			return fmt.Sprintf("fallocate(fd%d, %s, %d, %d)", c.FD, named(c.Flags, []string{"ZERO_RANGE", "PUNCH_HOLE", "KEEP_SIZE"},
				[]int{unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_KEEP_SIZE}), c.Off, c.Len)
		},
	},
	op{
		name: "fsync", weight: 3, fd: true,
		args: func(t *rapid.T, c *call) { c.FD = drawSlot(t) },
		run:  func(p *process, side int, c call) string { return result(unix.Fsync(p.fds[side][c.FD])) },
		show: func(c call) string { return fmt.Sprintf("fsync(fd%d)", c.FD) },
	},
	op{
		name: "fdatasync", weight: 3, fd: true,
		args: func(t *rapid.T, c *call) { c.FD = drawSlot(t) },
		run:  func(p *process, side int, c call) string { return result(unix.Fdatasync(p.fds[side][c.FD])) },
		show: func(c call) string { return fmt.Sprintf("fdatasync(fd%d)", c.FD) },
	},
	transfer("copy_file_range", 15, func(p *process, side int, c call, left int) (int, error) {
		return unix.CopyFileRange(p.fds[side][c.FD], &c.Off, p.fds[side][c.To], &c.Off2, left, 0)
	}),
	transfer("sendfile", 12, func(p *process, side int, c call, left int) (int, error) {
		return unix.Sendfile(p.fds[side][c.To], p.fds[side][c.FD], &c.Off, left)
	}),
	transfer("splice", 12, func(p *process, side int, c call, left int) (int, error) {
		n, err := unix.Splice(p.fds[side][c.FD], &c.Off, p.pipe[1], nil, left, 0)
		if err != nil || n == 0 {
			return int(n), err
		}
		for out := int64(0); out < n; {
			m, err := unix.Splice(p.pipe[0], nil, p.fds[side][c.To], &c.Off2, int(n-out), 0)
			if err != nil {
				p.drain()
				return int(out), err
			}
			out += m
		}
		return int(n), nil
	}),
)

// rw is a call that moves data between a file and memory.
func rw(name string, weight int, f func(fd int, c call) (int, []byte, error)) op {
	positioned := name[0] == 'p'
	return op{
		name: name, weight: weight, fd: true,
		args: func(t *rapid.T, c *call) {
			c.FD, c.Len, c.Seed = drawSlot(t), drawLen(t), drawSeed(t)
			if positioned {
				c.Off = drawOff(t)
			}
		},
		run: func(p *process, side int, c call) string {
			n, b, err := f(p.fds[side][c.FD], c)
			switch {
			case err != nil:
				return result(err)
			case b == nil || n == 0:
				return fmt.Sprint(n)
			case n <= 16:
				return fmt.Sprintf("%d: %x", n, b[:n])
			}
			return fmt.Sprintf("%d: %x… crc %08x", n, b[:8], crc32.ChecksumIEEE(b[:n]))
		},
		show: func(c call) string {
			if positioned {
				return fmt.Sprintf("%s(fd%d, %d bytes, at %d)", name, c.FD, c.Len, c.Off)
			}
			return fmt.Sprintf("%s(fd%d, %d bytes)", name, c.FD, c.Len)
		},
	}
}

// parts cuts a buffer into three, on page borders if it is large.
func parts(b []byte) [][]byte {
	third := len(b) / 3
	if third > pageSize {
		third -= third % pageSize
	}
	return [][]byte{b[:third], b[third : 2*third], b[2*third:]}
}

const pageSize = 4096

// alignedData lies as O_DIRECT needs it: of how it lies FUSE does not tell.
func alignedData(c call) []byte {
	b := aligned(int(c.Len))
	copy(b, data(c.Len, c.Seed))
	return b
}

// transfer is a call that moves data between two files. How much it moves at
// once is no promise: it is called until all is moved.
func transfer(name string, weight int, f func(p *process, side int, c call, left int) (int, error)) op {
	return op{
		name: name, weight: weight, fd: true, to: true,
		args: func(t *rapid.T, c *call) {
			c.FD, c.To, c.Off, c.Off2, c.Len = drawSlot(t), drawSlot(t), drawOff(t), drawOff(t), drawLen(t)
		},
		run: func(p *process, side int, c call) string {
			if c.Off2 > 1<<30 && name == "copy_file_range" {
				return "too far"
			}
			if name != "copy_file_range" && p.sameFile(side, c.FD, c.To) {
				return "the same file" // the pipe between holds pages of the file, not their contents
			}
			total := 0
			for total < int(c.Len) {
				at := c
				at.Off, at.Off2 = c.Off+int64(total), c.Off2+int64(total)
				n, err := f(p, side, at, int(c.Len)-total)
				if err != nil {
					return fmt.Sprintf("%d, %s", total, result(err))
				}
				if n == 0 {
					break
				}
				total += n
			}
			return fmt.Sprint(total)
		},
		show: func(c call) string {
			return fmt.Sprintf("%s(fd%d at %d -> fd%d at %d, %d bytes)", name, c.FD, c.Off, c.To, c.Off2, c.Len)
		},
	}
}

// drain empties the pipe.
func (p *process) drain() {
	b := make([]byte, 1<<16)
	for {
		if n, err := unix.Read(p.pipe[0], b); n <= 0 || err != nil {
			return
		}
	}
}

func (p *process) sameFile(side, a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(p.fds[side][a], &x) == nil && unix.Fstat(p.fds[side][b], &y) == nil && x.Ino == y.Ino
}

func (p *process) isDir(side, slot int) bool {
	var st unix.Stat_t
	return unix.Fstat(p.fds[side][slot], &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}
