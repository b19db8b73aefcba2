package fusefs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/fusefs"
)

// adopt opens name on the layer so that the file is the description under fd.
func (b *bench) adopt(fd int, name string, flags int, a fusefs.Adoption) (file int, handle uint64) {
	b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	must(b, err)
	a.Description = own
	must(b, b.Arm(unix.Gettid(), a))
	file, err = unix.Open(b.path(name), flags|unix.O_CLOEXEC, 0)
	adopted := b.Disarm(unix.Gettid())
	if err != nil || len(adopted) != 1 || adopted[0].Nth != 1 {
		b.Fatalf("adopt %s: %v, adopted %v", name, err, adopted)
	}
	b.Cleanup(func() { closeBelow(file, b.mnt) })
	return file, adopted[0].Handle
}

func (b *bench) below(name string, flags int) int {
	b.Helper()
	fd, err := unix.Open(b.under(name), flags|unix.O_CLOEXEC, 0o644)
	must(b, err)
	b.Cleanup(func() { closeBelow(fd, b.back) })
	return fd
}

// sameDescription compares open file descriptions by kcmp(2).
func sameDescription(t *testing.T, a, b int) bool {
	t.Helper()
	const kcmpFile = 0
	pid := uintptr(os.Getpid())
	r, _, e := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	if e != 0 {
		t.Fatal(e)
	}
	return r == 0
}

func TestAdoptRegularFile(t *testing.T) {
	var released atomic.Uint64
	b := over(t, setup{direct: true, released: func(h uint64) { released.Store(h) }})
	b.write("f", "content")
	orig := b.below("f", unix.O_RDWR)
	_, err := unix.Seek(orig, 3, unix.SEEK_SET)
	must(t, err)
	must(t, unix.Flock(orig, unix.LOCK_EX))
	must(t, os.Chmod(b.under("f"), 0)) // could not be opened again by who had it open

	b.rules("io error=EIO op=open") // does not reach the swapper once it is trusted
	b.Trust(os.Getpid(), true)
	file, handle := b.adopt(orig, "f", unix.O_RDWR, fusefs.Adoption{})
	b.rules()
	back, err := b.Description(handle)
	must(t, err)
	defer func() { _ = unix.Close(back) }()
	if !sameDescription(t, orig, back) {
		t.Error("the description is another one")
	}
	var asked uint64
	must(t, ioctl(file, fusefs.IoctlHandle, unsafe.Pointer(&asked)))
	if asked != handle {
		t.Errorf("ioctl says handle %d, it is %d", asked, handle)
	}
	b.Trust(os.Getpid(), false)
	if err := ioctl(file, fusefs.IoctlHandle, unsafe.Pointer(&asked)); err != unix.ENOTTY {
		t.Errorf("ioctl for anyone: %v", err)
	}
	_, err = unix.Pwrite(file, []byte("C"), 0)
	must(t, err)
	buf := make([]byte, 9)
	if n, err := unix.Pread(file, buf, 0); err != nil || string(buf[:n]) != "Content" {
		t.Errorf("%q %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Seek(file, 0, unix.SEEK_HOLE); err != nil {
		t.Error(err)
	}
	if at, err := unix.Seek(orig, 0, unix.SEEK_CUR); at != 3 || err != nil {
		t.Errorf("the description's position moved to %d, %v", at, err)
	}
	// the flock is still held, and by that description
	other := b.below("f", unix.O_RDWR)
	if err := unix.Flock(other, unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("flock by another: %v", err)
	}
	must(t, unix.Flock(file, unix.LOCK_UN))
	if err := unix.Flock(other, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("after unlock through the layer: %v", err)
	}
	b.rules("io error=EIO op=read")
	if _, err := unix.Pread(file, buf, 0); err != unix.EIO {
		t.Errorf("no fault on an adopted file: %v", err)
	}
	must(t, unix.Close(file))
	waitFor(t, "the release", func() bool { return released.Load() == handle })
	if _, err := b.Description(handle); err == nil {
		t.Error("the handle is still there")
	}
}

// An offset that two descriptors share stays shared: both are the layer's one file.
func TestAdoptSharedOffset(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "content")
	orig := b.below("f", unix.O_RDONLY)
	file, _ := b.adopt(orig, "f", unix.O_RDONLY, fusefs.Adoption{})
	dup, err := unix.Dup(file)
	must(t, err)
	defer func() { _ = unix.Close(dup) }()
	one := make([]byte, 1)
	var got strings.Builder
	for i := range 7 {
		_, err := unix.Read([]int{file, dup}[i%2], one)
		must(t, err)
		got.Write(one)
	}
	if got.String() != "content" {
		t.Error(got.String())
	}
}

