package fusefs_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is open goes on when the server is killed, however often: positions, data, modes, names.
func TestTakeoverKeepsOpenFiles(t *testing.T) {
	s := serve(t, "io error=EIO op=fsync path=/data/faulty/** times=1 ttl=1h")
	for _, dir := range []string{"plain", "faulty"} { // passed through, and served by the layer
		must(t, os.Mkdir(s.under(dir), 0o755))
	}
	type object struct {
		dir                           string
		pos, append, gone, tmp, moved int
		mem                           []byte
	}
	var all []*object
	for _, dir := range []string{"plain", "faulty"} {
		o := &object{dir: dir}
		for _, name := range []string{"pos", "append", "gone", "map", "moved"} {
			must(t, os.WriteFile(s.under(dir+"/"+name), []byte(strings.Repeat("0123456789", 1000)), 0o644))
		}
		o.pos = s.open(dir+"/pos", unix.O_RDWR)
		o.append = s.open(dir+"/append", unix.O_WRONLY|unix.O_APPEND)
		o.gone = s.open(dir+"/gone", unix.O_RDWR)
		must(t, os.Remove(s.path(dir+"/gone")))
		o.tmp = s.open(dir, unix.O_RDWR|unix.O_TMPFILE)
		o.moved = s.open(dir+"/moved", unix.O_RDONLY)
		must(t, os.Rename(s.path(dir+"/moved"), s.path(dir+"/moved.0")))
		m := s.open(dir+"/map", unix.O_RDWR)
		var err error
		o.mem, err = unix.Mmap(m, 0, 10000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		must(t, unix.Close(m))
		t.Cleanup(func() { must(t, unix.Munmap(o.mem)) })
		all = append(all, o)
	}
	for i := range 6 {
		s.kill()
		for _, o := range all {
			s.same(o.dir+": read at the position", s.read(o.pos, 4), strings.Repeat("0123456789", 3)[4*i:][:4])
			_, err := unix.Write(o.append, []byte("x"))
			must(t, err)
			_, err = unix.Write(o.gone, []byte("y"))
			must(t, err)
			_, err = unix.Write(o.tmp, []byte("z"))
			must(t, err)
			o.mem[5000+i] = 'm'
			must(t, unix.Msync(o.mem, unix.MS_SYNC))
			must(t, os.Rename(s.path(fmt.Sprintf("%s/moved.%d", o.dir, i)), s.path(fmt.Sprintf("%s/moved.%d", o.dir, i+1))))
			s.same(o.dir+": the renamed file", s.read(o.moved, 3), strings.Repeat("0123456789", 3)[3*i:][:3])
			b, err := os.ReadFile(s.under(o.dir + "/append"))
			must(t, err)
			s.same(o.dir+": appended", string(b[10000:]), strings.Repeat("x", i+1))
			b, err = os.ReadFile(s.under(o.dir + "/map"))
			must(t, err)
			s.same(o.dir+": stored through the map", string(b[5000:][:i+1]), strings.Repeat("m", i+1))
			for fd, c := range map[int]string{o.gone: "y", o.tmp: "z"} {
				got := make([]byte, i+1)
				n, err := unix.Pread(fd, got, 0)
				must(t, err)
				s.same(o.dir+": a file without a name", string(got[:n]), strings.Repeat(c, i+1))
				var st unix.Stat_t
				must(t, unix.Fstat(fd, &st))
				s.same(o.dir+": its links", st.Nlink, 0)
			}
		}
	}
	must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", all[0].tmp), unix.AT_FDCWD, s.path("plain/linked"), unix.AT_SYMLINK_FOLLOW))
	b, err := os.ReadFile(s.under("plain/linked"))
	must(t, err)
	s.same("a file that got a name", string(b), "zzzzzz")
}

// A directory is read on where it was, whole and each name once.
func TestTakeoverKeepsDirectoryPositions(t *testing.T) {
	s := serve(t)
	want := []string{}
	for i := range 100 {
		name := fmt.Sprintf("name-%03d", i)
		must(t, os.WriteFile(s.under(name), nil, 0o644))
		want = append(want, name)
	}
	fd := s.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	var got []string
	for i := 0; ; i++ {
		list := someEntries(t, fd)
		if len(list) == 0 {
			break
		}
		got = append(got, list...)
		if i%3 == 0 {
			s.kill()
		}
	}
	slices.Sort(got)
	got = slices.DeleteFunc(got, func(n string) bool { return n == "." || n == ".." })
	s.same("names", got, want)
	if s.kills < 2 {
		t.Errorf("the server was killed only %d times in between", s.kills)
	}
}

// Locks of each kind are held on, with no moment in which somebody else gets one; they are let go of when their owner does.
func TestTakeoverKeepsLocks(t *testing.T) {
	s := serve(t)
	must(t, os.WriteFile(s.under("f"), make([]byte, 1000), 0o644))
	lock := func(typ int16, start, size int64) *unix.Flock_t {
		return &unix.Flock_t{Type: typ, Whence: unix.SEEK_SET, Start: start, Len: size}
	}
	posix, ofd, flock := s.open("f", unix.O_RDWR), s.open("f", unix.O_RDWR), s.open("f", unix.O_RDWR)
	must(t, unix.FcntlFlock(uintptr(posix), unix.F_SETLK, lock(unix.F_WRLCK, 0, 10)))
	must(t, unix.FcntlFlock(uintptr(posix), unix.F_SETLK, lock(unix.F_RDLCK, 20, 10)))
	must(t, unix.FcntlFlock(uintptr(posix), unix.F_SETLK, lock(unix.F_WRLCK, 500, 0)))
	must(t, unix.FcntlFlock(uintptr(ofd), unix.F_OFD_SETLK, lock(unix.F_WRLCK, 40, 10)))
	must(t, unix.Flock(flock, unix.LOCK_EX))
	below, err := unix.Open(s.under("f"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(below) }()
	other := s.open("f", unix.O_RDWR)
	held := func(fd int, typ int16, at int64) string {
		l := lock(typ, at, 1)
		must(t, unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, l))
		if l.Type == unix.F_UNLCK {
			return "free"
		}
		return fmt.Sprintf("%d %d+%d", l.Type, l.Start, l.Len)
	}
	look := func() string {
		var out []string
		for _, fd := range []int{below, other} {
			for _, at := range []int64{0, 9, 10, 20, 29, 30, 40, 49, 50, 499, 500, 9999} {
				out = append(out, held(fd, unix.F_WRLCK, at), held(fd, unix.F_RDLCK, at))
			}
			err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
			if err == nil {
				must(t, unix.Flock(fd, unix.LOCK_UN))
			}
			out = append(out, fmt.Sprint(err))
		}
		l := lock(unix.F_WRLCK, 3, 1)
		must(t, unix.FcntlFlock(uintptr(other), unix.F_OFD_GETLK, l))
		return strings.Join(append(out, fmt.Sprint("by ", l.Pid == int32(os.Getpid()))), ", ")
	}
	want := look()
	for range 3 {
		s.kill()
		s.same("locks", look(), want)
	}
	// The owners are who they were: they change their locks without being in their own way.
	must(t, unix.FcntlFlock(uintptr(posix), unix.F_SETLK, lock(unix.F_UNLCK, 0, 5)))
	must(t, unix.FcntlFlock(uintptr(posix), unix.F_SETLK, lock(unix.F_WRLCK, 20, 10)))
	must(t, unix.FcntlFlock(uintptr(ofd), unix.F_OFD_SETLK, lock(unix.F_RDLCK, 40, 10)))
	s.kill()
	s.same("the unlocked part", held(below, unix.F_WRLCK, 0), "free")
	s.same("the rest of it", held(below, unix.F_WRLCK, 5), fmt.Sprintf("%d 5+5", unix.F_WRLCK))
	s.same("what became a write lock", held(below, unix.F_RDLCK, 25), fmt.Sprintf("%d 20+10", unix.F_WRLCK))
	s.same("what became a read lock", held(below, unix.F_RDLCK, 45), "free")
	must(t, unix.Close(flock)) // any close of the process ends its POSIX locks
	s.same("after a close, POSIX", held(below, unix.F_WRLCK, 600), "free")
	s.soon("after a close, flock", func() error { return unix.Flock(below, unix.LOCK_EX|unix.LOCK_NB) }) // RELEASE comes after close(2) has returned
	s.same("after a close, OFD", held(below, unix.F_WRLCK, 45), fmt.Sprintf("%d 40+10", unix.F_RDLCK))
}

// A call that waits, for a lock or for a rule, waits on and gets what it waits for.
func TestTakeoverKeepsWaiters(t *testing.T) {
	s := serve(t)
	must(t, os.WriteFile(s.under("f"), nil, 0o644))
	a, b := s.open("f", unix.O_RDWR), s.open("f", unix.O_RDWR)
	must(t, unix.Flock(a, unix.LOCK_EX))
	done := make(chan error, 1)
	go func() { done <- unix.Flock(b, unix.LOCK_EX) }()
	for range 3 {
		s.kill()
		select {
		case err := <-done:
			t.Fatalf("the lock was given to two: %v", err)
		default:
		}
	}
	must(t, unix.Flock(a, unix.LOCK_UN))
	must(t, <-done)
}

// Rules go on: after, every, times and what is drawn from a seed are as if nobody had been killed.
func TestTakeoverKeepsRuleCounts(t *testing.T) {
	rules := []string{
		"io error=EIO op=getxattr path=/data/a after=5 every=3 times=20 ttl=1h",
		"io error=ENOSPC op=getxattr path=/data/b p=30% seed=7 ttl=1h",
		"io error=EDQUOT,EIO op=listxattr path=/data/b p=50% seed=9 times=40 ttl=1h",
	}
	run := func(s *served, kill bool) (out []string) {
		for _, name := range []string{"a", "b"} {
			must(t, os.WriteFile(s.under(name), nil, 0o644))
		}
		for i := range 150 {
			for _, name := range []string{"a", "b"} {
				_, err := unix.Getxattr(s.path(name), "user.none", nil)
				out = append(out, fmt.Sprint(err))
			}
			_, err := unix.Listxattr(s.path("b"), nil)
			out = append(out, fmt.Sprint(err))
			if kill && i%20 == 10 {
				s.kill()
			}
		}
		for _, r := range s.rules() {
			out = append(out, fmt.Sprint(r.Name, r.Matched, r.Fired))
		}
		return append(out, s.ask("faults"))
	}
	want := run(serve(t, rules...), false)
	s := serve(t, rules...)
	if got := run(s, true); !slices.Equal(got, want) {
		t.Errorf("after %d kills:\n%v\ninstead of\n%v", s.kills, got, want)
	}
}

// File handles and names of objects that the kernel has forgotten, or knows, stay good.
func TestTakeoverKeepsFileHandles(t *testing.T) {
	s := serve(t)
	must(t, os.MkdirAll(s.under("d/e"), 0o755))
	must(t, os.WriteFile(s.under("d/e/f"), []byte("content"), 0o644))
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, s.path("d/e/f"), 0)
	must(t, err)
	root := s.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	for i := range 4 {
		if i%2 == 1 {
			s.same("names", s.ask("forget"), "dropped")
		}
		s.kill()
		fd, err := unix.OpenByHandleAt(root, h, unix.O_RDONLY|unix.O_CLOEXEC)
		if err != nil {
			t.Fatalf("after %d kills: %v", s.kills, err)
		}
		s.same("by its handle", s.read(fd, 99), "content")
		must(t, unix.Close(fd))
	}
}

