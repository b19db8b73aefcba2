package fusefs_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sum writes down what a file holds and where its holes are.
func (s *side) sum(name string) {
	s.Helper()
	data, err := os.ReadFile(s.path(name))
	s.say("%s: %d bytes %.4x %s", name, len(data), sha256.Sum256(data), errnoText(err))
	fd, err := unix.Open(s.path(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	for at := int64(0); ; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err != nil {
			s.say("  no data from %d: %s", at, errnoText(err))
			return
		}
		at, err = unix.Seek(fd, start, unix.SEEK_HOLE)
		s.say("  data from %d to %d %s", start, at, errnoText(err))
	}
}

func pattern2(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8) ^ byte(i) ^ seed
	}
	return b
}

func TestSameFallocate(t *testing.T) {
	// COLLAPSE_RANGE, INSERT_RANGE and UNSHARE_RANGE never reach a FUSE server: fuse_file_fallocate in fs/fuse/file.c answers EOPNOTSUPP.
	modes := []uint32{
		0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
		unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE,
	}
	ranges := [][2]int64{{0, 4096}, {4096, 8192}, {100, 5000}, {60000, 20000}, {100000, 10}, {0, 0}, {-1, 10}, {10, -1}, {1 << 62, 1 << 62}, {0, 1 << 50}}
	bothWays(t, func(s *side) {
		for _, mode := range modes {
			for _, r := range ranges {
				name := fmt.Sprintf("f-%x-%d-%d", mode, r[0], r[1])
				s.make(name, string(pattern2(65536, 1)), 0o6777)
				fd := s.open(name, unix.O_RDWR, 0)
				_ = s.did("fallocate", unix.Fallocate(fd, mode, r[0], r[1]))
				must(s, unix.Close(fd))
				s.sum(name)
				s.look(name)
				fd = s.open(name, unix.O_RDONLY, 0)
				_ = s.did("fallocate read-only", unix.Fallocate(fd, mode, r[0], r[1]))
				must(s, unix.Close(fd))
			}
		}
		fd := s.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		_ = s.did("fallocate of a directory", unix.Fallocate(fd, 0, 0, 1))
	})
}

