package fusefs_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestOwnerModeAndUmask(t *testing.T) {
	b := over(t, setup{})
	must(t, os.Chmod(b.back, 0o777))
	must(t, os.Mkdir(b.under("team"), 0))
	must(t, os.Chown(b.under("team"), 0, 4242))
	must(t, os.Chmod(b.under("team"), 0o2777|os.ModeSetgid))
	asUser(t, 1234, 5678, func() {
		for what, f := range map[string]func(string) error{
			"file": func(p string) error { return openClose(p, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o666) },
			"dir":  func(p string) error { return unix.Mkdir(p, 0o777) },
			"fifo": func(p string) error { return unix.Mkfifo(p, 0o666) },
			"sym":  func(p string) error { return unix.Symlink("x", p) },
		} {
			for _, dir := range []string{"", "team/"} {
				if err := f(b.path(dir + what)); err != nil {
					t.Errorf("%s: %v", dir+what, err)
					continue
				}
				var st, ref unix.Stat_t
				if err := unix.Lstat(b.under(dir+what), &st); err != nil {
					t.Error(err)
				}
				gid := uint32(5678)
				if dir != "" {
					gid = 4242
				}
				if st.Uid != 1234 || st.Gid != gid {
					t.Errorf("%s belongs to %d:%d", dir+what, st.Uid, st.Gid)
				}
				// the same call on the file system below
				if err := f(b.under(dir + what + ".ref")); err != nil {
					t.Errorf("%s below: %v", what, err)
				}
				if err := unix.Lstat(b.under(dir+what+".ref"), &ref); err != nil || ref.Mode != st.Mode {
					t.Errorf("%s: mode %o, on the file system below %o (%v)", dir+what, st.Mode, ref.Mode, err)
				}
			}
		}
		// set-group-ID of a group that the caller is not in goes
		for _, p := range []string{b.path("team/s1"), b.under("team/s2")} {
			if err := openClose(p, unix.O_CREAT|unix.O_WRONLY, 0o2775); err != nil {
				t.Error(err)
			}
			var st unix.Stat_t
			if err := unix.Stat(p, &st); err != nil || st.Mode&unix.S_ISGID != 0 {
				t.Errorf("%s: mode %o %v", p, st.Mode, err)
			}
		}
		// and nobody gets in who may not
		if err := openClose(b.path("secret"), unix.O_RDONLY, 0); err != unix.ENOENT {
			t.Error(err)
		}
	})
	must(t, os.WriteFile(b.under("secret"), nil, 0o600))
	asUser(t, 1234, 5678, func() {
		if err := openClose(b.path("secret"), unix.O_RDONLY, 0); err != unix.EACCES {
			t.Errorf("open of root's file: %v", err)
		}
		if err := openClose(b.path("secret"), unix.O_CREAT|unix.O_WRONLY, 0o666); err != unix.EACCES {
			t.Errorf("creat of root's file: %v", err)
		}
	})
}

