package fusefs_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// side is one of two directories in which a differential test makes the same
// calls: a plain one and one of a layer. What the calls gave is written down
// and compared, and so is what is in the directories afterwards.
type side struct {
	testing.TB
	dir   string // where the calls are made
	under string // what holds the files: dir itself, or what lies under the layer
	plain bool
	said  []string
	fds   []int
	rooms []string // what the directory of room holds; nil when there is none
}

// both runs f on a plain directory and on a layer and compares.
func both(t *testing.T, f func(s *side)) {
	t.Helper()
	b := over(t, setup{})
	plain := t.TempDir()
	bothIn(t, &side{TB: t, dir: plain, under: plain, plain: true}, &side{TB: t, dir: b.mnt, under: b.back}, f)
}

// bothWays is both for files that the kernel reads and writes below by itself, and for
// files that it asks the layer about.
func bothWays(t *testing.T, f func(s *side)) {
	for name, direct := range map[string]bool{"passed through": false, "asked about": true} {
		t.Run(name, func(t *testing.T) {
			b := over(t, setup{direct: direct})
			plain := t.TempDir()
			bothIn(t, &side{TB: t, dir: plain, under: plain, plain: true}, &side{TB: t, dir: b.mnt, under: b.back}, f)
		})
	}
}

func bothIn(t *testing.T, plain, layer *side, f func(s *side)) {
	t.Helper()
	for _, s := range []*side{plain, layer} {
		must(t, os.Chmod(s.under, 0o777))
		must(t, os.Chmod(filepath.Dir(s.under), 0o755))
		must(t, os.Chmod(filepath.Dir(filepath.Dir(s.under)), 0o755))
		f(s)
		for _, fd := range s.fds {
			closeBelow(fd, s.dir)
		}
	}
	compare(t, "", plain.said, layer.said)
	want := tree(t, plain.dir)
	compare(t, "tree seen through the layer: ", want, tree(t, layer.dir))
	compare(t, "tree below the layer: ", want, tree(t, layer.under))
}

func compare(t *testing.T, what string, plain, layer []string) {
	t.Helper()
	for i := 0; i < max(len(plain), len(layer)); i++ {
		p, l := "(nothing)", "(nothing)"
		if i < len(plain) {
			p = plain[i]
		}
		if i < len(layer) {
			l = layer[i]
		}
		if p != l {
			t.Errorf("%splain: %s\n%slayer: %s", what, p, strings.Repeat(" ", len(what)), l)
		}
	}
}

// tree describes everything in a directory.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		line := fmt.Sprintf("%q %s", rel, describe(p))
		if e.Type().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(data))[:9]
		}
		out = append(out, line)
		return nil
	}))
	sort.Strings(out)
	return out
}

// describe tells the attributes that do not depend on when and where a file was made.
func describe(p string) string {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return errnoText(err)
	}
	out := fmt.Sprintf("mode %o links %d owner %d:%d rdev %x", st.Mode, st.Nlink, st.Uid, st.Gid, st.Rdev)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		out += fmt.Sprintf(" size %d", st.Size)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		to, err := os.Readlink(p)
		out += fmt.Sprintf(" to %q %s", to, errnoText(err))
	}
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		return out + " xattrs " + errnoText(err)
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, name, v)
		out += fmt.Sprintf(" %s=%q %s", name, v[:max(n, 0)], errnoText(err))
	}
	return out
}

func errnoText(err error) string {
	var e syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// path is a name in the side's directory; absolute paths stay what they are.
func (s *side) path(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return s.dir + "/" + name // not cleaned
}

// say writes an observation down.
func (s *side) say(format string, args ...any) {
	s.said = append(s.said, strings.ReplaceAll(fmt.Sprintf(format, args...), s.dir, "DIR"))
}

// did writes down what came of a call, and gives it back.
func (s *side) did(what string, err error) error {
	s.say("%s: %s", what, errnoText(err))
	return err
}

// look writes down the attributes of a name.
func (s *side) look(name string) { s.say("%s is %s", name, describe(s.path(name))) }

// open opens a file, which is closed at the end at the latest.
func (s *side) open(name string, flags int, mode uint32) int {
	fd, err := unix.Open(s.path(name), flags|unix.O_CLOEXEC, mode)
	_ = s.did(fmt.Sprintf("open %q %#x %o", name, flags, mode), err)
	if err == nil {
		s.fds = append(s.fds, fd)
	}
	return fd
}

// make makes a file with content.
func (s *side) make(name, data string, mode uint32) {
	s.Helper()
	must(s, os.WriteFile(s.path(name), []byte(data), 0o600))
	must(s, unix.Chmod(s.path(name), mode))
}

// as runs f on a thread with the ids of a user and with supplementary groups.
func (s *side) as(uid, gid int, groups []int, f func()) {
	s.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		become(s, uid, gid, groups)
		f()
	}()
	<-done
}

// become gives this thread the ids of a user, without capabilities.
func become(t testing.TB, uid, gid int, groups []int) {
	list := make([]uint32, len(groups)+1)
	for i, g := range groups {
		list[i] = uint32(g)
	}
	for _, c := range [][3]uintptr{
		{unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0]))},
		{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid)},
		{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid)},
	} {
		if _, _, e := unix.RawSyscall(c[0], c[1], c[2], c[2]); e != 0 {
			t.Errorf("become %d:%d: %v", uid, gid, e)
		}
	}
}

// room makes a call in a directory that furnish has filled, and writes down what it
// gave; see leave.
func (s *side) room(furnish func(in *side), what string, call func(in *side) error) error {
	s.Helper()
	in := &side{TB: s.TB, dir: s.dir + "/room", plain: s.plain}
	if s.rooms == nil {
		must(s, unix.Mkdir(in.dir, 0o777))
		must(s, unix.Chmod(in.dir, 0o777))
		furnish(in)
		s.rooms = tree(s, in.dir)
	}
	return s.did(what, call(in))
}

// leave writes down what has changed in the directory of room since it was filled, and has the next call get a new one.
func (s *side) leave() {
	s.Helper()
	if s.rooms == nil {
		return
	}
	dir := s.dir + "/room"
	now := tree(s, dir)
	for _, line := range now {
		if !slices.Contains(s.rooms, line) {
			s.say("  %s", line)
		}
	}
	for _, line := range s.rooms {
		if !slices.Contains(now, line) {
			s.say("  no more: %s", line)
		}
	}
	if !slices.Equal(now, s.rooms) {
		must(s, os.RemoveAll(dir))
		s.rooms = nil
	}
}

// sorted gives the keys of a map in their order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
