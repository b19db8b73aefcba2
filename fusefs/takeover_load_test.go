package fusefs_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var takeoverKills = flag.Int("takeovers", 20, "how often TestTakeoverUnderLoad kills the server")

// Programs that do everything at once on a layer whose server is killed at any moment see what those see that do the same
// in a plain directory.
func TestTakeoverUnderLoad(t *testing.T) {
	// No rule fires. Because of this one what lies under /data/served is served by the layer; the rest is passed through.
	s := serve(t, "io error=EIO op=read+write+fsync path=/data/served/** after=1000000000 ttl=1h")
	twin := t.TempDir()
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var actors []*twinActor
	for i := range 6 {
		dir := fmt.Sprintf("passed%d", i)
		if i%2 == 0 {
			dir = fmt.Sprintf("served/%d", i)
		}
		a := &twinActor{TB: t, rnd: rand.New(rand.NewPCG(seed, uint64(i))), dirs: [2]string{s.path(dir), filepath.Join(twin, dir)}}
		must(t, os.MkdirAll(s.under(dir), 0o755))
		must(t, os.MkdirAll(a.dirs[1], 0o755))
		actors = append(actors, a)
		wg.Go(func() {
			for !stop.Load() && !a.failed.Load() {
				a.step()
			}
		})
	}
	rnd := rand.New(rand.NewPCG(seed, 99))
	for range *takeoverKills {
		time.Sleep(time.Duration(rnd.IntN(20_000)) * time.Microsecond) // the moment is any
		s.kill()
	}
	stop.Store(true)
	wg.Wait()
	steps := 0
	for _, a := range actors {
		a.closeAll()
		a.compareTrees()
		steps += a.steps
	}
	t.Logf("%d kills, %d calls", s.kills, steps)
}

// twinActor makes the same calls in two directories, and compares what comes of them.
type twinActor struct {
	testing.TB
	rnd    *rand.Rand
	dirs   [2]string
	files  []twinFile
	steps  int
	failed atomic.Bool
	done   []string // what it has done, the latest last
}

type twinFile struct {
	name string
	fd   [2]int
}

// both makes a call in both directories. The call says in words what came of it.
func (a *twinActor) both(what string, call func(side int) string) {
	a.steps++
	a.done = append(a.done, what)
	got, want := call(0), call(1)
	if got != want && !a.failed.Swap(true) {
		a.Errorf("%s: %s instead of %s; before it: %s", what, got, want, strings.Join(a.done[max(0, len(a.done)-12):], "; "))
	}
}

func (a *twinActor) name() string { return fmt.Sprintf("n%d", a.rnd.IntN(7)) }

func (a *twinActor) step() {
	if len(a.files) > 0 && a.rnd.IntN(3) > 0 {
		a.onFile()
		return
	}
	a.onName()
}