func TestAdoptUnlinkedFile(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "content")
	orig := b.below("f", unix.O_RDWR)
	must(t, os.Remove(b.under("f")))
	token := "token-0123456789abcdef"
	if err := openClose(b.path(token), unix.O_RDWR, 0); err != unix.ENOENT {
		t.Fatalf("the token means something to others: %v", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := unix.Dup(orig)
	must(t, err)
	must(t, b.Arm(unix.Gettid(), fusefs.Adoption{Description: own, Token: token, Path: "/data/old/f"}))
	file, err := unix.Open(b.path(token), unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(file) }()
	if a := b.Disarm(unix.Gettid()); len(a) != 1 || a[0].Nth != 1 {
		t.Fatal("not adopted")
	}
	if link, _ := os.Readlink("/proc/self/fd/" + itoa(file)); !strings.HasSuffix(link, " (deleted)") {
		t.Errorf("it looks as if it had a name: %q", link)
	}
	_, err = unix.Pwrite(file, []byte("C"), 0)
	must(t, err)
	must(t, unix.Ftruncate(file, 4))
	var st unix.Stat_t
	must(t, unix.Fstat(orig, &st))
	if st.Size != 4 || st.Nlink != 0 {
		t.Errorf("%+v", st)
	}
	b.rules("io error=EIO op=read path=/data/old/*")
	if _, err := unix.Pread(file, make([]byte, 1), 0); err != unix.EIO {
		t.Errorf("the path that was given is not the rule's: %v", err)
	}
	if names(t, b.mnt) != "" {
		t.Error("the token shows: ", names(t, b.mnt))
	}
}

// A file that is adopted by a made-up name loses none that it has: not in the kernel's count
// either, by which link(2) goes.
func TestAdoptKeepsNames(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "content")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	token := "token-0123456789abcdef"
	must(t, b.Arm(unix.Gettid(), fusefs.Adoption{Description: b.below("f", unix.O_RDWR), Token: token, Path: "/data/f"}))
	file, err := unix.Open(b.path(token), unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(file) }()
	if a := b.Disarm(unix.Gettid()); len(a) != 1 || a[0].Nth != 1 {
		t.Fatal("not adopted")
	}
	var x unix.Statx_t
	must(t, unix.Statx(file, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_NLINK, &x)) // asks nobody
	if x.Nlink != 1 {
		t.Errorf("the kernel counts %d names", x.Nlink)
	}
	must(t, unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+itoa(file), unix.AT_FDCWD, b.path("g"), unix.AT_SYMLINK_FOLLOW))
	if got := names(t, b.mnt); got != "f g" {
		t.Error("names: ", got)
	}
}