// What someone without CAP_FSETID changes loses its set-ID bits.
func TestSameSetIDBits(t *testing.T) {
	changes := map[string]func(s *side, p string) error{
		"write": func(s *side, p string) error {
			return withFile(p, unix.O_WRONLY, func(fd int) error { _, err := unix.Write(fd, []byte("x")); return err })
		},
		"write direct": func(s *side, p string) error {
			return withFile(p, unix.O_WRONLY|unix.O_DIRECT, func(fd int) error { _, err := unix.Pwrite(fd, aligned(4096), 0); return err })
		},
		"write nothing": func(s *side, p string) error {
			return withFile(p, unix.O_WRONLY, func(fd int) error { _, err := unix.Write(fd, nil); return err })
		},
		"truncate":      func(s *side, p string) error { return unix.Truncate(p, 1) },
		"truncate same": func(s *side, p string) error { return unix.Truncate(p, 7) },
		"ftruncate": func(s *side, p string) error {
			return withFile(p, unix.O_WRONLY, func(fd int) error { return unix.Ftruncate(fd, 1) })
		},
		"O_TRUNC": func(s *side, p string) error { return openClose(p, unix.O_WRONLY|unix.O_TRUNC, 0) },
		"fallocate": func(s *side, p string) error {
			return withFile(p, unix.O_WRONLY, func(fd int) error { return unix.Fallocate(fd, 0, 0, 9000) })
		},
		"punch": func(s *side, p string) error {
			return withFile(p, unix.O_WRONLY, func(fd int) error {
				return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4)
			})
		},
		"copy_file_range": func(s *side, p string) error {
			return withFile(p, unix.O_WRONLY, func(fd int) error {
				return withFile(s.path("source"), unix.O_RDONLY, func(from int) error { _, err := unix.CopyFileRange(from, nil, fd, nil, 3, 0); return err })
			})
		},
		"chown":      func(s *side, p string) error { return unix.Chown(p, -1, 4242) },
		"chown same": func(s *side, p string) error { return unix.Chown(p, 1234, 5678) },
		"chown none": func(s *side, p string) error { return unix.Chown(p, -1, -1) },
		"fchown": func(s *side, p string) error {
			return withFile(p, unix.O_RDONLY, func(fd int) error { return unix.Fchown(fd, 1234, -1) })
		},
		"chmod":    func(s *side, p string) error { return unix.Chmod(p, 0o6751) },
		"utimes":   func(s *side, p string) error { return unix.Utimes(p, make([]unix.Timeval, 2)) },
		"setxattr": func(s *side, p string) error { return unix.Setxattr(p, "user.x", []byte("y"), 0) },
		"mmap": func(s *side, p string) error {
			return withFile(p, unix.O_RDWR, func(fd int) error {
				mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				if err != nil {
					return err
				}
				defer func() { _ = unix.Munmap(mem) }()
				if err := poke(mem, 'x'); err != nil {
					return err
				}
				return unix.Msync(mem, unix.MS_SYNC)
			})
		},
	}
	who := []struct {
		name     string
		uid, gid int
		groups   []int
	}{{"root", 0, 0, nil}, {"owner", 1234, 5678, []int{4242}}, {"other", 65533, 65533, nil}, {"member", 1300, 4242, nil}}
	bothWays(t, func(s *side) {
		s.make("source", "source", 0o644)
		for _, name := range sorted(changes) {
			for _, w := range who {
				for _, mode := range []uint32{0o6777, 0o4777, 0o2767, 0o2777, 0o777} {
					for _, gid := range []int{5678, 4242} {
						f := fmt.Sprintf("%s-%s-%o-%d", name, w.name, mode, gid)
						s.make(f, "content", 0o600)
						must(s, unix.Chown(s.path(f), 1234, gid))
						must(s, unix.Chmod(s.path(f), mode))
						// For a map's write-back, below a write, and for a chown(-1, -1) that is refused, the kernel clears it on the layer and not below.
						if name != "mmap" && name != "chown none" {
							must(s, unix.Setxattr(s.path(f), "security.capability", capability, 0))
						}
						s.as(w.uid, w.gid, w.groups, func() { _ = s.did(f, changes[name](s, s.path(f))) })
						s.look(f)
					}
				}
			}
		}
	})
}

// capability is a security.capability attribute with cap_net_raw (include/uapi/linux/capability.h, revision 2).
var capability = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

func withFile(p string, flags int, f func(fd int) error) error {
	fd, err := unix.Open(p, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return f(fd)
}

// aligned is a buffer that begins at a page.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & 4095
	return b[skip : skip+n : skip+n]
}