func TestSetIDBitsGoWithWrites(t *testing.T) {
	b := over(t, setup{})
	for name, change := range map[string]func(p string) error{
		"write": func(p string) error {
			fd, err := unix.Open(p, unix.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer func() { _ = unix.Close(fd) }()
			_, err = unix.Write(fd, []byte("x"))
			return err
		},
		"truncate": func(p string) error { return unix.Truncate(p, 1) },
		"O_TRUNC":  func(p string) error { return openClose(p, unix.O_WRONLY|unix.O_TRUNC, 0) },
	} {
		for i, dir := range []string{b.back, b.mnt} {
			p := fmt.Sprintf("%s/%s%d", dir, name, i)
			must(t, os.WriteFile(p, []byte("data"), 0o777))
			must(t, unix.Chmod(p, 0o6777))
			asUser(t, 1234, 5678, func() {
				if err := change(p); err != nil {
					t.Error(name, err)
				}
			})
			var st unix.Stat_t
			must(t, unix.Stat(p, &st))
			if st.Mode&0o7777 != 0o777 {
				t.Errorf("%s in %s: mode %o", name, dir, st.Mode)
			}
		}
	}
}

func TestUnlinkedFileStaysWhole(t *testing.T) {
	b := over(t, setup{})
	fd := b.open("f", unix.O_CREAT|unix.O_RDWR)
	must(t, unix.Unlink(b.path("f")))
	_, err := unix.Pwrite(fd, []byte("hello"), 0)
	must(t, err)
	must(t, unix.Ftruncate(fd, 3))
	must(t, unix.Fchmod(fd, 0o640))
	must(t, unix.Futimes(fd, []unix.Timeval{{Sec: 5}, {Sec: 6}}))
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	if st.Nlink != 0 || st.Size != 3 || st.Mode&0o777 != 0o640 || st.Mtim.Sec != 6 {
		t.Errorf("%+v", st)
	}
	buf := make([]byte, 9)
	if n, err := unix.Pread(fd, buf, 0); err != nil || string(buf[:n]) != "hel" {
		t.Errorf("%q %v", buf[:n], err)
	}
}

func TestTmpfileGetsAName(t *testing.T) {
	b := over(t, setup{})
	fd := b.open("", unix.O_TMPFILE|unix.O_RDWR)
	_, err := unix.Write(fd, []byte("data"))
	must(t, err)
	must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, b.path("named"), unix.AT_SYMLINK_FOLLOW))
	if content(b, "named") != "data" {
		t.Error(content(b, "named"))
	}
}

func TestRenameFlags(t *testing.T) {
	b := over(t, setup{})
	b.write("a", "A")
	b.write("b", "B")
	must(t, unix.Renameat2(unix.AT_FDCWD, b.path("a"), unix.AT_FDCWD, b.path("b"), unix.RENAME_EXCHANGE))
	if content(b, "a") != "B" || content(b, "b") != "A" {
		t.Error(content(b, "a"), content(b, "b"))
	}
	if err := unix.Renameat2(unix.AT_FDCWD, b.path("a"), unix.AT_FDCWD, b.path("b"), unix.RENAME_NOREPLACE); err != unix.EEXIST {
		t.Error(err)
	}
}

func TestAttributesAreThoseBelow(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "data")
	var up, down unix.Statx_t
	mask := unix.STATX_BASIC_STATS | unix.STATX_BTIME
	must(t, unix.Statx(unix.AT_FDCWD, b.path("f"), 0, mask, &up))
	must(t, unix.Statx(unix.AT_FDCWD, b.under("f"), 0, mask, &down))
	if up.Ino != down.Ino || up.Btime != down.Btime || up.Mtime != down.Mtime || up.Mode != down.Mode || up.Blocks != down.Blocks || up.Mask&unix.STATX_BTIME == 0 {
		t.Errorf("layer %+v\nbelow %+v", up, down)
	}
}

func TestNamesOfAnyBytes(t *testing.T) {
	b := over(t, setup{})
	name := "\xff\xfe \n" + string(bytes.Repeat([]byte{'x'}, 251))
	must(t, os.WriteFile(b.path(name), []byte("v"), 0o600))
	if got := names(t, b.mnt); got != name {
		t.Errorf("%q", got)
	}
	if err := os.WriteFile(b.path(name+"y"), nil, 0o600); err == nil {
		t.Error("a name of 256 bytes was accepted")
	}
}

func TestXattrsOnAllKinds(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "")
	must(t, os.Mkdir(b.under("d"), 0o755))
	must(t, os.Symlink("f", b.under("s")))
	for _, n := range []string{"f", "d", "s"} {
		if err := unix.Lsetxattr(b.under(n), "trusted.probe", []byte("v"), 0); err != nil {
			t.Skip("no trusted attributes below: ", err)
		}
		must(t, unix.Lsetxattr(b.path(n), "trusted.t", []byte("value"), 0))
		buf := make([]byte, 99)
		size, err := unix.Lgetxattr(b.under(n), "trusted.t", buf)
		if err != nil || string(buf[:size]) != "value" {
			t.Errorf("%s: %q %v", n, buf[:max(size, 0)], err)
		}
		size, err = unix.Llistxattr(b.path(n), buf)
		if err != nil || string(buf[:size]) != "trusted.probe\x00trusted.t\x00" {
			t.Errorf("%s: %q %v", n, buf[:max(size, 0)], err)
		}
		must(t, unix.Lremovexattr(b.path(n), "trusted.t"))
	}
}

