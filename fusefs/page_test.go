package fusefs_test

import (
	"os"
	"os/exec"
	"path"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/policy"
)

// pageFiles are what the examples of docs/faults.md are tried on; the first one that a rule matches is taken.
var (
	pageFiles = []string{"db", "f", "f.lock", "f.tmp", "base/1/table", "base/5/table", "wal/0001", "home/file"}
	pageDirs  = []string{".", "private", "base", "wal", "home", "base/1", "base/5"}
	pageLinks = []string{"current"}
	pageNew   = []string{"new", "new.tmp", "wal/new", "base/1/new", "home/new", "private"}
)

// example is one rule of the page with what it is tried on.
type example struct {
	*bench
	rule policy.Rule
	at   int64
	size int
}

// TestFaultsPage sets every example of docs/faults.md on a real layer and makes
// real calls of the operations it names until its fault has happened.
func TestFaultsPage(t *testing.T) {
	page, err := os.ReadFile("../docs/faults.md")
	must(t, err)
	examples := regexp.MustCompile("`(io [^`]*)`").FindAllStringSubmatch(string(page), -1)
	if len(examples) < 100 {
		t.Fatalf("only %d examples", len(examples))
	}
	for _, m := range examples {
		t.Run(m[1], func(t *testing.T) {
			r, err := policy.ParseRule("example", m[1], policy.Defaults{})
			must(t, err)
			r.EnsureSeed(func() uint64 { return 7 })
			tryExample(t, r)
		})
	}
}

func tryExample(t *testing.T, r policy.Rule) {
	x := &example{bench: over(t, setup{}), rule: r, size: 8192}
	for _, d := range pageDirs {
		must(t, os.MkdirAll(x.under(d), 0o755))
	}
	for _, f := range pageFiles {
		x.write(f, strings.Repeat("0123456789abcdef", 1<<10))
		must(t, os.Truncate(x.under(f), 4<<20))
		if err := unix.Setxattr(x.under(f), "user.x", []byte("v"), 0); err != nil {
			t.Skip("the file system below has no user attributes: ", err)
		}
	}
	for _, l := range pageLinks {
		must(t, os.Symlink("db", x.under(l)))
	}
	if o := r.IO.Offset; o != nil {
		x.at = int64(o.From)
	}
	if s := r.IO.Size; s != nil {
		x.size = int(min(max(s.From, 8192), s.To))
	}
	start := time.Now()
	if d := r.Trigger.Delay; d > 0 {
		start = start.Add(-d - time.Second/10)
	}
	must(t, x.SetRules([]policy.Rule{r}, start))
	done := make(chan struct{})
	go func() { // a thread of its own, which may have the name that the rule asks for
		defer close(done)
		runtime.LockOSThread()
		if c := r.IO.Caller.Comm; len(c) > 0 {
			name := append([]byte(c[0]), 0)
			if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0); err != nil {
				t.Error(err)
			}
		}
		for _, op := range r.IO.Ops.Ops() {
			for range 2000 {
				x.call(op)
				if op == policy.OpRelease || op == policy.OpReleasedir {
					waitForEnd(x.bench) // nobody waits for it
				}
				if x.Rules()[0].Fired > 0 {
					return
				}
			}
		}
	}()
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		case <-time.After(5 * time.Millisecond):
			x.ReleaseHung("")
		}
	}
	waitFor(t, "an event", func() bool { x.mu.Lock(); defer x.mu.Unlock(); return len(x.events) > 0 })
	e := x.recorded()[0]
	if want := actionOf(r.IO); e.Action != want || !r.IO.Ops.Has(e.Op) && e.Op != policy.OpMmapRead || e.Rule != "example" {
		t.Errorf("event %+v, want action %s", e, want)
	}
}