func (a *twinActor) onName() {
	x, y := a.name(), a.name()
	at := func(side int, name string) string { return filepath.Join(a.dirs[side], name) }
	say := func(err error) string { return fmt.Sprint(err) }
	switch a.rnd.IntN(10) {
	case 0, 1, 2:
		a.open(x)
	case 3:
		flags := []uint{0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[a.rnd.IntN(3)]
		a.both(fmt.Sprintf("rename %s %s %d", x, y, flags), func(side int) string {
			return say(unix.Renameat2(unix.AT_FDCWD, at(side, x), unix.AT_FDCWD, at(side, y), flags))
		})
	case 4:
		a.both("unlink "+x, func(side int) string { return say(unix.Unlink(at(side, x))) })
	case 5:
		a.both("link "+x+" "+y, func(side int) string { return say(unix.Link(at(side, x), at(side, y))) })
	case 6:
		a.both("symlink "+x, func(side int) string { return say(unix.Symlink("to-"+y, at(side, x))) })
	case 7:
		a.both("mkdir "+x, func(side int) string { return say(unix.Mkdir(at(side, x), 0o755)) })
	case 8:
		a.both("rmdir "+x, func(side int) string { return say(unix.Rmdir(at(side, x))) })
	case 9:
		a.both("list", func(side int) string {
			list, err := os.ReadDir(a.dirs[side])
			var names []string
			for _, e := range list {
				names = append(names, e.Name()+" "+e.Type().String())
			}
			return fmt.Sprint(names, err)
		})
	}
}

func (a *twinActor) open(name string) {
	flags := unix.O_RDWR | unix.O_CLOEXEC
	for _, f := range []int{unix.O_CREAT, unix.O_EXCL | unix.O_CREAT, unix.O_TRUNC, unix.O_APPEND, unix.O_NOFOLLOW} {
		if a.rnd.IntN(2) == 0 {
			flags |= f
		}
	}
	f := twinFile{name: name, fd: [2]int{-1, -1}}
	a.both(fmt.Sprintf("open %s %#x", name, flags), func(side int) string {
		fd, err := unix.Open(filepath.Join(a.dirs[side], name), flags|unix.O_NOFOLLOW, 0o644)
		f.fd[side] = fd
		return fmt.Sprint(err)
	})
	if f.fd[0] < 0 || f.fd[1] < 0 {
		return
	}
	if a.files = append(a.files, f); len(a.files) > 8 {
		a.close(0)
	}
}

func (a *twinActor) close(i int) {
	f := a.files[i]
	a.files = slices.Delete(a.files, i, i+1)
	a.both("close "+f.name, func(side int) string {
		// The kernel tells a file system of the last close of a file after close(2) has returned (fuse_file_put in
		// fs/fuse/file.c), so that locks of the file are let go of some time later.
		all := unix.Flock_t{Type: unix.F_UNLCK}
		return fmt.Sprint(unix.FcntlFlock(uintptr(f.fd[side]), unix.F_OFD_SETLK, &all), unix.Close(f.fd[side]))
	})
}

func (a *twinActor) closeAll() {
	for len(a.files) > 0 {
		a.close(0)
	}
}

func (a *twinActor) onFile() {
	i := a.rnd.IntN(len(a.files))
	f := a.files[i]
	at, size := a.rnd.Int64N(9000), a.rnd.IntN(6000)
	data := []byte(strings.Repeat(fmt.Sprintf("%d.", a.steps), size/2+1)[:size])
	result := func(n int, err error) string { return fmt.Sprint(n, err) }
	what := fmt.Sprintf("%s, open as the %dth, %d+%d: ", f.name, i, at, size)
	switch a.rnd.IntN(12) {
	case 0:
		a.close(i)
	case 1, 2:
		a.both(what+"write", func(side int) string { return result(unix.Write(f.fd[side], data)) })
	case 3:
		a.both(what+"pwrite", func(side int) string { return result(unix.Pwrite(f.fd[side], data, at)) })
	case 4, 5:
		a.both(what+"read", func(side int) string {
			b := make([]byte, size)
			n, err := unix.Read(f.fd[side], b)
			return fmt.Sprint(n, err, string(b[:max(n, 0)]))
		})
	case 6:
		a.both(what+"pread", func(side int) string {
			b := make([]byte, size)
			n, err := unix.Pread(f.fd[side], b, at)
			return fmt.Sprint(n, err, string(b[:max(n, 0)]))
		})
	case 7:
		a.both(what+"truncate", func(side int) string { return fmt.Sprint(unix.Ftruncate(f.fd[side], at)) })
	case 8:
		a.both(what+"stat", func(side int) string {
			var st unix.Stat_t
			err := unix.Fstat(f.fd[side], &st)
			return fmt.Sprint(st.Size, st.Nlink, st.Mode, err)
		})
	case 9:
		a.both(what+"seek", func(side int) string {
			n, err := unix.Seek(f.fd[side], at, []int{unix.SEEK_SET, unix.SEEK_END}[size%2])
			return fmt.Sprint(n, err)
		})
	case 10:
		typ := []int16{unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK}[a.rnd.IntN(3)]
		cmd := []int{unix.F_OFD_SETLK, unix.F_SETLK, unix.F_OFD_GETLK}[a.rnd.IntN(3)]
		a.both(fmt.Sprintf("%slock %d by %d", what, typ, cmd), func(side int) string {
			l := unix.Flock_t{Type: typ, Start: at, Len: int64(size)}
			err := unix.FcntlFlock(uintptr(f.fd[side]), cmd, &l)
			if cmd != unix.F_OFD_GETLK {
				return fmt.Sprint(err)
			}
			return fmt.Sprint(l.Type == unix.F_UNLCK, err) // which of several is in the way is not said
		})
	case 11:
		a.both(what+"fsync", func(side int) string { return fmt.Sprint(unix.Fsync(f.fd[side])) })
	}
}

// compareTrees compares what is there in the end.
func (a *twinActor) compareTrees() {
	var trees [2]string
	for side, dir := range a.dirs {
		var out strings.Builder
		err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			to, _ := os.Readlink(p)
			fmt.Fprintln(&out, strings.TrimPrefix(p, dir), d.Type(), to)
			if d.Type().IsRegular() {
				b, err := os.ReadFile(p)
				fmt.Fprintln(&out, string(b), err)
			}
			return nil
		})
		must(a, err)
		trees[side] = out.String()
	}
	if trees[0] != trees[1] {
		a.Errorf("in the end there is\n%.2000s\ninstead of\n%.2000s", trees[0], trees[1])
	}
}
