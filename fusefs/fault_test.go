package fusefs_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// opCase is one operation of the protocol and the system call that causes it.
type opCase struct {
	op    string
	path  string // what the event names
	glob  string // path of the rule; /data/** if empty
	delay bool   // it can only be delayed
	// call makes the system call. before is run without rules.
	before func(b *bench)
	call   func(b *bench) error
	// unchanged checks that a failed operation left the file system below as it was.
	unchanged func(b *bench) bool
	errno     syscall.Errno // EDQUOT if 0
}

func exists(b *bench, name string) bool {
	_, err := os.Lstat(b.under(name))
	return err == nil
}

func content(b *bench, name string) string {
	d, err := os.ReadFile(b.under(name))
	if err != nil {
		return err.Error()
	}
	return string(d)
}

// openClose opens and, if that worked, closes again.
func openClose(name string, flags int, mode uint32) error {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

var held int // a descriptor that `before` opened for `call`

func hold(name string, flags int) func(b *bench) {
	return func(b *bench) { held = b.open(name, flags) }
}

func ioctl(fd int, cmd uintptr, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), cmd, uintptr(arg)); e != 0 {
		return e
	}
	return nil
}

// faultIn has the kernel read from mapped memory in a system call, where a
// failed page fault is EFAULT instead of a signal.
func faultIn(mem []byte) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) }()
	_, err := unix.Write(p[1], mem)
	return err
}

// poke has the kernel write to mapped memory. A page fault of Go code would keep
// its processor, and the process serves its own faults here.
func poke(mem []byte, with byte) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) }()
	if _, err := unix.Write(p[1], []byte{with}); err != nil {
		return err
	}
	_, err := unix.Read(p[0], mem[:1])
	return err
}