func waitForEnd(b *bench) {
	for end := time.Now().Add(time.Second); b.Rules()[0].Fired == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// actionOf is what a rule is expected to do.
func actionOf(f *policy.IOFault) fusefs.Action {
	switch {
	case f.Torn != nil:
		return fusefs.ActionTorn
	case len(f.Errors) > 0:
		return fusefs.ActionError
	case f.Short != nil:
		return fusefs.ActionShort
	case f.Corrupt != nil:
		return fusefs.ActionCorrupt
	case f.Lost:
		return fusefs.ActionLost
	case f.Attr != nil:
		return fusefs.ActionAttr
	case f.Space != nil && f.Space.Quota:
		return fusefs.ActionQuota
	case f.Space != nil:
		return fusefs.ActionNoSpace
	case f.Hang:
		return fusefs.ActionHang
	case f.Latency != nil:
		return fusefs.ActionLatency
	}
	return fusefs.ActionThrottle
}

// on is the first of some paths that the rule is about.
func (x *example) on(op policy.Op, names ...[]string) string {
	for _, list := range names {
		for _, n := range list {
			if x.rule.IO.Match(op, path.Join("/data", n)) {
				return x.path(n)
			}
		}
	}
	x.Errorf("nothing to call %s on", op)
	return x.path("f")
}

// call makes the system call of an operation; what it answers does not matter here.
func (x *example) call(op policy.Op) {
	var st unix.Stat_t
	switch op {
	case policy.OpLookup:
		_ = unix.Lstat(x.on(op, pageFiles, pageDirs), &st)
	case policy.OpGetattr:
		_ = unix.Stat(x.on(op, pageFiles), &st)
	case policy.OpSetattr:
		_ = unix.Chmod(x.on(op, pageFiles), 0o600)
	case policy.OpReadlink:
		_, _ = unix.Readlink(x.on(op, pageLinks), make([]byte, 99))
	case policy.OpMknod:
		p := x.on(op, pageNew)
		_ = unix.Mkfifo(p, 0o600)
		_ = unix.Unlink(p)
	case policy.OpMkdir:
		p := x.on(op, pageNew)
		_ = unix.Mkdir(p, 0o700)
		_ = unix.Rmdir(p)
	case policy.OpUnlink:
		_ = unix.Unlink(x.on(op, pageFiles))
	case policy.OpRmdir:
		_ = unix.Rmdir(x.on(op, pageDirs[1:]))
	case policy.OpSymlink:
		p := x.on(op, pageNew)
		_ = unix.Symlink("db", p)
		_ = unix.Unlink(p)
	case policy.OpRename:
		p := x.on(op, pageFiles)
		_ = unix.Rename(p, p+"2")
	case policy.OpLink:
		p := x.on(op, pageFiles)
		_ = unix.Link(p, p+"2")
	case policy.OpOpen:
		_ = openClose(x.on(op, pageFiles), unix.O_RDONLY, 0)
	case policy.OpCreate:
		p := x.on(op, pageNew)
		_ = openClose(p, unix.O_CREAT|unix.O_WRONLY, 0o600)
		_ = unix.Unlink(p)
	case policy.OpTmpfile:
		_ = openClose(path.Dir(x.on(op, pageNew)), unix.O_TMPFILE|unix.O_RDWR, 0o600)
	case policy.OpOpendir, policy.OpReaddir, policy.OpReleasedir, policy.OpFsyncdir, policy.OpStatfs:
		x.callOnDir(op, x.on(op, pageDirs))
	default:
		x.callOnFile(op, x.on(op, pageFiles))
	}
}

func (x *example) callOnDir(op policy.Op, p string) {
	if op == policy.OpStatfs {
		var s unix.Statfs_t
		_ = unix.Statfs(p, &s)
		return
	}
	fd, err := unix.Open(p, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	switch op {
	case policy.OpReaddir:
		_, _ = unix.Getdents(fd, make([]byte, 4096))
	case policy.OpFsyncdir:
		_ = unix.Fsync(fd)
	}
	_ = unix.Close(fd)
}

func (x *example) callOnFile(op policy.Op, p string) {
	if exe := x.rule.IO.Caller.Exe; len(exe) > 0 {
		_ = exec.Command(path.Base(exe[0]), "if="+p, "of=/dev/null", "count=1").Run()
		return
	}
	switch op {
	case policy.OpSetxattr:
		_ = unix.Setxattr(p, "user.y", []byte("v"), 0)
		return
	case policy.OpGetxattr:
		_, _ = unix.Getxattr(p, "user.x", make([]byte, 9))
		return
	case policy.OpListxattr:
		_, _ = unix.Listxattr(p, make([]byte, 99))
		return
	case policy.OpRemovexattr:
		_ = unix.Removexattr(p, "user.x")
		return
	case policy.OpAccess:
		_ = unix.Access(p, unix.R_OK)
		return
	}
	fd, err := unix.Open(p, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	x.callOnOpen(op, p, fd)
	_ = unix.Close(fd) // also flush and release
}

func (x *example) callOnOpen(op policy.Op, p string, fd int) {
	buf := []byte(strings.Repeat("new!", x.size/4+1))[:x.size]
	switch op {
	case policy.OpRead:
		_, _ = unix.Pread(fd, buf, x.at)
	case policy.OpWrite:
		_, _ = unix.Pwrite(fd, buf, x.at)
	case policy.OpFsync:
		_ = unix.Fsync(fd)
	case policy.OpFdatasync:
		_ = unix.Fdatasync(fd)
	case policy.OpGetlk:
		_ = unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	case policy.OpSetlk:
		_ = unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	case policy.OpIoctl:
		var v uint64
		_ = ioctl(fd, 0x80080f01, unsafe.Pointer(&v))
	case policy.OpFallocate:
		size := int64(x.size)
		if s := x.rule.IO.Space; s != nil {
			size = s.Bytes + 1<<20
		}
		_ = unix.Fallocate(fd, 0, x.at, size)
	case policy.OpLseek:
		_, _ = unix.Seek(fd, x.at, unix.SEEK_HOLE)
	case policy.OpCopyFileRange:
		to, err := unix.Open(p+"2", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err == nil {
			_, _ = unix.CopyFileRange(fd, &x.at, to, nil, x.size, 0)
			_ = unix.Close(to)
		}
	case policy.OpMmapRead, policy.OpMmapWrite:
		mem, err := unix.Mmap(fd, x.at/4096*4096, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return
		}
		if op == policy.OpMmapRead {
			_ = faultIn(mem[:1])
		} else {
			_ = poke(mem, 'X')
			_ = unix.Msync(mem, unix.MS_SYNC)
		}
		_ = unix.Munmap(mem)
	}
}