func TestFileFlagsPass(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "")
	fd := b.open("f", unix.O_RDONLY)
	var have, below uint64
	if err := ioctl(fd, unix.FS_IOC_GETFLAGS, unsafe.Pointer(&have)); err != nil {
		t.Fatal(err)
	}
	raw, err := unix.Open(b.under("f"), unix.O_RDONLY, 0)
	must(t, err)
	defer func() { _ = unix.Close(raw) }()
	must(t, ioctl(raw, unix.FS_IOC_GETFLAGS, unsafe.Pointer(&below)))
	if uint32(have) != uint32(below) {
		t.Errorf("%x, below %x", have, below)
	}
	set := uint64(below | noDump)
	must(t, ioctl(fd, unix.FS_IOC_SETFLAGS, unsafe.Pointer(&set)))
	must(t, ioctl(raw, unix.FS_IOC_GETFLAGS, unsafe.Pointer(&below)))
	if below&noDump == 0 {
		t.Error("chattr did not arrive")
	}
	if err := ioctl(fd, 0x800846f6, unsafe.Pointer(&have)); err != unix.ENOTTY {
		t.Errorf("the handle ioctl for anyone: %v", err)
	}
}

func TestAppendAndDirect(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "one")
	fd := b.open("f", unix.O_RDWR|unix.O_APPEND)
	write := func(s string) {
		t.Helper()
		_, err := unix.Write(fd, []byte(s))
		must(t, err)
	}
	must(t, os.WriteFile(b.under("f"), []byte("changed below"), 0o644))
	write("+two")
	if got := content(b, "f"); got != "changed below+two" {
		t.Errorf("%q", got)
	}
	// the flag is taken away while the file is open
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
	must(t, err)
	_, err = unix.Pwrite(fd, []byte("C"), 0)
	must(t, err)
	if got := content(b, "f"); got != "Changed below+two" {
		t.Errorf("%q", got)
	}
	// a map of an O_APPEND file is written back where it belongs
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_APPEND)
	must(t, err)
	write("!")
	mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	must(t, poke(mem[1:], 'H'))
	must(t, unix.Msync(mem, unix.MS_SYNC))
	must(t, unix.Munmap(mem))
	if got := content(b, "f"); got != "CHanged below+two!" {
		t.Errorf("%q", got)
	}
	d := b.open("d", unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT)
	page, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	defer func() { _ = unix.Munmap(page) }()
	_, err = rand.Read(page[:4096])
	must(t, err)
	if n, err := unix.Pwrite(d, page[:4096], 4096); n != 4096 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := unix.Pread(d, page[4096:], 4096); n != 4096 || err != nil || !bytes.Equal(page[:4096], page[4096:]) {
		t.Error(n, err)
	}
}

func TestHolesAndRanges(t *testing.T) {
	b := over(t, setup{})
	fd := b.open("f", unix.O_CREAT|unix.O_RDWR)
	_, err := unix.Pwrite(fd, bytes.Repeat([]byte("x"), 1<<16), 0)
	must(t, err)
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 1<<18))
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<12, 1<<12))
	for _, dir := range []string{b.back, b.mnt} {
		f, err := os.Open(dir + "/f")
		must(t, err)
		hole, err1 := f.Seek(0, unix.SEEK_HOLE)
		data, err2 := f.Seek(hole, unix.SEEK_DATA)
		size, err3 := f.Seek(0, unix.SEEK_END)
		must(t, f.Close())
		if hole != 1<<12 || data != 1<<13 || size != 1<<16 || err1 != nil || err2 != nil || err3 != nil {
			t.Error(dir, hole, data, size, err1, err2, err3)
		}
	}
	to := b.open("g", unix.O_CREAT|unix.O_RDWR)
	off := int64(10)
	if n, err := unix.CopyFileRange(fd, &off, to, nil, 100, 0); n != 100 || err != nil {
		t.Error(n, err)
	}
	if got := content(b, "g"); len(got) != 100 {
		t.Error(len(got))
	}
}

