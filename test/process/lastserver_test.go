package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openKind is something that a target has open, with what it does to it while it is grafted, and what it has to find when the layer
// is off. dir is its own, of which the test sees what lies below the layer.
type openKind struct {
	name          string
	before, while func(h *holder, dir string)
	after         func(t *testing.T, h *holder, dir string)
}

var openKinds = []openKind{
	{
		name: "a file that was opened before",
		before: func(h *holder, dir string) {
			h.ok("open adopted %s/f rdwr,creat", dir)
			h.ok("write adopted 0123456789")
			h.ok("lseek adopted 2")
		},
		while: func(h *holder, _ string) { h.is("ok 23", "read adopted 2") },
		after: func(_ *testing.T, h *holder, _ string) { h.is("ok 456789", "read adopted 100") },
	},
	{
		name: "an unlinked file",
		while: func(h *holder, dir string) {
			h.ok("open unlinked %s/f rdwr,creat", dir)
			h.ok("write unlinked unlinked")
			h.ok("unlink %s/f", dir)
		},
		after: func(_ *testing.T, h *holder, _ string) {
			h.is("ok unlinked", "pread unlinked 0 100")
			h.ok("write unlinked +more")
			h.is("ok unlinked+more", "pread unlinked 0 100")
		},
	},
	{
		name: "a file without a name",
		while: func(h *holder, dir string) {
			h.ok("open tmp %s tmpfile,rdwr", dir)
			h.ok("write tmp nameless")
		},
		after: func(_ *testing.T, h *holder, _ string) { h.is("ok nameless", "pread tmp 0 100") },
	},
	{
		name: "a renamed file",
		while: func(h *holder, dir string) {
			h.ok("open renamed %s/a rdwr,creat", dir)
			h.ok("rename %s/a %s/b", dir, dir)
			h.ok("open other %s/a rdwr,creat", dir)
			h.ok("write other other")
		},
		after: func(t *testing.T, h *holder, dir string) {
			h.ok("write renamed renamed")
			content(t, dir+"/b", "renamed")
			content(t, dir+"/a", "other")
		},
	},
	{
		name: "a file in a directory that was removed",
		while: func(h *holder, dir string) {
			h.ok("mkdir %s/gone", dir)
			h.ok("open ingone %s/gone/f rdwr,creat", dir)
			h.ok("write ingone there")
			h.ok("open gone %s/gone rdonly,directory", dir)
			h.ok("unlink %s/gone/f", dir)
			h.inside("rmdir", dir+"/gone")
		},
		after: func(_ *testing.T, h *holder, _ string) {
			h.is("ok there", "pread ingone 0 100")
			h.is("ENOENT", "readdir gone")
		},
	},
	{
		name: "a directory that is being read",
		while: func(h *holder, dir string) {
			for i := range 40 {
				h.ok("open entry %s/entry%02d rdwr,creat", dir, i)
				h.ok("close entry")
			}
			h.ok("open reading %s rdonly,directory", dir)
			h.t.Logf("read before: %s", h.ok("readdir reading"))
		},
		after: func(t *testing.T, h *holder, _ string) {
			var rest []string
			for {
				_, names, _ := strings.Cut(h.do("readdir reading"), " ")
				if names == "" {
					break
				}
				rest = append(rest, strings.Split(names, ",")...)
			}
			slices.Sort(rest)
			if n := len(rest); n == 0 || n >= 40 || len(slices.Compact(rest)) != n {
				t.Errorf("the rest of the directory: %d names, %v", n, rest)
			}
		},
	},
	{
		name: "an append",
		while: func(h *holder, dir string) {
			h.ok("open log %s/log wronly,append,creat", dir)
			h.ok("write log one")
		},
		after: func(t *testing.T, h *holder, dir string) {
			h.ok("write log two")
			content(t, dir+"/log", "onetwo")
		},
	},
	{
		name: "a shared map that was written to",
		before: func(h *holder, dir string) {
			h.ok("open mapped %s/f rdwr,creat", dir)
			h.ok("write mapped 0123456789")
			h.ok("mmap shared mapped 10 shared")
		},
		while: func(h *holder, _ string) { h.ok("poke shared 2 XY") },
		after: func(t *testing.T, h *holder, dir string) {
			h.is("ok 01XY456789", "peek shared 0 10")
			h.is("ok 01XY456789", "pread mapped 0 10")
			h.ok("poke shared 5 Z")
			content(t, dir+"/f", "01XY4Z6789")
		},
	},
	{
		name: "a private map",
		while: func(h *holder, dir string) {
			h.ok("open source %s/f rdwr,creat", dir)
			h.ok("write source 0123456789")
			h.ok("mmap private source 10 private")
			h.ok("poke private 1 own")
		},
		after: func(t *testing.T, h *holder, dir string) {
			h.is("ok 0own456789", "peek private 0 10")
			content(t, dir+"/f", "0123456789")
		},
	},
	{
		name: "locks",
		before: func(h *holder, dir string) {
			h.ok("open before %s/before rdwr,creat", dir)
			h.ok("write before 0123456789")
		},
		while: func(h *holder, dir string) {
			h.ok("open after %s/after rdwr,creat", dir)
			for _, f := range []string{"before", "after"} {
				h.ok("flock %s", f)
				h.ok("setlk %s 2 5", f)
				h.ok("rdlk %s 20 5", f)
			}
		},
		after: func(t *testing.T, h *holder, dir string) {
			for _, f := range []string{"before", "after"} {
				others, err := os.OpenFile(dir+"/"+f, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				if err := unix.Flock(int(others.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != unix.EWOULDBLOCK {
					t.Errorf("%s: its flock is not held: %v", f, err)
				}
				for _, l := range []unix.Flock_t{{Type: unix.F_WRLCK, Start: 2, Len: 5}, {Type: unix.F_RDLCK, Start: 20, Len: 5}} {
					is := unix.Flock_t{Type: unix.F_WRLCK, Start: l.Start, Len: l.Len}
					if err := unix.FcntlFlock(others.Fd(), unix.F_GETLK, &is); err != nil || is.Type != l.Type || is.Start != l.Start || is.Len != l.Len || int(is.Pid) != h.pid() {
						t.Errorf("%s: %+v, %v; the target (%d) had %+v", f, is, err, h.pid(), l)
					}
				}
				h.ok("unlk %s", f)
				h.ok("close %s", f)
				for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the dead server's holder is about to end
					err := unix.Flock(int(others.Fd()), unix.LOCK_EX|unix.LOCK_NB)
					if err == nil {
						break
					}
					if time.Now().After(end) {
						t.Errorf("%s: its flock is held after the close: %v", f, err)
						break
					}
				}
				all := unix.Flock_t{Type: unix.F_WRLCK}
				if err := unix.FcntlFlock(others.Fd(), unix.F_SETLK, &all); err != nil {
					t.Errorf("%s: its locks are held after the unlock: %v", f, err)
				}
				if err := others.Close(); err != nil {
					t.Error(err)
				}
			}
		},
	},
	{
		name: "two files of one number",
		before: func(h *holder, dir string) {
			for _, fs := range []string{"one", "two"} {
				point := filepath.Join(dir, fs)
				if err := os.Mkdir(point, 0o755); err != nil {
					h.t.Fatal(err)
				}
				h.inside("mount", "-t", "tmpfs", "tmpfs", point)
				h.ok("open %s %s/f rdwr,creat", fs, point) // a tmpfs numbers its files by itself (Linux 5.9)
				h.ok("write %s %s", fs, fs)
			}
		},
		while: func(h *holder, dir string) { // the other one is the only original with that number then
			h.ok("close one")
			h.ok("open one %s/one/f rdwr", dir)
		},
		after: func(_ *testing.T, h *holder, dir string) {
			for _, fs := range []string{"two", "one"} {
				h.is("ok "+fs, "pread %s 0 100", fs)
				h.ok("close %s", fs)
				h.inside("umount", filepath.Join(dir, fs))
			}
		},
	},
	{
		name:  "the working directory",
		while: func(h *holder, dir string) { h.ok("chdir %s", dir) },
		after: func(_ *testing.T, h *holder, dir string) {
			h.is("ok "+dir, "getcwd")
			h.ok("open cwd made rdwr,creat")
			h.ok("stat %s/made", dir)
		},
	},
}

func content(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s holds %q, %v", path, b, err)
	}
}

// Servers die again and again: the last one has no rules, and the layer comes off. All that the target has open is what it was, of
// every kind, and locks are held by their owners without a gap.
func TestLayerOfServersThatKeepDying(t *testing.T) {
	kernels(t, func(t *testing.T, env []string) {
		r := newRig(t)
		r.env = env
		var gaps atomic.Int64
		r.keptOpen(openKinds, func(h *holder) func() {
			return r.lockOnLayer(h, &gaps)
		}, func() {
			for n := 1; n <= 3; n++ { // more of them are too many
				r.replaced(syscall.SIGSEGV, n)
			}
			r.killServer(syscall.SIGSEGV)
		})
		if n := gaps.Load(); n != 0 {
			t.Errorf("a lock was free %d times", n)
		}
	})
}

// No server can follow the one that died: the layer comes off without one. What has no path any more is found by what the dead one had open.
func TestLayerWithoutAServer(t *testing.T) {
	kernels(t, func(t *testing.T, env []string) {
		r := newRig(t)
		r.env = append(slices.Clone(env), noTakeover...)
		var gaps atomic.Int64
		r.keptOpen(openKinds, func(h *holder) func() { return r.lockOnLayer(h, &gaps) }, func() { r.killServer(syscall.SIGKILL) })
		if n := gaps.Load(); n != 0 {
			t.Errorf("a lock was free %d times", n)
		}
	})
}

// lockOnLayer has a target take locks, and watches them until end.
func (r *rig) lockOnLayer(h *holder, gaps *atomic.Int64) (end func()) {
	flock, posix := r.write("flocked", "x"), r.write("locked", "x")
	h.ok("open flocked %s rdwr", flock)
	h.ok("flock flocked")
	h.ok("open locked %s rdwr", posix)
	h.ok("setlk locked 0 1")
	return watchLocks(r.t, flock, posix, gaps)
}

// keptOpen has a target open something of each kind, kills servers, and looks at everything when the layer is off. locked takes
// locks on the layer, and gives what ends the watch over them.
func (r *rig) keptOpen(kinds []openKind, locked func(h *holder) func(), kill func()) {
	t := r.t.(*testing.T)
	h := r.start()
	dirs := map[string]string{}
	for _, k := range kinds {
		dir := filepath.Join(r.data, strings.ReplaceAll(k.name, " ", "-"))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dirs[k.name] = dir; k.before != nil {
			k.before(h, dir)
		}
	}
	r.inject(h, r.data, "io error=EIO op=read+write+mmap-read p=0 ttl=5m") // it can match: nothing is passed through
	for _, k := range kinds {
		k.while(h, dirs[k.name])
	}
	endWatch := func() {}
	if locked != nil {
		endWatch = locked(h)
	}
	kill()
	r.awaitOff(time.Minute, "still grafted")
	endWatch()
	places := []string{r.data}
	for _, dir := range dirs {
		places = append(places, "/"+filepath.Base(dir)) // of a mount that is off, paths begin at its root
	}
	for _, place := range places {
		if left := onLayer(t, h.pid(), place); left != "" {
			t.Errorf("on a layer still: %s", left)
		}
	}
	for _, k := range kinds {
		t.Run(strings.ReplaceAll(k.name, " ", "_"), func(t *testing.T) {
			was := h.t
			h.t = t
			defer func() { h.t = was }()
			k.after(t, h, dirs[k.name])
		})
	}
}

// watchLocks asks again and again, below the layer, whether the locks are held, and counts when one is not.
func watchLocks(t testing.TB, flocked, locked string, gaps *atomic.Int64) (end func()) {
	t.Helper()
	var files [2]*os.File
	for i, name := range []string{flocked, locked} {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		files[i] = f
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				if n < 2 {
					done <- fmt.Errorf("looked %d times", n)
				}
				close(done)
				return
			case <-time.After(time.Millisecond):
			}
			if unix.Flock(int(files[0].Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
				gaps.Add(1)
				_ = unix.Flock(int(files[0].Fd()), unix.LOCK_UN) // it was just taken
			}
			lock := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
			if err := unix.FcntlFlock(files[1].Fd(), unix.F_OFD_GETLK, &lock); err != nil {
				done <- err
				return
			}
			if lock.Type == unix.F_UNLCK {
				gaps.Add(1)
			}
		}
	}()
	return func() {
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, f := range files {
			_ = f.Close()
		}
	}
}