var opCases = []opCase{
	{op: "lookup", path: "/data/f", call: func(b *bench) error { return unix.Access(b.path("f"), unix.F_OK) }},
	{op: "getattr", path: "/data/f", glob: "/data/f", call: func(b *bench) error { var st unix.Stat_t; return unix.Stat(b.path("f"), &st) }},
	{op: "setattr", path: "/data/f", call: func(b *bench) error { return unix.Chmod(b.path("f"), 0o600) },
		unchanged: func(b *bench) bool { fi, err := os.Stat(b.under("f")); return err == nil && fi.Mode() == 0o644 }},
	{op: "readlink", path: "/data/sym", call: func(b *bench) error { _, err := unix.Readlink(b.path("sym"), make([]byte, 9)); return err }},
	{op: "mknod", path: "/data/new", call: func(b *bench) error { return unix.Mkfifo(b.path("new"), 0o600) }, unchanged: func(b *bench) bool { return !exists(b, "new") }},
	{op: "mkdir", path: "/data/new", call: func(b *bench) error { return unix.Mkdir(b.path("new"), 0o700) }, unchanged: func(b *bench) bool { return !exists(b, "new") }},
	{op: "unlink", path: "/data/f", call: func(b *bench) error { return unix.Unlink(b.path("f")) }, unchanged: func(b *bench) bool { return exists(b, "f") }},
	{op: "rmdir", path: "/data/empty", call: func(b *bench) error { return unix.Rmdir(b.path("empty")) }, unchanged: func(b *bench) bool { return exists(b, "empty") }},
	{op: "symlink", path: "/data/new", call: func(b *bench) error { return unix.Symlink("f", b.path("new")) }, unchanged: func(b *bench) bool { return !exists(b, "new") }},
	{op: "rename", path: "/data/f", call: func(b *bench) error { return unix.Rename(b.path("f"), b.path("g")) }, unchanged: func(b *bench) bool { return exists(b, "f") && !exists(b, "g") }},
	{op: "link", path: "/data/f", call: func(b *bench) error { return unix.Link(b.path("f"), b.path("g")) }, unchanged: func(b *bench) bool { return !exists(b, "g") }},
	{op: "open", path: "/data/f", call: func(b *bench) error { return openClose(b.path("f"), unix.O_RDONLY, 0) }},
	{op: "create", path: "/data/new", call: func(b *bench) error {
		return openClose(b.path("new"), unix.O_CREAT|unix.O_WRONLY, 0o600)
	}, unchanged: func(b *bench) bool { return !exists(b, "new") }},
	{op: "tmpfile", path: "/data/empty/", call: func(b *bench) error {
		return openClose(b.path("empty"), unix.O_TMPFILE|unix.O_RDWR, 0o600)
	}},
	{op: "read", path: "/data/f", before: hold("f", unix.O_RDONLY), call: func(*bench) error { _, err := unix.Read(held, make([]byte, 4)); return err }},
	{op: "write", path: "/data/f", before: hold("f", unix.O_WRONLY), call: func(*bench) error { _, err := unix.Write(held, []byte("XXXX")); return err },
		unchanged: func(b *bench) bool { return content(b, "f") == "content" }},
	{op: "flush", path: "/data/f", before: hold("f", unix.O_WRONLY), call: func(*bench) error { return unix.Close(held) }},
	{op: "release", path: "/data/f", delay: true, before: hold("f", unix.O_WRONLY), call: func(*bench) error { return unix.Close(held) }},
	{op: "fsync", path: "/data/f", before: hold("f", unix.O_WRONLY), call: func(*bench) error { return unix.Fsync(held) }},
	{op: "fdatasync", path: "/data/f", before: hold("f", unix.O_WRONLY), call: func(*bench) error { return unix.Fdatasync(held) }},
	{op: "opendir", path: "/data/empty", call: func(b *bench) error { return openClose(b.path("empty"), unix.O_DIRECTORY, 0) }},
	{op: "readdir", path: "/data", before: hold("", unix.O_DIRECTORY), call: func(*bench) error { _, err := unix.Getdents(held, make([]byte, 4096)); return err }},
	{op: "releasedir", path: "/data", delay: true, before: hold("", unix.O_DIRECTORY), call: func(*bench) error { return unix.Close(held) }},
	{op: "fsyncdir", path: "/data", before: hold("", unix.O_DIRECTORY), call: func(*bench) error { return unix.Fsync(held) }},
	{op: "statfs", path: "/data", call: func(b *bench) error { var s unix.Statfs_t; return unix.Statfs(b.mnt, &s) }},
	{op: "setxattr", path: "/data/f", call: func(b *bench) error { return unix.Setxattr(b.path("f"), "user.new", []byte("v"), 0) },
		unchanged: func(b *bench) bool {
			_, err := unix.Getxattr(b.under("f"), "user.new", nil)
			return err == unix.ENODATA
		}},
	{op: "getxattr", path: "/data/f", call: func(b *bench) error { _, err := unix.Getxattr(b.path("f"), "user.have", nil); return err }},
	{op: "listxattr", path: "/data/f", call: func(b *bench) error { _, err := unix.Listxattr(b.path("f"), nil); return err }},
	{op: "removexattr", path: "/data/f", call: func(b *bench) error { return unix.Removexattr(b.path("f"), "user.have") },
		unchanged: func(b *bench) bool { _, err := unix.Getxattr(b.under("f"), "user.have", nil); return err == nil }},
	{op: "access", path: "/data/f", glob: "/data/f", call: func(b *bench) error { return unix.Access(b.path("f"), unix.R_OK) }},
	{op: "getlk", path: "/data/f", before: hold("f", unix.O_RDWR), call: func(*bench) error {
		return unix.FcntlFlock(uintptr(held), unix.F_GETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}},
	{op: "setlk", path: "/data/f", before: hold("f", unix.O_RDWR), call: func(*bench) error {
		return unix.FcntlFlock(uintptr(held), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}},
	{op: "ioctl", path: "/data/f", before: hold("f", unix.O_RDWR), call: func(*bench) error { var v uint64; return ioctl(held, 0x80080f01, unsafe.Pointer(&v)) }},
	{op: "fallocate", path: "/data/f", before: hold("f", unix.O_RDWR), call: func(*bench) error { return unix.Fallocate(held, 0, 0, 1<<16) },
		unchanged: func(b *bench) bool { return content(b, "f") == "content" }},
	{op: "lseek", path: "/data/f", before: hold("f", unix.O_RDONLY), call: func(*bench) error { _, err := unix.Seek(held, 0, unix.SEEK_HOLE); return err }},
	{op: "copy_file_range", path: "/data/f", before: hold("f", unix.O_RDWR), call: func(b *bench) error {
		to, err := unix.Open(b.path("g"), unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(to) }()
		_, err = unix.CopyFileRange(held, nil, to, nil, 4, 0)
		return err
	}, unchanged: func(b *bench) bool { return content(b, "g") == "" }},
	{op: "mmap-read", path: "/data/f", errno: unix.EFAULT, before: hold("f", unix.O_RDONLY), call: func(*bench) error {
		mem, err := unix.Mmap(held, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Munmap(mem) }()
		return faultIn(mem[:4])
	}},
	{op: "mmap-write", path: "/data/f", before: hold("f", unix.O_RDWR), call: func(b *bench) error {
		mem, err := unix.Mmap(held, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Munmap(mem) }()
		must(b, poke(mem, 'X'))
		return unix.Msync(mem, unix.MS_SYNC)
	}, unchanged: func(b *bench) bool { return content(b, "f") == "content" }},
}

func (c opCase) where() string {
	if c.glob == "" {
		return ""
	}
	return " path=" + c.glob
}

func prepare(t *testing.T, c opCase) *bench {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	must(t, os.Symlink("f", b.under("sym")))
	must(t, os.Mkdir(b.under("empty"), 0o755))
	if err := unix.Setxattr(b.under("f"), "user.have", []byte("v"), 0); err != nil {
		if strings.Contains(c.op, "xattr") {
			t.Skip("the file system below has no user attributes: ", err)
		}
	}
	if c.before != nil {
		c.before(b)
	}
	return b
}

// waitFor gives an operation that the caller does not wait for some time.
func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: ", what)
		}
	}
}