func TestDirectoryPositionsAreThoseBelow(t *testing.T) {
	b := over(t, setup{})
	for i := range 3000 {
		b.write(fmt.Sprintf("file-%04d", i), "")
	}
	read := func(fd int) (all []string, offs []int64) {
		for {
			some := entries(t, fd, 4096)
			if len(some) == 0 {
				return all, offs
			}
			for _, e := range some {
				all, offs = append(all, e.name), append(offs, e.off)
			}
		}
	}
	up := b.open("", unix.O_DIRECTORY)
	down, err := unix.Open(b.back, unix.O_DIRECTORY, 0)
	must(t, err)
	defer func() { _ = unix.Close(down) }()
	names, offs := read(up)
	if len(names) != 3002 {
		t.Fatalf("%d names", len(names))
	}
	for _, i := range []int{0, 1, 1500, 2900} {
		for _, fd := range []int{up, down} {
			_, err := unix.Seek(fd, offs[i], unix.SEEK_SET)
			must(t, err)
			if rest, _ := read(fd); len(rest) != 3001-i || rest[0] != names[i+1] {
				t.Errorf("from the position after %q: %d names", names[i], len(rest))
			}
		}
	}
}

func TestSingleFile(t *testing.T) {
	f := t.TempDir() + "/file"
	must(t, os.WriteFile(f, []byte("content"), 0o644))
	b := over(t, setup{back: f, prefix: "/etc/app.conf"})
	got, err := os.ReadFile(b.mnt)
	if err != nil || string(got) != "content" {
		t.Fatalf("%q %v", got, err)
	}
	b.rules("io error=EIO op=read path=/etc/app.conf")
	if _, err := os.ReadFile(b.mnt); err == nil {
		t.Error("the rule does not match the root itself")
	}
}

func TestReadOnly(t *testing.T) {
	b := over(t, setup{readOnly: true})
	b.write("f", "x")
	if err := openClose(b.path("f"), unix.O_WRONLY, 0); err != unix.EROFS {
		t.Error(err)
	}
	if got, err := os.ReadFile(b.path("f")); err != nil || string(got) != "x" {
		t.Error(string(got), err)
	}
}

// A change made behind the layer is seen within a second.
func TestChangesBelowAreSeen(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "1")
	if _, err := os.Stat(b.path("f")); err != nil {
		t.Fatal(err)
	}
	b.write("f", "12345")
	b.write("g", "")
	must(t, os.Rename(b.under("g"), b.under("h")))
	waitFor(t, "the new size", func() bool { fi, err := os.Stat(b.path("f")); return err == nil && fi.Size() == 5 })
	must(t, os.Remove(b.under("f")))
	waitFor(t, "the removal", func() bool { _, err := os.Stat(b.path("f")); return os.IsNotExist(err) })
}

// While a swapper is at work sizes are not cached: PostgreSQL, for one, extends a
// file at the end that lseek tells it, and took a stale one for a kernel's bug.
func TestSizesAreFreshDuringASwap(t *testing.T) {
	b := over(t, setup{})
	b.write("f", "1")
	b.Trust(1, true) // any process will do
	f, err := os.Open(b.path("f"))
	must(t, err)
	defer func() { _ = f.Close() }()
	for size := int64(1); size <= 20; size++ {
		must(t, os.Truncate(b.under("f"), size))
		if end, err := f.Seek(0, io.SeekEnd); err != nil || end != size {
			t.Fatalf("the file ends at %d, %v; it has %d bytes", end, err, size)
		}
	}
}

const noDump = 0x40 // FS_NODUMP_FL of include/uapi/linux/fs.h
