package fusefs_test

import (
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/policy"
)

const spaceOps = "write+mmap-write+fallocate+copy_file_range+create+mkdir+mknod+symlink+link+tmpfile+setxattr+statfs"

func space(t testing.TB, bytes int64) policy.Rule {
	return fault(t, spaceOps, policy.IOFault{Space: &policy.Space{Bytes: bytes}})
}

// free is what statfs says, bytes.
func (b *bench) free() int64 {
	b.Helper()
	var s unix.Statfs_t
	must(b, unix.Statfs(b.mnt, &s))
	if s.Bfree != s.Bavail || s.Bfree > s.Blocks {
		b.Errorf("statfs %+v", s)
	}
	return int64(s.Bavail) * s.Frsize
}

// F10: the write that crosses the limit is short, the next one fails, statfs agrees, freeing space helps.
func TestNoSpace(t *testing.T) {
	for _, back := range []string{"", "/dev/shm"} {
		t.Run("on "+back, func(t *testing.T) {
			if back != "" {
				dir, err := os.MkdirTemp(back, "fusefs")
				must(t, err)
				t.Cleanup(func() { _ = os.RemoveAll(dir) })
				back = dir
			}
			b := over(t, setup{back: back})
			noSpace(t, b)
		})
	}
}

func noSpace(t *testing.T, b *bench) {
	b.write("old", string(make([]byte, 40_000)))
	const limit = 1 << 20
	b.faults(space(t, limit))
	if got := b.free(); got != limit {
		t.Errorf("statfs says %d bytes", got)
	}
	fd := b.open("f", unix.O_CREAT|unix.O_RDWR)
	buf := make([]byte, 300_001)
	total := 0
	put := func(fd int) (int, error) {
		n, err := unix.Write(fd, buf)
		return max(n, 0), err
	}
	for range 3 {
		n, err := put(fd)
		must(t, err)
		total += n
	}
	if n, err := put(fd); err != nil || n != limit-total {
		t.Errorf("the write that crosses: %d %v, %d were left", n, err, limit-total)
	}
	if e := b.one(); e.Action != fusefs.ActionNoSpace || e.Bytes != int64(limit-total) || e.Errno != 0 || e.Size != int64(len(buf)) {
		t.Errorf("event %+v", e)
	}
	if n, err := put(fd); err != unix.ENOSPC {
		t.Errorf("the write after it: %d %v", n, err)
	}
	if e := b.one(); e.Errno != unix.ENOSPC || e.Bytes != 0 {
		t.Errorf("event %+v", e)
	}
	if got := b.free(); got != 0 {
		t.Errorf("statfs says %d bytes", got)
	}
	// what takes nothing goes on
	if n, err := unix.Pwrite(fd, buf, 12345); err != nil || n != len(buf) {
		t.Errorf("writing over what is there: %d %v", n, err)
	}
	// what makes something does not
	for what, err := range map[string]error{
		"create":    openClose(b.path("new"), unix.O_CREAT|unix.O_WRONLY, 0o600),
		"mkdir":     unix.Mkdir(b.path("new"), 0o700),
		"symlink":   unix.Symlink("f", b.path("new")),
		"mknod":     unix.Mkfifo(b.path("new"), 0o600),
		"link":      unix.Link(b.path("f"), b.path("new")),
		"tmpfile":   openClose(b.mnt, unix.O_TMPFILE|unix.O_RDWR, 0o600),
		"fallocate": unix.Fallocate(fd, 0, limit, 4096),
		"setxattr":  unix.Setxattr(b.path("f"), "user.x", []byte("x"), 0),
	} {
		if err != unix.ENOSPC {
			t.Errorf("%s: %v", what, err)
		}
	}
	if exists(b, "new") {
		t.Error("something was made")
	}
	b.recorded()
	// every way to free space
	frees := func(what string, want int64, f func() error) {
		t.Helper()
		before := b.free()
		must(t, f())
		waitFor(t, what, func() bool { return b.free() >= min(before+want, limit*8)/4096*4096 })
		if got := b.free(); got > before+want {
			t.Errorf("%s freed %d bytes, not %d", what, got-before, want)
		}
	}
	frees("truncate", 1<<16, func() error { return unix.Ftruncate(fd, limit-1<<16) })
	must(t, os.WriteFile(b.path("a"), make([]byte, 1<<16), 0o600))
	frees("punch", 1<<15, func() error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<15, 1<<15)
	})
	if n, err := unix.Pwrite(fd, buf[:1<<15+5000], 1<<15); err != nil || n != 1<<15+5000 {
		t.Errorf("filling the hole: %d %v", n, err)
	}
	if got := b.free(); got != 0 {
		t.Errorf("%d bytes after the hole was filled", got)
	}
	frees("unlink", 1<<16, func() error { return os.Remove(b.path("a")) })
	must(t, os.WriteFile(b.path("a"), make([]byte, 1<<16), 0o600))
	frees("O_TRUNC", 1<<16, func() error { return openClose(b.path("a"), unix.O_WRONLY|unix.O_TRUNC, 0) })
	must(t, os.WriteFile(b.path("a"), make([]byte, 1<<16), 0o600))
	frees("rename over", 40_000, func() error { return os.Rename(b.path("a"), b.path("old")) })
	// a file without a name takes its space until it is closed
	a, err := unix.Open(b.path("old"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	before := b.free()
	must(t, os.Remove(b.path("old")))
	if got := b.free(); got != before {
		t.Errorf("%d bytes came back from a file that is open", got-before)
	}
	frees("last close", 1<<16, func() error { return unix.Close(a) })
	// all of it
	must(t, unix.Close(fd))
	frees("all", limit-1<<16, func() error { return os.Remove(b.path("f")) })
	if got, want := b.free(), int64(limit+40_000)/4096*4096; got != want {
		t.Errorf("%d bytes are left at the end, want %d", got, want)
	}
}

// Sparse files take what their blocks do, however they come to them.
func TestNoSpaceSparse(t *testing.T) {
	b := over(t, setup{direct: true})
	b.faults(space(t, 1<<20))
	fd := b.open("f", unix.O_CREAT|unix.O_RDWR)
	left := func(want int64, what string) {
		t.Helper()
		if got := b.free(); got != want/4096*4096 {
			t.Errorf("%s: %d bytes are left, want %d", what, got, want)
		}
	}
	must(t, unix.Ftruncate(fd, 1<<30))
	left(1<<20, "a hole of 1 GiB")
	_, err := unix.Pwrite(fd, []byte("x"), 1<<29)
	must(t, err)
	left(1<<20-4096, "one byte in it")
	_, err = unix.Pwrite(fd, make([]byte, 4096), 1<<29)
	must(t, err)
	left(1<<20-4096, "the rest of its block")
	must(t, unix.Fallocate(fd, 0, 0, 1<<19))
	left(1<<19-4096, "preallocated")
	_, err = unix.Pwrite(fd, make([]byte, 1<<19), 0)
	must(t, err)
	left(1<<19-4096, "written into what was preallocated")
	if err := unix.Fallocate(fd, 0, 1<<20, 1<<19); err != unix.ENOSPC {
		t.Errorf("more than is left: %v", err)
	}
	left(1<<19-4096, "refused")
	to := b.open("g", unix.O_CREAT|unix.O_RDWR)
	if n, err := unix.CopyFileRange(fd, new(int64), to, nil, 1<<20, 0); err != nil || int64(n) != 1<<19-4096 {
		t.Errorf("copied %d %v", n, err)
	}
	if n, err := unix.CopyFileRange(fd, new(int64), to, nil, 1<<20, 0); err != unix.ENOSPC {
		t.Errorf("copied %d more, %v", n, err)
	}
	left(0, "copied")
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1<<16))
	must(t, unix.Fallocate(to, unix.FALLOC_FL_KEEP_SIZE, 1<<20, 1<<16))
	left(1<<16, "preallocated past the end")
	if err := unix.Fallocate(to, unix.FALLOC_FL_KEEP_SIZE, 1<<20, 1<<17); err != unix.ENOSPC {
		t.Errorf("more than is left, past the end: %v", err)
	}
	if err := unix.Fallocate(to, 0x80000000, 1<<20, 4096); err == nil {
		t.Error("an unknown mode was accepted")
	}
	left(1<<16, "what failed takes nothing")
	_, err = unix.Pwrite(fd, make([]byte, 1<<16), 0)
	must(t, err)
	left(0, "filled again")
	must(t, unix.Ftruncate(fd, 10))
	left(1<<19+4096-10, "cut within a block")
	must(t, unix.Ftruncate(fd, 0))
	left(1<<19+4096, "empty")
}