// F1: each operation can be failed, through a real system call; nothing is done
// below; and once the rule is gone the same call works.
func TestErrorOnEveryOp(t *testing.T) {
	seen := policy.OpSet(0)
	for _, c := range opCases {
		for _, o := range policy.GroupAll.Ops() {
			if o.String() == c.op {
				seen = seen.With(o)
			}
		}
		if c.delay {
			continue
		}
		t.Run(c.op, func(t *testing.T) {
			b := prepare(t, c)
			b.rules("io error=EDQUOT op=" + c.op + c.where())
			want := c.errno
			if want == 0 {
				want = unix.EDQUOT
			}
			if err := c.call(b); !errors.Is(err, want) {
				t.Fatalf("got %v, want %v", err, want)
			}
			if c.unchanged != nil && !c.unchanged(b) {
				t.Error("the file system below was changed")
			}
			fired := b.Rules()[0].Fired
			events := b.recorded()
			if uint64(len(events)) != fired || fired == 0 {
				t.Fatalf("%d events, the rule fired %d times", len(events), fired)
			}
			e := events[0]
			if e.Op.String() != c.op || e.Path != c.path || e.Errno != unix.EDQUOT || e.N != 1 || e.Rule != "r0" {
				t.Errorf("event %+v, want op %s path %s", e, c.op, c.path)
			}
			b.rules()
			if c.op == "flush" || c.op == "ioctl" {
				return // the descriptor is closed; ext4 has no such ioctl
			}
			if err := c.call(b); err != nil {
				t.Errorf("without rules: %v", err)
			}
		})
	}
	if missing := policy.GroupAll &^ seen; missing != 0 {
		t.Errorf("no case for %s", missing)
	}
}

// F1: each operation can be delayed; the delay comes before the operation.
func TestLatencyOnEveryOp(t *testing.T) {
	for _, c := range opCases {
		t.Run(c.op, func(t *testing.T) {
			b := prepare(t, c)
			b.rules("io latency=2ms op=" + c.op + c.where())
			if err := c.call(b); err != nil && c.op != "ioctl" {
				t.Fatal(err)
			}
			waitFor(t, "an event", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.events) > 0 })
			if e := b.recorded()[0]; e.Op.String() != c.op || e.Errno != 0 || e.Latency != 2*time.Millisecond || e.Cut {
				t.Errorf("event %+v", e)
			}
		})
	}
}
