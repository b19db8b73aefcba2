package fusefs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// matched is how often the first rule was asked, which is how often the layer saw what it is about.
func (b *bench) matched() uint64 {
	b.Helper()
	r := b.Rules()
	if len(r) == 0 {
		b.Fatal("there is no rule")
	}
	return r[0].Matched
}

func needsPassthrough(t *testing.T) {
	t.Helper()
	var u unix.Utsname
	must(t, unix.Uname(&u))
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil || major < 6 || major == 6 && minor < 9 {
		t.Skip("passthrough needs Linux 6.9")
	}
}

// A file that is open when no rule can match it is served by the kernel: a rule
// that comes later sees nothing of it, and the layer says so.
func TestPassedThrough(t *testing.T) {
	needsPassthrough(t)
	b := over(t, setup{})
	b.write("f", "0123456789")
	before := b.open("f", unix.O_RDWR)
	b.rules("io error=EIO op=read+write+mmap-read+mmap-write path=/data/f")
	buf := make([]byte, 4)
	if n, err := unix.Pread(before, buf, 2); n != 4 || err != nil || string(buf) != "2345" {
		t.Errorf("%q %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Pwrite(before, []byte("x"), 0); err != nil {
		t.Error(err)
	}
	mem, err := unix.Mmap(before, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	if mem[1] != '1' {
		t.Errorf("the map shows %q", mem[:10])
	}
	mem[1] = 'y'
	must(t, unix.Munmap(mem))
	if n := b.matched(); n != 0 {
		t.Errorf("%d requests of a file that is passed through reached the layer", n)
	}
	if got, _ := os.ReadFile(b.under("f")); string(got) != "xy23456789" {
		t.Errorf("below is %q", got)
	}
	list := b.Retired()
	var st unix.Stat_t
	must(t, unix.Stat(b.under("f"), &st))
	if len(list) != 1 || list[0].Ino != st.Ino || list[0].Path != "/data/f" {
		t.Errorf("retired: %+v", list)
	}
	// A new open is seen, although the old one is still there.
	after := b.open("f", unix.O_RDWR)
	if _, err := unix.Pread(after, buf, 0); err != unix.EIO {
		t.Errorf("a read of a file that was opened after the rule: %v", err)
	}
	if _, err := unix.Pwrite(after, buf, 0); err != unix.EIO {
		t.Errorf("a write: %v", err)
	}
	if n := b.matched(); n != 2 {
		t.Errorf("the rule was asked %d times", n)
	}
	// Attributes are the same through both.
	must(t, unix.Ftruncate(before, 3))
	must(t, unix.Fstat(after, &st))
	if st.Size != 3 {
		t.Errorf("size %d through the other inode", st.Size)
	}
	b.rules()
	if n, err := unix.Pread(after, buf, 0); n != 3 || err != nil {
		t.Errorf("after the rule: %d %v", n, err)
	}
	must(t, unix.Close(before))
	eventually(t, "the old inode is open no more", func() bool { return len(b.Retired()) == 0 })
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

// A rule that was announced finds the files that are opened until it comes.
func TestExpect(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "data")
	b.write("g", "data")
	coming := parse(t, "io error=EIO op=read path=/data/f")
	must(t, b.Expect(coming))
	f, g := b.open("f", unix.O_RDONLY), b.open("g", unix.O_RDONLY)
	buf := make([]byte, 4)
	if n, err := unix.Pread(f, buf, 0); n != 4 || err != nil {
		t.Errorf("before the rule: %d %v", n, err)
	}
	must(t, b.SetRules(coming, time.Now()))
	if list := b.Retired(); len(list) != 0 {
		t.Errorf("retired: %+v", list)
	}
	if _, err := unix.Pread(f, buf, 0); err != unix.EIO {
		t.Errorf("f: %v", err)
	}
	if _, err := unix.Pread(g, buf, 0); err != nil {
		t.Errorf("g: %v", err)
	}
}

// What the kernel could not do as the file system below does goes through the layer.
func TestWritesThatNeedTheLayer(t *testing.T) {
	b := over(t, setup{})
	for _, c := range []struct {
		name  string
		flags int
		mode  uint32
		seen  bool
	}{
		{"plain", unix.O_WRONLY, 0o644, false},
		{"append", unix.O_WRONLY | unix.O_APPEND, 0o644, true},
		{"setuid", unix.O_WRONLY, 0o4755, true},
		{"setgid", unix.O_WRONLY, 0o2755, true},
	} {
		b.write(c.name, "data")
		must(t, unix.Chmod(b.under(c.name), c.mode))
		fd := b.open(c.name, c.flags)
		b.rules("io error=EIO op=write p=0 path=/data/" + c.name)
		_, err := unix.Write(fd, []byte("x"))
		must(t, err)
		if seen := b.matched() > 0; seen != c.seen {
			t.Errorf("%s: seen by the layer: %v", c.name, seen)
		}
		must(t, unix.Close(fd))
		b.rules()
	}
}

// A file that gets a name which a rule is about is reported, whether it was
// renamed itself, linked, or is in a directory that was.
func TestRenamedIntoARule(t *testing.T) {
	needsPassthrough(t)
	var told atomic.Int32
	b := over(t, setup{retire: func() { told.Add(1) }})
	must(t, os.Mkdir(b.under("d"), 0o755))
	for _, f := range []string{"one", "two", "d/three", "four"} {
		b.write(f, "data")
		b.open(f, unix.O_RDONLY)
	}
	b.rules("io error=EIO op=read path=/data/{a,b,c}/**", "io error=EIO op=read path=/data/*.hit")
	must(t, os.Mkdir(b.path("a"), 0o755))
	for i, f := range []func() error{
		func() error { return os.Rename(b.path("one"), b.path("a/one")) },
		func() error { return os.Link(b.path("two"), b.path("two.hit")) },
		func() error { return os.Rename(b.path("d"), b.path("c")) },
	} {
		must(t, f())
		if told.Load() != int32(i+1) || len(b.Retired()) != i+1 {
			t.Errorf("%d: told %d times, retired %+v", i, told.Load(), b.Retired())
		}
	}
	must(t, os.Rename(b.path("four"), b.path("five")))
	if told.Load() != 3 {
		t.Error("told of a name that no rule is about")
	}
	if _, err := os.ReadFile(b.path("c/three")); err == nil {
		t.Error("a file under its new name is not faulted")
	}
}

// A file without a name is known by its directory from the first: the rule sees its writes, and a name
// that it gets later gives it no second inode, whose pages would be others than those of the first.
func TestTmpfileUnderARule(t *testing.T) {
	b := over(t, setup{})
	must(t, os.Mkdir(b.under("tmp"), 0o755))
	b.rules("io error=EIO op=write path=/data/tmp/**")
	tmp := b.open("tmp", unix.O_TMPFILE|unix.O_RDWR)
	if _, err := unix.Write(tmp, []byte("x")); err != unix.EIO {
		t.Errorf("a write before it has a name: %v", err)
	}
	must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", tmp), unix.AT_FDCWD, b.path("tmp/f"), unix.AT_SYMLINK_FOLLOW))
	if list := b.Retired(); len(list) != 0 {
		t.Errorf("retired: %+v", list)
	}
	if _, err := unix.Write(tmp, []byte("x")); err != unix.EIO {
		t.Errorf("a write when it has one: %v", err)
	}
}

// Locks belong to the file, whichever inode they were taken through.
func TestRetiredFileKeepsItsLocks(t *testing.T) {
	needsPassthrough(t)
	b := over(t, setup{})
	b.write("f", "data")
	before := b.open("f", unix.O_RDWR)
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	must(t, unix.FcntlFlock(uintptr(before), unix.F_SETLK, &lock))
	b.rules("io error=EIO op=read path=/data/f")
	other := b.open("f", unix.O_RDWR)
	ofd := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(other), unix.F_OFD_SETLK, &ofd); err != unix.EAGAIN {
		t.Errorf("a lock that is held through the old inode is given through the new one: %v", err)
	}
	lock.Type = unix.F_UNLCK
	must(t, unix.FcntlFlock(uintptr(before), unix.F_SETLK, &lock))
	must(t, unix.FcntlFlock(uintptr(other), unix.F_OFD_SETLK, &ofd))
}

// Files that are opened again and again are named to the kernel once, and those
// that are not are let go of: more of them than are kept.
func TestManyFilesPassedThrough(t *testing.T) {
	b := over(t, setup{})
	buf := make([]byte, 8)
	for i := range 700 {
		name := fmt.Sprintf("f%d", i)
		b.write(name, name)
		for range 2 {
			fd, err := unix.Open(b.path(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			must(t, err)
			n, err := unix.Read(fd, buf)
			if err != nil || string(buf[:n]) != name {
				t.Fatalf("%s: %q %v", name, buf[:max(n, 0)], err)
			}
			must(t, unix.Close(fd))
		}
	}
	for _, i := range []int{0, 100, 699} {
		got, err := os.ReadFile(b.path(fmt.Sprintf("f%d", i)))
		if err != nil || string(got) != fmt.Sprintf("f%d", i) {
			t.Errorf("%q %v", got, err)
		}
	}
}

// Every call that is not a read or a write works on a file that is passed through and was never opened below.
func TestPassedThroughToRead(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "0123456789")
	fd := b.open("f", unix.O_RDONLY)
	must(t, unix.Fsync(fd))
	must(t, unix.Flock(fd, unix.LOCK_SH))
	if at, err := unix.Seek(fd, 0, unix.SEEK_HOLE); at != 10 || err != nil {
		t.Errorf("SEEK_HOLE: %d %v", at, err)
	}
	if n, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS); err != nil {
		t.Errorf("ioctl: %d %v", n, err)
	}
	to := b.open("g", unix.O_CREAT|unix.O_WRONLY)
	if n, err := unix.CopyFileRange(fd, new(int64), to, nil, 10, 0); n != 10 || err != nil {
		t.Errorf("copy_file_range: %d %v", n, err)
	}
	must(t, os.Remove(filepath.Join(b.mnt, "f")))
	again := b.openAt(fd)
	buf := make([]byte, 10)
	if n, err := unix.Pread(again, buf, 0); n != 10 || err != nil || string(buf) != "0123456789" {
		t.Errorf("unlinked and opened again: %q %v", buf[:max(n, 0)], err)
	}
}

func (b *bench) openAt(fd int) int {
	b.Helper()
	again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(b, err)
	b.Cleanup(func() { closeBelow(again, b.mnt) })
	return again
}

// What a file system below says when a descriptor is closed is said to the program.
func TestErrorsOfCloseBelow(t *testing.T) {
	lower := over(t, setup{})
	upper := over(t, setup{back: lower.mnt})
	for _, flags := range []int{unix.O_WRONLY, unix.O_WRONLY | unix.O_APPEND} {
		fd := upper.open("f", unix.O_CREAT|flags)
		lower.rules("io error=EDQUOT op=flush")
		if err := unix.Close(fd); err != unix.EDQUOT {
			t.Errorf("close: %v", err)
		}
		lower.rules()
	}
}

// While a swapper moves the locks of some from a retired inode to another, closes of
// those leave their locks alone, those of others, who run, end them as ever.
func TestLocksStayInAMove(t *testing.T) {
	needsPassthrough(t)
	b := over(t, setup{})
	b.write("f", "0123456789")
	before := b.open("f", unix.O_RDWR)
	below := b.below("f", unix.O_RDWR)
	b.rules("io error=EIO op=write p=0 path=/data/f")
	var st unix.Stat_t
	must(t, unix.Stat(b.under("f"), &st))
	for name, c := range map[string]struct{ asked, stays bool }{"of one that is moved": {true, true}, "of one that runs": {false, false}} {
		fd, err := unix.Open(filepath.Join(b.mnt, "f"), unix.O_RDWR|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, setlk(fd, unix.F_WRLCK, 3, 4))
		if held, err := b.KeepLocks(true); !held || err != nil {
			t.Errorf("%s: there is no lock", name)
		}
		if c.asked {
			if l := b.LocksToKeep(os.Getpid(), os.Getpid(), st.Ino); len(l) != 1 {
				t.Errorf("%s: locks to keep %+v", name, l)
			}
		}
		must(t, unix.Close(fd))
		err = ofdlk(below, unix.F_WRLCK, 0, 0)
		if stays := err == unix.EAGAIN; stays != c.stays {
			t.Errorf("%s: a lock after the close: %v, should stay: %v", name, err, c.stays)
		}
		_, _ = b.KeepLocks(false)
		must(t, setlk(before, unix.F_UNLCK, 0, 0))
		must(t, ofdlk(below, unix.F_WRLCK, 0, 0))
		must(t, ofdlk(below, unix.F_UNLCK, 0, 0))
	}
}