// A page of a hole that was written through a map and has no space fails in msync.
func TestNoSpaceMap(t *testing.T) {
	b := over(t, setup{direct: true})
	fd := b.open("f", unix.O_CREAT|unix.O_RDWR)
	must(t, unix.Ftruncate(fd, 1<<20))
	mem, err := unix.Mmap(fd, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer func() { _ = unix.Munmap(mem) }()
	b.faults(space(t, 1<<16))
	must(t, poke(mem[1<<16:], 'x'))
	must(t, unix.Msync(mem, unix.MS_SYNC))
	if got := b.free(); got != 1<<16-4096 {
		t.Errorf("%d bytes are left", got)
	}
	for at := 1 << 18; at < 1<<19; at += 4096 {
		must(t, poke(mem[at:], 'x'))
	}
	if err := unix.Msync(mem, unix.MS_SYNC); err != unix.ENOSPC {
		t.Errorf("msync: %v", err)
	}
	if got := b.free(); got != 0 {
		t.Errorf("%d bytes are left", got)
	}
}

// However many write at once, no more is written than there is space for, and all of it is.
func TestNoSpaceUnderThreads(t *testing.T) {
	b := over(t, setup{direct: true})
	const limit = 3_000_000
	b.faults(space(t, limit))
	shared := b.open("shared", unix.O_CREAT|unix.O_RDWR)
	must(t, unix.Ftruncate(shared, 1<<30))
	var own [8]int // made first: where nothing is left nothing can be made
	for w := range own {
		own[w] = b.open(string(rune('a'+w)), unix.O_CREAT|unix.O_RDWR)
	}
	var written atomic.Int64
	var wg sync.WaitGroup
	for w, fd := range own {
		wg.Go(func() {
			for i := range 200 {
				switch n, err := unix.Write(fd, make([]byte, 5001)); err {
				case nil:
					written.Add(int64(n))
				case unix.ENOSPC:
				default:
					t.Error(err)
				}
				// two threads each want the same block of the shared file
				if _, err := unix.Pwrite(shared, make([]byte, 4096), int64(w/2*200+i)*4096); err != nil && err != unix.ENOSPC {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var st unix.Stat_t
	must(t, unix.Fstat(shared, &st))
	if got := written.Load() + st.Blocks*512; got > limit || got < limit-8*4096 {
		t.Errorf("%d bytes were written, %d were there", got, limit)
	}
}

// Writers that want the same block at the same moment take it once.
func TestNoSpaceSameBlock(t *testing.T) {
	b := over(t, setup{})
	const limit, blocks, writers = 8 << 20, 400, 6
	b.faults(space(t, limit))
	fd := b.open("f", unix.O_CREAT|unix.O_RDWR)
	must(t, unix.Ftruncate(fd, 1<<30))
	for block := range int64(blocks) {
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range writers {
			wg.Go(func() {
				<-start
				if _, err := unix.Pwrite(fd, []byte("x"), block*8192); err != nil {
					t.Error(err)
				}
			})
		}
		close(start)
		wg.Wait()
	}
	if got, want := b.free(), int64(limit-blocks*4096); got != want {
		t.Errorf("%d bytes are left, want %d", got, want)
	}
}

// quota answers EDQUOT; space is counted for its paths only, from its activation, whatever the rule refuses.
func TestQuota(t *testing.T) {
	b := over(t, setup{direct: true})
	must(t, os.MkdirAll(b.under("in"), 0o755))
	b.faults(fault(t, "write", policy.IOFault{Path: "/data/in/**", Space: &policy.Space{Bytes: 10_000, Quota: true}}))
	in, out := b.open("in/f", unix.O_CREAT|unix.O_RDWR), b.open("out", unix.O_CREAT|unix.O_RDWR)
	_, err := unix.Write(out, make([]byte, 1<<20))
	must(t, err)
	must(t, unix.Fallocate(in, 0, 0, 20_000)) // not an operation of the rule; it takes all the same
	if _, err := unix.Pwrite(in, make([]byte, 10), 20_000); err != unix.EDQUOT {
		t.Errorf("%v", err)
	}
	if e := b.one(); e.Action != fusefs.ActionQuota {
		t.Errorf("event %+v", e)
	}
	must(t, os.Rename(b.path("in/f"), b.path("f")))
	fd := b.open("in/g", unix.O_CREAT|unix.O_RDWR)
	if n, err := unix.Write(fd, make([]byte, 20_000)); err != nil || n != 10_000 {
		t.Errorf("after the file was moved away: %d %v", n, err)
	}
}
