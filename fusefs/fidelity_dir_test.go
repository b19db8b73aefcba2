package fusefs_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// entry is one of a directory as getdents64(2) gives it.
type entry struct {
	name string
	ino  uint64
	off  int64
	kind uint8
}

// entries reads the next entries of a directory into a buffer of some size.
func entries(t testing.TB, fd, size int) (out []entry) {
	t.Helper()
	buf := make([]byte, size)
	n, err := unix.Getdents(fd, buf)
	must(t, err)
	for p := buf[:n]; len(p) > 0; { // struct linux_dirent64 of getdents(2)
		name := p[19:binary.NativeEndian.Uint16(p[16:])]
		out = append(out, entry{
			name: string(name[:bytes.IndexByte(name, 0)]), ino: binary.NativeEndian.Uint64(p), off: int64(binary.NativeEndian.Uint64(p[8:])), kind: p[18],
		})
		p = p[binary.NativeEndian.Uint16(p[16:]):]
	}
	return out
}

// Positions in a directory stay good while entries come and go: what was there all
// the time is seen exactly once, in the order of the file system below.
func TestSameDirectoryPositions(t *testing.T) {
	for _, many := range []int{20, 500} { // one block, and an index (ext4's htree)
		t.Run(itoa(many), func(t *testing.T) {
			both(t, func(s *side) {
				must(s, unix.Mkdir(s.path("d"), 0o755))
				for i := range many {
					s.make(fmt.Sprintf("d/entry-%05d", i), "", 0o644)
				}
				stays := func(name string) bool { // not one that goes or comes below
					var i int
					n, _ := fmt.Sscanf(name, "entry-%d", &i)
					return n == 0 && name[0] == '.' || n == 1 && i%3 != 0
				}
				rest := func(fd int) (all []entry) {
					for {
						some := entries(s, fd, 4096)
						if len(some) == 0 {
							return all
						}
						for _, e := range some {
							if stays(e.name) {
								all = append(all, e)
							}
						}
					}
				}
				fd := s.open("d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
				all := rest(fd)
				_, err := unix.Seek(fd, 0, unix.SEEK_SET)
				must(s, err)
				var read []entry
				for len(read) < many/2 {
					read = append(read, entries(s, fd, 600)...)
				}
				last := read[len(read)-1]
				at, err := unix.Seek(fd, 0, unix.SEEK_CUR)
				s.say("telldir agrees with the last entry: %v %s", at == last.off, errnoText(err))
				for i := 0; i < many; i += 3 {
					must(s, unix.Unlink(s.path(fmt.Sprintf("d/entry-%05d", i))))
				}
				for i := range many / 4 {
					s.make(fmt.Sprintf("d/new-%05d", i), "", 0o644)
				}
				got := rest(fd)
				for _, e := range slices.Backward(read) {
					if stays(e.name) {
						got = slices.Insert(got, 0, e)
					}
				}
				// A position is that of the next entry, which may be another by then.
				names := func(list []entry) (out []string) {
					for _, e := range list {
						out = append(out, e.name)
					}
					return out
				}
				if !slices.Equal(names(got), names(all)) {
					s.Errorf("read while entries came and went: %v\nat rest: %v", names(got), names(all))
				}
				s.say("all: %v", names(all))
				for _, i := range []int{0, 1, len(read) / 2, len(read) - 1} {
					_, err := unix.Seek(fd, read[i].off, unix.SEEK_SET)
					s.say("from the position after entry %d %s: %v", i, errnoText(err), names(rest(fd)))
				}
				_, err = unix.Seek(fd, 0, unix.SEEK_SET)
				s.say("rewound %s: %v", errnoText(err), names(rest(fd)))
				_, err = unix.Seek(fd, -1, unix.SEEK_SET)
				_ = s.did("a negative position", err)
				_, err = unix.Seek(fd, 0, unix.SEEK_SET)
				must(s, err)
				_, err = unix.Getdents(fd, make([]byte, 10))
				_ = s.did("a buffer that is too small", err)
				d, err := unix.Dup(fd) // shares the position
				must(s, err)
				some := entries(s, d, 1000)
				at, err = unix.Seek(fd, 0, unix.SEEK_CUR)
				s.say("a duplicate moves it: %v %s", at == some[len(some)-1].off, errnoText(err))
				must(s, unix.Close(d))
			})
		})
	}
}

// A program that watches is told the same of what is done through the layer.
func TestSameInotify(t *testing.T) {
	both(t, func(s *side) {
		in, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
		must(s, err)
		defer func() { _ = unix.Close(in) }()
		must(s, unix.Mkdir(s.path("d"), 0o755))
		s.make("f", "x", 0o644)
		for _, n := range []string{"d", "f"} {
			_, err = unix.InotifyAddWatch(in, s.path(n), unix.IN_ALL_EVENTS)
			must(s, err)
		}
		steps := []struct {
			name string
			call func() error
		}{
			{"create", func() error { return openClose(s.path("d/a"), unix.O_CREAT|unix.O_WRONLY, 0o644) }},
			{"write", func() error {
				return withFile(s.path("f"), unix.O_WRONLY, func(fd int) error { _, err := unix.Write(fd, []byte("y")); return err })
			}},
			{"read", func() error {
				return withFile(s.path("f"), unix.O_RDONLY, func(fd int) error { _, err := unix.Read(fd, make([]byte, 9)); return err })
			}},
			{"truncate", func() error { return unix.Truncate(s.path("f"), 0) }},
			{"O_TRUNC", func() error { return openClose(s.path("d/a"), unix.O_WRONLY|unix.O_TRUNC, 0) }},
			{"fallocate", func() error {
				return withFile(s.path("f"), unix.O_WRONLY, func(fd int) error { return unix.Fallocate(fd, 0, 0, 9) })
			}},
			{"chmod", func() error { return unix.Chmod(s.path("d/a"), 0o600) }},
			{"utimes", func() error { return unix.Utimes(s.path("f"), make([]unix.Timeval, 2)) }},
			{"setxattr", func() error { return unix.Setxattr(s.path("f"), "user.a", nil, 0) }},
			{"link", func() error { return unix.Link(s.path("f"), s.path("d/hard")) }},
			{"rename", func() error { return unix.Rename(s.path("d/a"), s.path("d/b")) }},
			{"rename onto", func() error { return unix.Rename(s.path("d/b"), s.path("d/hard")) }},
			{"readdir", func() error { _, err := os.ReadDir(s.path("d")); return err }},
			{"mkdir", func() error { return unix.Mkdir(s.path("d/d"), 0o755) }},
			{"rmdir", func() error { return unix.Rmdir(s.path("d/d")) }},
			{"symlink", func() error { return unix.Symlink("x", s.path("d/l")) }},
			{"refused", func() error { return unix.Mkdir(s.path("d/l"), 0o755) }},
			{"unlink", func() error { return unix.Unlink(s.path("d/hard")) }},
			{"unlink the watched", func() error { return unix.Unlink(s.path("f")) }},
		}
		for _, c := range steps {
			_ = s.did(c.name, c.call())
			buf := make([]byte, 64<<10)
			n, err := unix.Read(in, buf)
			for p := buf[:max(n, 0)]; len(p) > 0; { // struct inotify_event of inotify(7)
				end := unix.SizeofInotifyEvent + binary.NativeEndian.Uint32(p[12:])
				name := strings.TrimRight(string(p[unix.SizeofInotifyEvent:end]), "\x00")
				s.say("  %d %#x %s", binary.NativeEndian.Uint32(p), binary.NativeEndian.Uint32(p[4:]), name)
				p = p[end:]
			}
			if err != nil {
				s.say("  %s", errnoText(err))
			}
		}
	})
}

// Leases are broken by who opens the file through the layer.
func TestSameLeases(t *testing.T) {
	both(t, func(s *side) {
		s.make("f", "x", 0o644)
		for _, flags := range []int{unix.O_RDONLY, unix.O_RDWR} {
			fd := s.open("f", flags, 0)
			for _, typ := range []int{unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK} {
				_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, typ)
				s.say("lease %d with flags %d: %s", typ, flags, errnoText(err))
				have, err := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
				s.say("  then %d %s", have, errnoText(err))
			}
			must(s, unix.Close(fd))
		}
		fd := s.open("f", unix.O_RDONLY, 0)
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
		if s.did("lease", err) != nil {
			return
		}
		_ = s.did("open to read", openClose(s.path("f"), unix.O_RDONLY|unix.O_NONBLOCK, 0))
		_ = s.did("open to write", openClose(s.path("f"), unix.O_WRONLY|unix.O_NONBLOCK, 0))
		have, err := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
		s.say("then %d %s", have, errnoText(err))
	})
}

