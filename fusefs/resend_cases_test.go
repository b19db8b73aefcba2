package fusefs_test

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resentCase is one kind of request that a server is killed with.
type resentCase struct {
	name    string
	ops     string // the requests that act sends, one of which the server is killed with
	open    bool   // it is about open files: tried with passthrough as well
	idle    bool   // nothing is booked when it begins: it can be done twice
	prepare func(*calls)
	act     func(*calls)
	finish  func(*calls)
}

var resentCases = []resentCase{
	{name: "lookup", ops: "lookup", idle: true, prepare: func(c *calls) { c.need(os.Mkdir(c.path("d"), 0o755)) }, act: func(c *calls) {
		c.note("stat", unix.Access(c.path("d"), unix.F_OK))
		c.note("stat none", unix.Access(c.path("none"), unix.F_OK))
	}},
	{name: "mknod", ops: "mknod", act: func(c *calls) { c.note("mknod", unix.Mknod(c.path("p"), unix.S_IFIFO|0o640, 0)) }},
	{name: "mknod that is there", ops: "mknod lookup", idle: true, prepare: func(c *calls) { c.file("p", "") }, act: func(c *calls) {
		c.note("mknod", unix.Mknod(c.path("p"), unix.S_IFIFO|0o640, 0))
	}},
	{name: "mkdir", ops: "mkdir", act: func(c *calls) { c.note("mkdir", unix.Mkdir(c.path("d"), 0o750)) }},
	{name: "mkdir of a user", ops: "mkdir", prepare: func(c *calls) { c.need(os.Chmod(c.dir, 0o777)) }, act: func(c *calls) {
		as(1234, func() { c.note("mkdir", unix.Mkdir(c.path("d"), 0o700)) })
	}},
	{name: "symlink", ops: "symlink", act: func(c *calls) { c.note("symlink", unix.Symlink("to/somewhere", c.path("s"))) }},
	{name: "link", ops: "link", prepare: func(c *calls) { c.file("a", "data") }, act: func(c *calls) {
		c.note("link", unix.Link(c.path("a"), c.path("b")))
	}},
	{name: "unlink", ops: "unlink", prepare: func(c *calls) { c.file("a", "data"); c.need(unix.Link(c.path("a"), c.path("b"))) }, act: func(c *calls) {
		c.note("unlink", unix.Unlink(c.path("a")))
	}},
	{name: "unlink of an open file", ops: "unlink", prepare: func(c *calls) { c.file("a", "data"); c.open("a", unix.O_RDWR) }, act: func(c *calls) {
		c.note("unlink", unix.Unlink(c.path("a")))
	}, finish: func(c *calls) { c.readAll("a"); c.pwrite("a", "more", 4); c.readAll("a") }},
	{name: "rmdir", ops: "rmdir", prepare: func(c *calls) { c.need(os.Mkdir(c.path("d"), 0o755)) }, act: func(c *calls) {
		c.note("rmdir", unix.Rmdir(c.path("d")))
	}},
	{name: "rename", ops: "rename", prepare: func(c *calls) { c.file("a", "data") }, act: func(c *calls) {
		c.note("rename", unix.Rename(c.path("a"), c.path("b")))
	}},
	{name: "rename over", ops: "rename", prepare: func(c *calls) { c.file("a", "new"); c.file("b", "old"); c.open("b", unix.O_RDWR) }, act: func(c *calls) {
		c.note("rename", unix.Rename(c.path("a"), c.path("b")))
	}, finish: func(c *calls) { c.readAll("b") }},
	{name: "rename of a directory", ops: "rename", prepare: func(c *calls) {
		c.need(os.MkdirAll(c.path("x/y"), 0o755))
		c.need(os.Mkdir(c.path("z"), 0o755))
		c.file("x/y/f", "data")
	}, act: func(c *calls) { c.note("rename", unix.Rename(c.path("x/y"), c.path("z/y"))) }},
	{name: "rename noreplace", ops: "rename2", prepare: func(c *calls) { c.file("a", "data") }, act: func(c *calls) {
		c.note("rename", unix.Renameat2(unix.AT_FDCWD, c.path("a"), unix.AT_FDCWD, c.path("b"), unix.RENAME_NOREPLACE))
	}},
	{name: "rename exchange", ops: "rename2", prepare: func(c *calls) { c.file("a", "of a"); c.file("b", "of b") }, act: func(c *calls) {
		c.note("rename", unix.Renameat2(unix.AT_FDCWD, c.path("a"), unix.AT_FDCWD, c.path("b"), unix.RENAME_EXCHANGE))
	}},
	{name: "rename whiteout", ops: "rename2", prepare: func(c *calls) { c.file("a", "data") }, act: func(c *calls) {
		c.note("rename", unix.Renameat2(unix.AT_FDCWD, c.path("a"), unix.AT_FDCWD, c.path("b"), unix.RENAME_WHITEOUT))
	}},
	{name: "create", ops: "create", open: true, act: func(c *calls) { c.open("f", unix.O_RDWR|unix.O_CREAT) },
		finish: func(c *calls) { c.pwrite("f", "data", 0); c.readAll("f") }},
	{name: "create exclusively", ops: "create", act: func(c *calls) { c.open("f", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL) },
		finish: func(c *calls) { c.pwrite("f", "data", 0); c.readAll("f") }},
	{name: "create read-only as a user", ops: "create", prepare: func(c *calls) { c.need(os.Chmod(c.dir, 0o777)) }, act: func(c *calls) {
		as(1234, func() {
			fd, err := unix.Open(c.path("f"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o400)
			c.note("create", err)
			c.fds["f"] = fd
		})
	}, finish: func(c *calls) { c.pwrite("f", "data", 0); c.readAll("f") }},
	{name: "tmpfile", ops: "tmpfile", open: true, idle: true, act: func(c *calls) {
		fd, err := unix.Open(c.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		c.note("tmpfile", err)
		c.fds["t"] = fd
	}, finish: func(c *calls) {
		c.pwrite("t", "data", 0)
		c.note("link", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", c.fds["t"]), unix.AT_FDCWD, c.path("named"), unix.AT_SYMLINK_FOLLOW))
	}},
	{name: "open", ops: "open", open: true, idle: true, prepare: func(c *calls) { c.file("f", "data") }, act: func(c *calls) { c.open("f", unix.O_RDWR) },
		finish: func(c *calls) { c.pwrite("f", "more", 4); c.readAll("f") }},
	{name: "open to read", ops: "open", open: true, idle: true, prepare: func(c *calls) { c.file("f", "data") }, act: func(c *calls) { c.open("f", unix.O_RDONLY) },
		finish: func(c *calls) { c.readAll("f") }},
	{name: "open and cut", ops: "open", open: true, prepare: func(c *calls) { c.file("f", "data") }, act: func(c *calls) { c.open("f", unix.O_WRONLY|unix.O_TRUNC) },
		finish: func(c *calls) { c.pwrite("f", "x", 0) }},
	{name: "opendir", ops: "opendir", idle: true, act: func(c *calls) { c.open(".", unix.O_RDONLY|unix.O_DIRECTORY) }},
	{name: "readdir", ops: "readdir readdirplus", idle: true, prepare: func(c *calls) {
		for i := range 40 {
			c.file(fmt.Sprintf("f%02d", i), "data")
		}
		c.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	}, act: func(c *calls) {
		var seen []string
		buf := make([]byte, 4096)
		for {
			n, err := unix.ReadDirent(c.fds["."], buf)
			if err != nil || n == 0 {
				c.note("readdir", err)
				break
			}
			_, _, seen = unix.ParseDirent(buf[:n], -1, seen)
		}
		fmt.Fprintf(&c.out, "%d names\n", len(seen))
	}},
	{name: "write", ops: "write", prepare: func(c *calls) { c.file("f", "0123456789"); c.open("f", unix.O_WRONLY) }, act: func(c *calls) { c.pwrite("f", "data", 8) }},
	{name: "append", ops: "write", prepare: func(c *calls) { c.file("f", "line\n"); c.open("f", unix.O_WRONLY|unix.O_APPEND) }, act: func(c *calls) { c.write("f", "line\n") },
		finish: func(c *calls) { c.write("f", "line\n") }},
	{name: "append at once", ops: "write", prepare: func(c *calls) { c.file("f", "line\n"); c.open("f", unix.O_WRONLY|unix.O_APPEND) }, act: func(c *calls) {
		n, err := unix.Pwritev2(c.fds["f"], [][]byte{[]byte("line\n")}, -1, unix.RWF_DSYNC)
		c.note(fmt.Sprint("write ", n), err)
	}},
	{name: "append to what was cut", ops: "write", prepare: func(c *calls) {
		c.open("f", unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND)
		c.write("f", "line\n")
		c.need(unix.Ftruncate(c.fds["f"], 0))
	}, act: func(c *calls) { c.write("f", "line\n") }},
	{name: "append much", ops: "write", prepare: func(c *calls) { c.file("f", "x"); c.open("f", unix.O_WRONLY|unix.O_APPEND) }, act: func(c *calls) {
		c.write("f", strings.Repeat("0123456789abcde\n", 20000))
	}},
	{name: "pages of a map", ops: "write", prepare: func(c *calls) {
		c.file("f", "")
		c.need(unix.Truncate(c.path("f"), int64(os.Getpagesize())))
		c.share(c.open("f", unix.O_RDWR))
		copy(c.shared, "stored")
	}, act: func(c *calls) { c.note("msync", unix.Msync(c.shared, unix.MS_SYNC)) }, finish: func(c *calls) {
		c.need(unix.Munmap(c.shared))
		c.shared = nil
	}},
	{name: "truncate", ops: "setattr", prepare: func(c *calls) { c.file("f", "0123456789") }, act: func(c *calls) { c.note("truncate", unix.Truncate(c.path("f"), 4)) }},
	{name: "chmod", ops: "setattr", prepare: func(c *calls) { c.file("f", "") }, act: func(c *calls) { c.note("chmod", unix.Chmod(c.path("f"), 0o4711)) }},
	{name: "setxattr", ops: "setxattr", prepare: func(c *calls) { c.file("f", "") }, act: func(c *calls) {
		c.note("setxattr", unix.Setxattr(c.path("f"), "user.test", []byte("value"), unix.XATTR_CREATE))
	}},
	{name: "setxattr that is there", ops: "setxattr", prepare: func(c *calls) { c.file("f", ""); c.need(unix.Setxattr(c.path("f"), "user.test", []byte("older"), 0)) }, act: func(c *calls) {
		c.note("setxattr", unix.Setxattr(c.path("f"), "user.test", []byte("value"), unix.XATTR_CREATE))
	}},
	{name: "removexattr", ops: "removexattr", prepare: func(c *calls) { c.file("f", ""); c.need(unix.Setxattr(c.path("f"), "user.test", []byte("value"), 0)) }, act: func(c *calls) {
		c.note("removexattr", unix.Removexattr(c.path("f"), "user.test"))
	}},
	{name: "fallocate", ops: "fallocate", prepare: func(c *calls) { c.open("f", unix.O_RDWR|unix.O_CREAT) }, act: func(c *calls) { c.note("fallocate", unix.Fallocate(c.fds["f"], 0, 0, 8192)) }},
	{name: "punch", ops: "fallocate", prepare: func(c *calls) { c.file("f", strings.Repeat("x", 12288)); c.open("f", unix.O_RDWR) }, act: func(c *calls) {
		c.note("punch", unix.Fallocate(c.fds["f"], unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 4096))
	}},
	{name: "copy", ops: "copy_file_range copy_file_range32", prepare: func(c *calls) {
		c.file("f", "0123456789")
		c.open("f", unix.O_RDONLY)
		c.open("g", unix.O_RDWR|unix.O_CREAT)
	}, act: func(c *calls) {
		n, err := unix.CopyFileRange(c.fds["f"], nil, c.fds["g"], nil, 10, 0)
		c.note(fmt.Sprint("copy ", n), err)
	}},
	{name: "fsync", ops: "fsync", prepare: func(c *calls) { c.open("f", unix.O_RDWR|unix.O_CREAT); c.pwrite("f", "data", 0) }, act: func(c *calls) { c.note("fsync", unix.Fsync(c.fds["f"])) }},
	{name: "flush", ops: "flush", idle: true, open: true, prepare: func(c *calls) {
		c.open("f", unix.O_RDWR|unix.O_CREAT)
		c.note("lock", c.lock("f", unix.F_SETLK, unix.F_WRLCK, 0, 10))
	}, act: func(c *calls) { c.note("close", unix.Close(c.fds["f"])); delete(c.fds, "f") },
		finish: func(c *calls) { c.note("free", c.locked("f")) }},
	{name: "release", ops: "release", open: true, prepare: func(c *calls) { c.open("f", unix.O_RDWR|unix.O_CREAT) }, act: func(c *calls) {
		c.note("close", unix.Close(c.fds["f"]))
		delete(c.fds, "f")
		c.note("stat", unix.Access(c.path("g"), unix.F_OK)) // RELEASE is not waited for
	}},
	{name: "lock", ops: "setlk", prepare: func(c *calls) { c.open("f", unix.O_RDWR|unix.O_CREAT) }, act: func(c *calls) {
		c.note("lock", c.lock("f", unix.F_SETLK, unix.F_WRLCK, 0, 10))
	}, finish: func(c *calls) {
		c.note("taken", c.locked("f"))
		c.note("unlock", c.lock("f", unix.F_SETLK, unix.F_UNLCK, 0, 10))
		c.note("free", c.locked("f"))
	}},
	{name: "unlock", ops: "setlk", prepare: func(c *calls) {
		c.open("f", unix.O_RDWR|unix.O_CREAT)
		c.note("lock", c.lock("f", unix.F_SETLK, unix.F_WRLCK, 0, 100))
	}, act: func(c *calls) { c.note("unlock", c.lock("f", unix.F_SETLK, unix.F_UNLCK, 0, 50)) }, finish: func(c *calls) { c.note("free", c.locked("f")) }},
	{name: "lock and wait", ops: "setlkw", prepare: func(c *calls) { c.open("f", unix.O_RDWR|unix.O_CREAT) }, act: func(c *calls) {
		c.note("lock", c.lock("f", unix.F_SETLKW, unix.F_WRLCK, 0, 10))
	}, finish: func(c *calls) { c.note("taken", c.locked("f")) }},
	{name: "lock of a description", ops: "setlk", prepare: func(c *calls) { c.open("f", unix.O_RDWR|unix.O_CREAT) }, act: func(c *calls) {
		c.note("lock", c.lock("f", unix.F_OFD_SETLK, unix.F_WRLCK, 0, 10))
	}, finish: func(c *calls) { c.note("taken", c.locked("f")) }},
	{name: "flock", ops: "setlk setlkw", prepare: func(c *calls) { c.open("f", unix.O_RDWR|unix.O_CREAT) }, act: func(c *calls) {
		c.note("flock", unix.Flock(c.fds["f"], unix.LOCK_EX))
	}, finish: func(c *calls) {
		fd, err := unix.Open(c.path("f"), unix.O_RDWR|unix.O_CLOEXEC, 0)
		c.need(err)
		c.note("taken", unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB))
		c.note("unlock", unix.Flock(c.fds["f"], unix.LOCK_UN))
		c.note("free", unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB))
		c.need(unix.Close(fd))
	}},
}

func (c *calls) write(name, data string) {
	n, err := unix.Write(c.fds[name], []byte(data))
	c.note(fmt.Sprint("write ", n), err)
}

// share maps the first page of a file.
func (c *calls) share(fd int) {
	var err error
	c.shared, err = unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	c.need(err)
}

func (c *calls) pwrite(name, data string, at int64) {
	n, err := unix.Pwrite(c.fds[name], []byte(data), at)
	c.note(fmt.Sprint("pwrite ", n), err)
}

func (c *calls) readAll(name string) {
	b := make([]byte, 100)
	n, err := unix.Pread(c.fds[name], b, 0)
	c.note(fmt.Sprintf("read %q", b[:max(n, 0)]), err)
}

func (c *calls) lock(name string, cmd int, typ int16, start, length int64) error {
	l := unix.Flock_t{Type: typ, Start: start, Len: length}
	_, _, e := unix.Syscall(unix.SYS_FCNTL, uintptr(c.fds[name]), uintptr(cmd), uintptr(unsafe.Pointer(&l)))
	if e != 0 {
		return e
	}
	return nil
}

// locked reports EBUSY if another description cannot lock the file's first bytes.
func (c *calls) locked(name string) error {
	fd, err := unix.Open(c.path(name), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return err
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Len: 10}
	_, _, e := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), unix.F_OFD_GETLK, uintptr(unsafe.Pointer(&l)))
	switch { // it stays open: closing it would end this process's POSIX locks
	case e != 0:
		return e
	case l.Type != unix.F_UNLCK:
		c.fds[fmt.Sprint("other", fd)] = fd
		return unix.EBUSY
	}
	c.fds[fmt.Sprint("other", fd)] = fd
	return nil
}
