package fusefs_test

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// elsewhere runs f on a thread with a mount namespace of its own, which lasts until the end of the test.
func elsewhere(t testing.TB, f func()) {
	t.Helper()
	ready, end := make(chan struct{}), make(chan struct{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			f()
		} else {
			t.Error(err)
		}
		close(ready)
		<-end
	}()
	<-ready
	t.Cleanup(func() { close(end); <-gone })
}

// What is mounted in the container on a name below the layer makes the name busy there.
func TestMountPointsAreBusy(t *testing.T) {
	back := t.TempDir()
	for _, d := range []string{"m", "d"} {
		must(t, os.Mkdir(back+"/"+d, 0o755))
	}
	for _, f := range []string{"f", "g"} {
		must(t, os.WriteFile(back+"/"+f, nil, 0o644))
	}
	calls := []struct {
		name string
		call func(dir string) error
	}{
		{"rmdir", func(dir string) error { return unix.Rmdir(dir + "/m") }},
		{"unlink", func(dir string) error { return unix.Unlink(dir + "/f") }},
		{"unlink directory", func(dir string) error { return unix.Unlink(dir + "/m") }},
		{"rename", func(dir string) error { return unix.Rename(dir+"/m", dir+"/n") }},
		{"rename onto", func(dir string) error { return unix.Rename(dir+"/d", dir+"/m") }},
		{"rename file onto", func(dir string) error { return unix.Rename(dir+"/g", dir+"/f") }},
		{"rename into", func(dir string) error { return unix.Rename(dir+"/g", dir+"/m/g") }},
		{"link into", func(dir string) error { return unix.Link(dir+"/g", dir+"/m/g") }},
		{"exchange", func(dir string) error {
			return unix.Renameat2(unix.AT_FDCWD, dir+"/d", unix.AT_FDCWD, dir+"/m", unix.RENAME_EXCHANGE)
		}},
	}
	var want []string
	var root int
	elsewhere(t, func() {
		must(t, unix.Mount("tmpfs", back+"/m", "tmpfs", 0, "size=1m"))
		must(t, os.WriteFile(back+"/m/inside", []byte("x"), 0o644))
		must(t, unix.Mount(back+"/g", back+"/f", "", unix.MS_BIND, ""))
		for _, c := range calls {
			want = append(want, c.name+": "+errnoText(c.call(back)))
		}
		var err error
		root, err = unix.Open(back, unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
	})
	b := over(t, setup{back: back, root: root})
	var have []string
	for _, c := range calls {
		have = append(have, c.name+": "+errnoText(c.call(b.mnt)))
	}
	compare(t, "", want, have)
	if got, err := os.ReadFile(b.path("m/inside")); err != nil || string(got) != "x" {
		t.Errorf("the mount was taken off: %q, %v", got, err)
	}
}

// Whether a read changes the access time is decided by the mount that lies under the layer.
func TestSameAccessTimeOptions(t *testing.T) {
	for name, flags := range map[string]uintptr{"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME} {
		for _, direct := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " direct ", direct), func(t *testing.T) {
				top := t.TempDir()
				for _, d := range []string{"/p", "/b"} {
					must(t, os.Mkdir(top+d, 0o755))
				}
				must(t, unix.Mount(top, top, "", unix.MS_BIND, ""))
				t.Cleanup(func() { _ = unix.Unmount(top, unix.MNT_DETACH) })
				must(t, unix.Mount("", top, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""))
				b := over(t, setup{back: top + "/b", direct: direct})
				bothIn(t, &side{TB: t, dir: top + "/p", under: top + "/p", plain: true}, &side{TB: t, dir: b.mnt, under: b.back}, func(s *side) {
					s.make("f", "content", 0o644)
					must(s, unix.Mkdir(s.path("d"), 0o755))
					must(s, unix.Symlink("f", s.path("l")))
					for _, age := range []int64{10, 100000} { // relatime updates once a day
						for _, n := range []string{"f", "d", "l"} {
							at := []unix.Timespec{unix.NsecToTimespec(time.Now().Add(-time.Duration(age) * time.Second).UnixNano()), {Sec: 1}}
							must(s, unix.UtimesNanoAt(unix.AT_FDCWD, s.path(n), at, unix.AT_SYMLINK_NOFOLLOW))
							switch n {
							case "f":
								_, err := os.ReadFile(s.path(n))
								must(s, err)
							case "d":
								_, err := os.ReadDir(s.path(n))
								must(s, err)
							case "l":
								_, err := os.Readlink(s.path(n))
								must(s, err)
							}
							var st, below unix.Stat_t
							must(s, unix.Lstat(s.path(n), &st))
							must(s, unix.Lstat(s.under+"/"+n, &below))
							s.say("%s, %d s old: changed %v, below %v", n, age, st.Atim != at[0], below.Atim != at[0])
						}
					}
				})
			})
		}
	}
}