func TestAdoptDirectory(t *testing.T) {
	b := over(t, setup{})
	for i := range 500 {
		b.write("n"+itoa(i), "")
	}
	orig := b.below("", unix.O_DIRECTORY)
	buf := make([]byte, 2048)
	_, err := unix.Getdents(orig, buf)
	must(t, err)
	at, err := unix.Seek(orig, 0, unix.SEEK_CUR)
	must(t, err)
	file, _ := b.adopt(orig, "", unix.O_DIRECTORY, fusefs.Adoption{})
	_, err = unix.Seek(file, at, unix.SEEK_SET)
	must(t, err)
	count := func(fd int) (n int) {
		for {
			size, err := unix.Getdents(fd, buf)
			must(t, err)
			if size == 0 {
				return n
			}
			for p := buf[:size]; len(p) > 0; n++ {
				p = p[(*unix.Dirent)(unsafe.Pointer(&p[0])).Reclen:]
			}
		}
	}
	again := b.below("", unix.O_DIRECTORY)
	_, err = unix.Seek(again, at, unix.SEEK_SET)
	must(t, err)
	if up, down := count(file), count(again); up != down || up == 0 {
		t.Errorf("%d entries were left on the layer, %d below", up, down)
	}
	f, err := unix.Openat(file, "n7", unix.O_RDONLY, 0)
	must(t, err)
	must(t, unix.Close(f))
}

// A thread is armed for several files at once. Each open takes the next description of its file: what an open was for that did not come
// is passed over, told, and closed.
func TestAdoptSeveral(t *testing.T) {
	b := over(t, setup{})
	for _, name := range []string{"f", "g", "h", "other"} {
		b.write(name, "content of "+name)
	}
	must(t, os.Link(b.under("f"), b.under("link")))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	token := "token-0123456789abcdef"
	var owns []int
	var all []fusefs.Adoption
	for i, name := range []string{"f", "g", "f", "h", "g", "f"} {
		own, err := unix.Dup(b.below(name, unix.O_RDWR))
		must(t, err)
		_, err = unix.Seek(own, int64(i), unix.SEEK_SET)
		must(t, err)
		owns, all = append(owns, own), append(all, fusefs.Adoption{Description: own})
	}
	all[3].Token, all[3].Path = token, "/data/h"
	must(t, b.Arm(tid, all...))
	var files []int
	open := func(name string) {
		t.Helper()
		fd, err := unix.Open(b.path(name), unix.O_RDWR|unix.O_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { closeBelow(fd, b.mnt) })
		files = append(files, fd)
	}
	open("f")
	if err := openClose(b.path("other"), unix.O_RDWR, 0); err != unix.ESTALE {
		t.Errorf("a path that names another object: %v", err)
	}
	open("link") // the second description of f: the one of g before it is passed over
	open(token)
	open("g")
	got := b.Disarm(tid)
	var nth []int
	for _, a := range got {
		nth = append(nth, a.Nth)
	}
	if want := []int{1, 0, 2, 3, 4, 0}; !slices.Equal(nth, want) {
		t.Fatalf("adopted by opens %v, want %v", nth, want)
	}
	for i, at := range []int{0, 2, 3, 4} {
		back, err := b.Description(got[at].Handle)
		must(t, err)
		if off, err := unix.Seek(back, 0, unix.SEEK_CUR); err != nil || off != int64(at) {
			t.Errorf("open %d: the description at offset %d, %v, not %d", i, off, err, at)
		}
		must(t, unix.Close(back))
		var lower, upper unix.Stat_t
		must(t, unix.Fstat(owns[at], &lower))
		must(t, unix.Fstat(files[i], &upper))
		if lower.Ino != upper.Ino {
			t.Errorf("open %d: inode %d, not %d", i, upper.Ino, lower.Ino)
		}
	}
	for _, at := range []int{1, 5} {
		if off, err := unix.Seek(owns[at], 0, unix.SEEK_CUR); err == nil && off == int64(at) {
			t.Errorf("description %d was not adopted, and is open", at)
		}
	}
	if err := openClose(b.path("f"), unix.O_RDWR, 0); err != nil {
		t.Error(err)
	}
}