func TestSameReadsAndWrites(t *testing.T) {
	bothWays(t, func(s *side) {
		s.make("f", string(pattern2(10000, 3)), 0o644)
		fd := s.open("f", unix.O_RDWR, 0)
		buf := make([]byte, 4096)
		for _, off := range []int64{0, 1, 4095, 9999, 10000, 20000, -1, 1 << 40, 1<<63 - 1} {
			n, err := unix.Pread(fd, buf, off)
			s.say("pread at %d: %d %.4x %s", off, n, sha256.Sum256(buf[:max(n, 0)]), errnoText(err))
		}
		for _, off := range []int64{9000, 30000, -1, 1 << 44, 1<<63 - 2} {
			n, err := unix.Pwrite(fd, []byte("written"), off)
			s.say("pwrite at %d: %d %s", off, n, errnoText(err))
			if err == nil {
				must(s, unix.Ftruncate(fd, 40000))
			}
		}
		s.sum("f")
		for _, flag := range []int{0, unix.RWF_HIPRI, unix.RWF_DSYNC, unix.RWF_SYNC, unix.RWF_APPEND, 0x10000} {
			n, err := unix.Pwritev2(fd, [][]byte{[]byte("one"), []byte("two")}, 5, flag)
			s.say("pwritev2 %x: %d %s", flag, n, errnoText(err))
		}
		s.sum("f")
		// positions
		for _, w := range []int{unix.SEEK_SET, unix.SEEK_CUR, unix.SEEK_END, unix.SEEK_DATA, unix.SEEK_HOLE, 9} {
			for _, off := range []int64{0, 5, -1, 50000, 1 << 40} {
				at, err := unix.Seek(fd, off, w)
				s.say("seek %d %d: %d %s", off, w, at, errnoText(err))
			}
		}
		// directions that the file is not open for
		ro, wo := s.open("f", unix.O_RDONLY, 0), s.open("f", unix.O_WRONLY, 0)
		_, err := unix.Write(ro, []byte("x"))
		_ = s.did("write to O_RDONLY", err)
		_, err = unix.Read(wo, buf)
		_ = s.did("read from O_WRONLY", err)
		_ = s.did("ftruncate of O_RDONLY", unix.Ftruncate(ro, 1))
		_ = s.did("fsync of O_RDONLY", unix.Fsync(ro))
		_ = s.did("fdatasync", unix.Fdatasync(wo))
		_ = s.did("syncfs", unix.Syncfs(wo))
		_ = s.did("sync_file_range", unix.SyncFileRange(wo, 0, 100, unix.SYNC_FILE_RANGE_WRITE))
		_ = s.did("fadvise", unix.Fadvise(ro, 0, 0, unix.FADV_DONTNEED))
		dir := s.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		_, err = unix.Read(dir, buf)
		_ = s.did("read of a directory", err)
		_, err = unix.Pread(dir, buf, 0)
		_ = s.did("pread of a directory", err)
		_ = s.did("fsync of a directory", unix.Fsync(dir))
		_ = s.did("fdatasync of a directory", unix.Fdatasync(dir))
		_ = s.did("ftruncate of a directory", unix.Ftruncate(dir, 0))
		_, err = unix.Mmap(dir, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		_ = s.did("mmap of a directory", err)
		// appending, through several descriptions and with the flag changed
		a, b := s.open("log", unix.O_CREAT|unix.O_WRONLY|unix.O_APPEND, 0o644), s.open("log", unix.O_WRONLY|unix.O_APPEND, 0)
		for i := range 20 {
			_, err := unix.Write([]int{a, b}[i%2], []byte(fmt.Sprintf("%d,", i)))
			must(s, err)
			at, err := unix.Seek([]int{a, b}[i%2], 0, unix.SEEK_CUR)
			s.say("after append %d: %d %s", i, at, errnoText(err))
		}
		n, err := unix.Pwrite(a, []byte("end"), 0)
		s.say("pwrite on O_APPEND: %d %s", n, errnoText(err))
		_, err = unix.FcntlInt(uintptr(a), unix.F_SETFL, 0)
		must(s, err)
		n, err = unix.Pwrite(a, []byte("start"), 0)
		s.say("pwrite without O_APPEND: %d %s", n, errnoText(err))
		s.sum("log")
		fl, err := unix.FcntlInt(uintptr(b), unix.F_GETFL, 0)
		s.say("flags %x %s", fl, errnoText(err))
	})
}

func TestSameCopyFileRange(t *testing.T) {
	bothWays(t, func(s *side) {
		s.make("from", string(pattern2(300000, 9)), 0o644)
		from := s.open("from", unix.O_RDWR, 0)
		for _, c := range []struct {
			off, to int64
			n       int
		}{{0, 0, 300000}, {1, 5, 1000}, {299990, 0, 100}, {300000, 0, 10}, {400000, 0, 10}, {0, 0, 1 << 40}, {0, 0, 0}, {-1, 0, 5}, {0, -1, 5}, {4096, 1 << 20, 8192}} {
			name := fmt.Sprintf("to-%d-%d-%d", c.off, c.to, c.n)
			to := s.open(name, unix.O_CREAT|unix.O_RDWR, 0o644)
			off, at, all := c.off, c.to, 0
			for { // partial copies are allowed, and their sizes are nobody's business
				n, err := unix.CopyFileRange(from, &off, to, &at, min(c.n, c.n-all), 0)
				all += max(n, 0)
				if err != nil || n == 0 || all == c.n {
					s.say("copy %v: %d in all, then at %d and %d %s", c, all, off, at, errnoText(err))
					break
				}
			}
			s.sum(name)
		}
		off, at := int64(0), int64(100)
		_, err := unix.CopyFileRange(from, &off, from, &at, 200, 0)
		_ = s.did("overlapping", err)
		off, at = 0, 100000
		n, err := unix.CopyFileRange(from, &off, from, &at, 200, 0)
		s.say("in one file: %d %s", n, errnoText(err))
		_, err = unix.CopyFileRange(from, nil, from, nil, 200, 1)
		_ = s.did("flags", err)
		app := s.open("append", unix.O_CREAT|unix.O_WRONLY|unix.O_APPEND, 0o644)
		_, err = unix.CopyFileRange(from, nil, app, nil, 10, 0)
		_ = s.did("to O_APPEND", err)
		_, err = unix.CopyFileRange(app, nil, from, nil, 10, 0)
		_ = s.did("from O_WRONLY", err)
		dir := s.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		_, err = unix.CopyFileRange(dir, nil, from, nil, 10, 0)
		_ = s.did("from a directory", err)
	})
}

// A file that is open is worked on whatever became of its names.
func TestSameNamelessFiles(t *testing.T) {
	bothWays(t, func(s *side) {
		work := func(what string, fd int) {
			_, err := unix.Pwrite(fd, []byte("more"), 3)
			_ = s.did(what+": pwrite", err)
			_ = s.did(what+": fchmod", unix.Fchmod(fd, 0o7640))
			_ = s.did(what+": fchown", unix.Fchown(fd, 7, 8))
			_ = s.did(what+": ftruncate", unix.Ftruncate(fd, 6))
			_ = s.did(what+": futimens", unix.UtimesNanoAt(fd, "", []unix.Timespec{{Sec: 5}, {Sec: 6}}, unix.AT_EMPTY_PATH))
			_ = s.did(what+": fsetxattr", unix.Fsetxattr(fd, "user.a", []byte("b"), 0))
			_ = s.did(what+": fallocate", unix.Fallocate(fd, 0, 0, 9))
			_ = s.did(what+": fsync", unix.Fsync(fd))
			var st unix.Stat_t
			err = unix.Fstat(fd, &st)
			s.say("%s: mode %o links %d owner %d:%d size %d atime %d %s", what, st.Mode, st.Nlink, st.Uid, st.Gid, st.Size, st.Atim.Sec, errnoText(err))
			for _, flags := range []int{unix.O_RDONLY, unix.O_RDWR, unix.O_RDWR | unix.O_APPEND, unix.O_PATH, unix.O_WRONLY | unix.O_TRUNC} {
				again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags|unix.O_CLOEXEC, 0)
				s.say("%s: open again %x: %s", what, flags, errnoText(err))
				if err == nil {
					buf := make([]byte, 20)
					n, err := unix.Pread(again, buf, 0)
					s.say("%s: read again %q %s", what, buf[:max(n, 0)], errnoText(err))
					must(s, unix.Close(again))
				}
			}
			_ = s.did(what+": link by AT_EMPTY_PATH", unix.Linkat(fd, "", unix.AT_FDCWD, s.path(what+"-1"), unix.AT_EMPTY_PATH))
			_ = s.did(what+": link by /proc", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, s.path(what+"-2"), unix.AT_SYMLINK_FOLLOW))
			_, err = unix.Pwrite(fd, []byte("end"), 1)
			must(s, err)
			if !strings.HasPrefix(what, "tmpfile") { // whose name in /proc is the kernel's (fuse_dir_tmpfile in fs/fuse/dir.c makes the entry "/")
				to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
				s.say("%s: its link %s %s", what, to, errnoText(err))
			}
			for _, n := range []string{"-1", "-2"} {
				s.look(what + n)
			}
		}
		s.make("unlinked", "content", 0o644)
		fd := s.open("unlinked", unix.O_RDWR, 0)
		must(s, unix.Unlink(s.path("unlinked")))
		work("unlinked", fd)
		s.make("over", "content", 0o644)
		s.make("other", "other", 0o644)
		fd = s.open("over", unix.O_RDWR, 0)
		must(s, unix.Rename(s.path("other"), s.path("over")))
		work("renamed over", fd)
		s.make("moved", "content", 0o644)
		fd = s.open("moved", unix.O_RDWR, 0)
		must(s, unix.Mkdir(s.path("sub"), 0o755))
		must(s, unix.Rename(s.path("moved"), s.path("sub/moved")))
		work("moved", fd)
		work("tmpfile", s.open(".", unix.O_TMPFILE|unix.O_RDWR, 0o644))
		work("tmpfile for good", s.open(".", unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL, 0o644))
		s.as(1234, 5678, nil, func() {
			fd, err := unix.Open(s.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
			if s.did("tmpfile of a user", err) == nil {
				_ = s.did("its link", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, s.path("users"), unix.AT_SYMLINK_FOLLOW))
				_ = s.did("its link by AT_EMPTY_PATH", unix.Linkat(fd, "", unix.AT_FDCWD, s.path("users2"), unix.AT_EMPTY_PATH))
				_ = unix.Close(fd)
			}
		})
		// a directory that is gone
		must(s, unix.Mkdir(s.path("gone"), 0o755))
		dir := s.open("gone", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(s, unix.Rmdir(s.path("gone")))
		_, err := unix.Openat(dir, "x", unix.O_CREAT|unix.O_WRONLY, 0o644)
		_ = s.did("create in a removed directory", err)
		_ = s.did("mkdir there", unix.Mkdirat(dir, "x", 0o755))
		_ = s.did("its parent", unix.Faccessat(dir, "..", unix.F_OK, 0))
		again, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if s.did("open it again", err) == nil {
			s.fds = append(s.fds, again)
		}
		n, err := unix.Getdents(dir, make([]byte, 4096))
		s.say("read it: %d %s", n, errnoText(err))
		var st unix.Stat_t
		err = unix.Fstat(dir, &st)
		s.say("links of a removed directory: %d %s", st.Nlink, errnoText(err))
	})
}