// What somebody changes behind the layer is seen within the time that docs/layer.md says, by each call.
func TestChangesBehindAreSeenInTime(t *testing.T) {
	b := over(t, setup{})
	for _, n := range []string{"size", "mode", "gone", "moved", "other", "data", "link"} {
		b.write(n, "before")
	}
	must(t, os.Symlink("before", b.under("sym")))
	must(t, os.Mkdir(b.under("dir"), 0o755))
	fd := b.open("data", unix.O_RDONLY)
	look := func() { // fills what caches there are
		for _, n := range []string{"size", "mode", "gone", "moved", "other", "data", "sym", "dir", "new"} {
			var st unix.Stat_t
			_ = unix.Lstat(b.path(n), &st) // new is not there
		}
		_, _ = os.Readlink(b.path("sym"))
		_ = names(t, b.path("dir"))
		_, _ = os.ReadFile(b.path("data"))
	}
	look()
	must(t, os.WriteFile(b.under("size"), []byte("longer than before"), 0o644))
	must(t, os.Chmod(b.under("mode"), 0o600))
	must(t, os.Remove(b.under("gone")))
	must(t, os.Rename(b.under("other"), b.under("moved")))
	must(t, os.Remove(b.under("sym")))
	must(t, os.Symlink("after", b.under("sym")))
	b.write("dir/entry", "")
	b.write("new", "")
	b.write("data", "behind")
	// data, directories and names that were not there are never cached
	buf := make([]byte, 9)
	if n, err := unix.Pread(fd, buf, 0); err != nil || string(buf[:n]) != "behind" {
		t.Errorf("data: %q %v", buf[:max(n, 0)], err)
	}
	if got := names(t, b.path("dir")); got != "entry" {
		t.Errorf("directory: %q", got)
	}
	if err := unix.Access(b.path("new"), unix.F_OK); err != nil {
		t.Errorf("a new name: %v", err)
	}
	limit := time.Now().Add(time.Second)
	checks := map[string]func() bool{
		"size": func() bool { var st unix.Stat_t; return unix.Stat(b.path("size"), &st) == nil && st.Size == 18 },
		"mode": func() bool {
			var st unix.Stat_t
			return unix.Stat(b.path("mode"), &st) == nil && st.Mode&0o777 == 0o600
		},
		"gone": func() bool { var st unix.Stat_t; return unix.Stat(b.path("gone"), &st) == unix.ENOENT },
		"moved": func() bool {
			var up, down unix.Stat_t
			return unix.Stat(b.path("moved"), &up) == nil && unix.Stat(b.under("moved"), &down) == nil && up.Ino == down.Ino
		},
		"other":   func() bool { var st unix.Stat_t; return unix.Stat(b.path("other"), &st) == unix.ENOENT },
		"symlink": func() bool { to, err := os.Readlink(b.path("sym")); return err == nil && to == "after" },
	}
	time.Sleep(time.Until(limit))
	for _, n := range sorted(checks) {
		if !checks[n]() {
			t.Errorf("%s: the change is not seen after a second", n)
		}
	}
}
