package fusefs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// image makes a small file system in a file, mounted in the tests' own mount namespace.
func image(t testing.TB, mkfs []string, megabytes int64, options string) string {
	t.Helper()
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		t.Skip("no ", mkfs[0])
	}
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755)) // for tests that are not root
	img := dir + "/image"
	must(t, os.WriteFile(img, nil, 0o600))
	must(t, os.Truncate(img, megabytes<<20))
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], img)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", mkfs, err, out)
	}
	mnt := dir + "/fs"
	must(t, os.Mkdir(mnt, 0o755))
	// mount(8) sets the loop device up and has it go with the mount.
	if out, err := exec.Command("mount", "-o", "loop"+options, img, mnt).CombinedOutput(); err != nil {
		t.Skipf("cannot mount: %v %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil { // not lazily: the loop device goes with it
			t.Error("unmount the image: ", err)
		}
	})
	return mnt
}

// inImage runs a differential test in two folders of a small file system.
func inImage(t *testing.T, mnt string, f func(s *side)) {
	t.Helper()
	plain, back := mnt+"/p", mnt+"/b"
	for _, d := range []string{plain, back} {
		must(t, os.Mkdir(d, 0o777))
	}
	b := over(t, setup{back: back})
	bothIn(t, &side{TB: t, dir: plain, under: plain, plain: true}, &side{TB: t, dir: b.mnt, under: b.back}, func(s *side) {
		f(s)
		list, err := os.ReadDir(s.under)
		must(t, err)
		for _, e := range list {
			must(t, os.RemoveAll(s.under+"/"+e.Name()))
		}
		must(t, syncFS(mnt)) // freed blocks are free
	})
}

func syncFS(dir string) error { return withFile(dir, unix.O_RDONLY, unix.Syncfs) }

// fill writes until it is refused, and says how many megabytes and blocks it took.
func fill(s *side, fd int) (mb int, err error) {
	buf := make([]byte, 1<<20)
	for {
		n, err := unix.Pwrite(fd, buf, int64(mb)<<20)
		if err != nil || n == 0 {
			return mb, err
		}
		if n < len(buf) {
			continue // the next one tells why
		}
		mb++
	}
}

// An ordinary user's writes do not use the blocks that are reserved for root.
func TestSameReservedBlocks(t *testing.T) {
	mnt := image(t, []string{"mkfs.ext4", "-q", "-m", "30", "-O", "^has_journal"}, 64, "")
	inImage(t, mnt, func(s *side) {
		near := func(mb int) string { return fmt.Sprintf("about %d MB", (mb+2)/5*5) }
		for _, how := range []string{"write", "fallocate", "copy"} {
			s.as(1234, 5678, nil, func() {
				fd := s.open("mine-"+how, unix.O_CREAT|unix.O_RDWR, 0o644)
				switch how {
				case "write":
					mb, err := fill(s, fd)
					s.say("a user writes %s, then %s", near(mb), errnoText(err))
				case "fallocate":
					_ = s.did("allocate 30 MB", unix.Fallocate(fd, 0, 0, 30<<20))
					_ = s.did("allocate 50 MB", unix.Fallocate(fd, 0, 0, 50<<20))
				case "copy":
					if _, err := unix.Pwrite(fd, make([]byte, 1<<20), 0); err != nil {
						s.say("first: %s", errnoText(err))
					}
					mb := 1
					for ; mb < 100; mb++ {
						from, to := int64(0), int64(mb)<<20
						if n, err := unix.CopyFileRange(fd, &from, fd, &to, 1<<20, 0); n < 1<<20 {
							if n > 0 {
								n, err = unix.CopyFileRange(fd, &from, fd, &to, 1<<20, 0)
								s.say("the rest: %d", max(n, 0))
							}
							s.say("copied %s, then %s", near(mb), errnoText(err))
							break
						}
					}
				}
				must(s, unix.Close(fd))
			})
			if how == "write" {
				fd := s.open("roots", unix.O_CREAT|unix.O_RDWR, 0o644)
				mb, err := fill(s, fd)
				s.say("root writes %s more, then %s", near(mb), errnoText(err))
				must(s, unix.Close(fd))
				must(s, os.Remove(s.path("roots")))
			}
			must(s, os.Remove(s.path("mine-"+how)))
			must(s, syncFS(mnt))
		}
	})
}

// Nor do they pass the quota of who owns the file.
func TestSameQuota(t *testing.T) {
	mnt := image(t, []string{"mkfs.ext4", "-q", "-O", "quota,^has_journal"}, 64, ",usrquota")
	const blocks, inodes = 5 << 10, 20 // 5 MiB
	q := struct {                      // struct if_dqblk of include/uapi/linux/quota.h
		hard, soft, space, ihard, isoft, inodes, btime, itime uint64
		valid                                                 uint32
	}{hard: blocks, ihard: inodes, valid: 1 | 4} // QIF_BLIMITS, QIF_ILIMITS
	fs, err := unix.Open(mnt, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	const setUser = 0x800008 << 8 // Q_SETQUOTA for USRQUOTA, which is 0
	_, _, e := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fs), setUser, 1234, uintptr(unsafe.Pointer(&q)), 0, 0)
	must(t, unix.Close(fs))
	if e != 0 {
		t.Skip("no quota: ", e)
	}
	inImage(t, mnt, func(s *side) {
		s.as(1234, 5678, nil, func() {
			fd := s.open("mine", unix.O_CREAT|unix.O_RDWR, 0o666)
			mb, err := fill(s, fd)
			s.say("wrote %d MB, then %s", mb, errnoText(err))
			must(s, unix.Ftruncate(fd, 0))
			_ = s.did("allocate 4 MB", unix.Fallocate(fd, 0, 0, 4<<20))
			_ = s.did("allocate 6 MB", unix.Fallocate(fd, 0, 0, 6<<20))
			must(s, unix.Ftruncate(fd, 0))
			must(s, unix.Close(fd))
			n := 0
			for ; n < 100; n++ {
				if err = openClose(s.path(fmt.Sprint("n", n)), unix.O_CREAT|unix.O_WRONLY, 0o644); err != nil {
					break
				}
			}
			s.say("made %d files, then %s", n, errnoText(err))
			_ = s.did("mkdir", unix.Mkdir(s.path("dir"), 0o755))
			_ = s.did("symlink", unix.Symlink("x", s.path("link")))
		})
		// the quota is the owner's, whoever writes
		s.as(65533, 65533, nil, func() {
			fd := s.open("mine", unix.O_WRONLY, 0)
			mb, err := fill(s, fd)
			s.say("another wrote %d MB, then %s", mb, errnoText(err))
			must(s, unix.Close(fd))
		})
		must(s, os.Truncate(s.path("mine"), 0))
		// root in a container, without CAP_SYS_RESOURCE, is no exception
		fd := s.open("mine", unix.O_WRONLY, 0)
		mb, err := fill(s, fd)
		s.say("root wrote %d MB, then %s", mb, errnoText(err))
		must(s, unix.Close(fd))
		_ = s.did("chown", unix.Chown(s.path("mine"), 1235, -1))
	})
}