// Writers that append at once, through descriptions of their own, lose nothing and mix nothing up.
func TestAppendAtOnce(t *testing.T) {
	for _, direct := range []bool{false, true} {
		b := over(t, setup{direct: direct})
		b.write("log", "")
		const writers, lines = 6, 200
		var wg sync.WaitGroup
		for w := range writers {
			dir := b.mnt
			if w%3 == 2 {
				dir = b.back // behind the layer, too
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				err := withFile(dir+"/log", unix.O_WRONLY|unix.O_APPEND, func(fd int) error {
					for i := range lines {
						if n, err := unix.Write(fd, []byte(fmt.Sprintf("%d:%04d\n", w, i))); err != nil || n != 7 {
							return fmt.Errorf("%d %w", n, err)
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		next := map[string]int{}
		for _, line := range strings.Split(strings.TrimSuffix(content(b, "log"), "\n"), "\n") {
			w, i, _ := strings.Cut(line, ":")
			if i != fmt.Sprintf("%04d", next[w]) {
				t.Fatalf("direct %v: %q after %d lines of that writer", direct, line, next[w])
			}
			next[w]++
		}
		for w, n := range next {
			if n != lines {
				t.Errorf("direct %v: %d lines of writer %s", direct, n, w)
			}
		}
	}
}