// Thousands of objects and open files go on, and so do those of which the kernel's inode was replaced when a rule came.
func TestTakeoverOfManyObjects(t *testing.T) {
	s := serve(t, "io error=EIO op=read path=/data/later/* after=1000000000 ttl=1h")
	const files, held = 1000, 100
	must(t, os.Mkdir(s.under("d"), 0o755))
	must(t, os.Mkdir(s.under("later"), 0o755))
	for i := range files {
		must(t, os.WriteFile(s.under(fmt.Sprintf("d/%d", i)), []byte(fmt.Sprint("content ", i)), 0o644))
	}
	var open []int
	for i := range files {
		var st unix.Stat_t
		must(t, unix.Stat(s.path(fmt.Sprintf("d/%d", i)), &st))
		if i < held {
			open = append(open, s.open(fmt.Sprintf("d/%d", i), unix.O_RDWR))
			// A file that is passed through gets a name that the rule is about: its inode is retired.
			must(t, os.Rename(s.path(fmt.Sprintf("d/%d", i)), s.path(fmt.Sprintf("later/%d", i))))
		}
	}
	for range 2 {
		began := time.Now()
		s.kill()
		t.Logf("taken over and the next one prepared after %v", time.Since(began))
		for i := range files {
			name := fmt.Sprintf("d/%d", i)
			if i < held {
				name = fmt.Sprintf("later/%d", i)
				b := make([]byte, 99)
				n, err := unix.Pread(open[i], b, 0)
				must(t, err)
				s.same("what is open of "+name, string(b[:n]), fmt.Sprint("content ", i))
			}
			b, err := os.ReadFile(s.path(name))
			must(t, err)
			s.same(name, string(b), fmt.Sprint("content ", i))
		}
		if matched := s.rules()[0].Matched; matched == 0 {
			t.Error("the rule sees no read")
		}
	}
}