func TestAdoptionRefused(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "")
	b.write("g", "")
	orig := b.below("f", unix.O_RDONLY)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	arm := func(a fusefs.Adoption) error {
		own, err := unix.Dup(orig)
		must(t, err)
		a.Description = own
		if err = b.Arm(tid, a); err != nil {
			must(t, unix.Close(own))
		}
		return err
	}
	must(t, arm(fusefs.Adoption{}))
	if err := arm(fusefs.Adoption{}); err == nil {
		t.Error("armed twice")
	}
	if err := openClose(b.path("g"), unix.O_RDONLY, 0); err != unix.ESTALE {
		t.Errorf("a path that names another object: %v", err)
	}
	if a := b.Disarm(tid); len(a) != 1 || a[0].Nth != 0 {
		t.Errorf("adopted: %v", a)
	}
	if err := arm(fusefs.Adoption{Token: "short"}); err == nil {
		t.Error("a token that could be a name was accepted")
	}
	if err := openClose(b.path("g"), unix.O_RDONLY, 0); err != nil {
		t.Error(err)
	}
}

func TestBacking(t *testing.T) {
	b := over(t, setup{})
	must(t, os.Mkdir(b.under("d"), 0o755))
	var st unix.Stat_t
	must(t, unix.Stat(b.path("d"), &st))
	fd, err := b.Backing(st.Ino, "d")
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	if link, _ := os.Readlink("/proc/self/fd/" + itoa(fd)); link != b.under("d") {
		t.Error(link)
	}
	if _, err := b.Backing(1<<60, "x"); err == nil {
		t.Error("an unknown object has a backing")
	}
}

// Inode numbers may be equal on sub-mounts: the path decides.
func TestBackingOnSubMounts(t *testing.T) {
	back := t.TempDir()
	for _, d := range []string{"m1", "m2"} {
		must(t, os.Mkdir(filepath.Join(back, d), 0o755))
		if err := unix.Mount("tmpfs", filepath.Join(back, d), "tmpfs", 0, "size=1m"); err != nil {
			t.Skip("cannot mount tmpfs: ", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(filepath.Join(back, d), unix.MNT_DETACH) })
	}
	b := over(t, setup{back: back})
	var s1, s2 unix.Stat_t
	b.write("m1/f", "one")
	b.write("m2/f", "two")
	must(t, unix.Stat(b.path("m1/f"), &s1))
	must(t, unix.Stat(b.path("m2/f"), &s2))
	if s1.Ino != s2.Ino {
		t.Skip("the inode numbers differ")
	}
	for _, d := range []string{"m1", "m2"} {
		fd, err := b.Backing(s1.Ino, d+"/f")
		must(t, err)
		if link, _ := os.Readlink("/proc/self/fd/" + itoa(fd)); link != b.under(d+"/f") {
			t.Error(link)
		}
		must(t, unix.Close(fd))
	}
	if _, err := b.Backing(s1.Ino, "m3/f"); err == nil {
		t.Error("one of two was guessed")
	}
}

// No descriptor is left when a layer has ended, whatever was open, adopted or locked.
func TestNoDescriptorIsLeft(t *testing.T) {
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(list)
	}
	run := func(t *testing.T) {
		b := over(t, setup{})
		for i := range 50 {
			b.write("n"+itoa(i), "x")
		}
		names(t, b.mnt)
		fd := b.open("n1", unix.O_RDWR|unix.O_APPEND)
		must(t, unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
		_, err := unix.Seek(fd, 0, unix.SEEK_HOLE)
		must(t, err)
		b.adopt(b.below("n2", unix.O_RDWR), "n2", unix.O_RDWR, fusefs.Adoption{})
		own, err := unix.Dup(fd)
		must(t, err)
		must(t, unix.Close(own))
		spare := b.below("n3", unix.O_RDONLY)
		spare, err = unix.Dup(spare)
		must(t, err)
		must(t, b.Arm(1<<21, fusefs.Adoption{Description: spare})) // never disarmed
		b.rules("io error=EIO op=read", "io latency=1ms op=write")
	}
	t.Run("first", run)
	runtime.GC()
	before := count()
	for range 5 {
		t.Run("again", run)
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before\n%s", after, before, openFiles("/"))
	}
}

// While a swapper is at work some of the target is on the layer already, or
// still, and some is not: what the one does the other sees at once.
func TestNothingIsCachedWhileSwapping(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "content")
	b.write("old", "content")
	for _, name := range []string{"f", "old"} {
		_, err := os.Stat(b.path(name)) // the kernel knows it for half a second
		must(t, err)
	}
	file := b.open("f", unix.O_RDONLY)
	b.Trust(os.Getppid(), true)
	defer b.Trust(os.Getppid(), false)
	for size := int64(100); size < 300; size += 100 {
		must(t, os.Truncate(b.under("f"), size))
		if fi, err := os.Stat(b.path("f")); err != nil || fi.Size() != size {
			t.Errorf("size %d: %v, %v", size, fi, err)
		}
		if end, err := unix.Seek(file, 0, unix.SEEK_END); err != nil || end != size {
			t.Errorf("size %d: the end is at %d, %v", size, end, err)
		}
	}
	must(t, os.Rename(b.under("old"), b.under("new")))
	if _, err := os.Stat(b.path("old")); !os.IsNotExist(err) {
		t.Errorf("a name that is gone: %v", err)
	}
	if _, err := os.Stat(b.path("new")); err != nil {
		t.Error(err)
	}
}

// What a program does to a description between its adoption and the exchange is
// not forgotten: here it is given O_APPEND, which goes again through the layer.
func TestAdoptedFlagsChangeBeforeTheExchange(t *testing.T) {
	b := over(t, setup{direct: true})
	b.write("f", "0123456789")
	orig := b.below("f", unix.O_RDWR)
	file, _ := b.adopt(orig, "f", unix.O_RDWR, fusefs.Adoption{})
	setAppend := func(fd, flags int) {
		t.Helper()
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
		must(t, err)
	}
	setAppend(orig, unix.O_APPEND)
	setAppend(file, unix.O_APPEND) // as the exchange does
	setAppend(file, 0)
	_, err := unix.Pwrite(file, []byte("AB"), 2)
	must(t, err)
	if got, err := os.ReadFile(b.under("f")); err != nil || string(got) != "01AB456789" {
		t.Errorf("%q, %v", got, err)
	}
}

// Where a layer comes off, the description below is the program's again, with the flags that it has set meanwhile, before the last
// pages of its maps are written. They go to their places, not to the end, and whether or not O_DIRECT wants them aligned.
func TestPagesAreWrittenWhereTheFileAppendsBelow(t *testing.T) {
	const size = 3 * 4096
	for name, flags := range map[string]int{"O_APPEND": unix.O_APPEND, "O_APPEND and O_DIRECT": unix.O_APPEND | unix.O_DIRECT} {
		t.Run(name, func(t *testing.T) {
			b := over(t, setup{direct: true})
			content := bytes.Repeat([]byte{'a'}, size)
			b.write("f", string(content))
			orig := b.below("f", unix.O_RDWR)
			file, _ := b.adopt(orig, "f", unix.O_RDWR, fusefs.Adoption{})
			_, err := unix.Pwrite(file, []byte("a"), 0) // the layer knows the flags
			must(t, err)
			mem, err := unix.Mmap(file, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			must(t, err)
			defer func() { _ = unix.Munmap(mem) }()
			if _, err = unix.FcntlInt(uintptr(orig), unix.F_SETFL, flags); err != nil {
				t.Skipf("the file system below: %v", err)
			}
			for at := 100; at < size; at += 4096 {
				mem[at], content[at] = 'b', 'b'
			}
			must(t, unix.Msync(mem, unix.MS_SYNC))
			got, err := os.ReadFile(b.under("f"))
			must(t, err)
			if !bytes.Equal(got, content) {
				t.Errorf("of %d bytes with 3 b there are %d with %d", size, len(got), bytes.Count(got, []byte{'b'}))
			}
		})
	}
}
