package fusefs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSameXattrs(t *testing.T) {
	both(t, func(s *side) {
		s.make("f", "x", 0o644)
		must(s, unix.Mkdir(s.path("d"), 0o755))
		must(s, unix.Symlink("f", s.path("l")))
		must(s, unix.Mkfifo(s.path("p"), 0o644))
		names := []string{
			"user.a", "user.empty", "trusted.t", "security.s", "security.capability", "system.x", "other.x", "user.", "", "user", "user." + strings.Repeat("n", 250), "user." + strings.Repeat("n", 251),
			"user.\xff", "system.posix_acl_access", "system.posix_acl_default",
		}
		values := map[string][]byte{"none": nil, "short": []byte("v"), "1k": bytes.Repeat([]byte("k"), 1024), "5k": bytes.Repeat([]byte("k"), 5000), "64k": make([]byte, 65536), "more": make([]byte, 65537)}
		for _, f := range []string{"f", "d", "l", "p"} {
			for _, n := range names {
				for _, v := range sorted(values) {
					for _, flags := range []int{0, unix.XATTR_CREATE, unix.XATTR_REPLACE, 4} {
						_ = s.did(fmt.Sprintf("set %s %.20q %s %d", f, n, v, flags), unix.Lsetxattr(s.path(f), n, values[v], flags))
					}
				}
				for _, size := range []int{0, 1, 100, 1024, 65536, 70000} {
					buf := make([]byte, size)
					got, err := unix.Lgetxattr(s.path(f), n, buf)
					s.say("get %s %.20q into %d: %d %.10q %s", f, n, size, got, buf[:max(min(got, size), 0)], errnoText(err))
				}
			}
			for _, size := range []int{0, 1, 20, 4096, 70000} {
				buf := make([]byte, size)
				got, err := unix.Llistxattr(s.path(f), buf)
				s.say("list %s into %d: %d %q %s", f, size, got, buf[:max(min(got, size), 0)], errnoText(err))
			}
			for _, n := range names {
				_ = s.did(fmt.Sprintf("remove %s %.20q", f, n), unix.Lremovexattr(s.path(f), n))
			}
		}
		for _, who := range people[1:] {
			s.as(who.uid, who.gid, who.groups, func() {
				for _, n := range names[:5] {
					_ = s.did(who.name+" sets "+n, unix.Setxattr(s.path("f"), n, []byte("x"), 0))
					_, err := unix.Getxattr(s.path("f"), n, nil)
					_ = s.did(who.name+" gets "+n, err)
				}
			})
		}
	})
}

// Access lists, default ones, and what chmod makes of them.
func TestSameAccessLists(t *testing.T) {
	lists := map[string][]byte{
		"minimal": acl([3]uint32{aclUserObj, 6, nobody}, [3]uint32{aclGroupObj, 4, nobody}, [3]uint32{aclOther, 0, nobody}),
		"named":   acl([3]uint32{aclUserObj, 7, nobody}, [3]uint32{aclUser, 6, 1300}, [3]uint32{aclGroupObj, 4, nobody}, [3]uint32{8, 7, 77}, [3]uint32{aclMask, 5, nobody}, [3]uint32{aclOther, 1, nobody}),
		"no mask": acl([3]uint32{aclUserObj, 7, nobody}, [3]uint32{aclUser, 6, 1300}, [3]uint32{aclGroupObj, 4, nobody}, [3]uint32{aclOther, 1, nobody}),
		"bad":     {1, 2, 3},
		"empty":   {},
	}
	both(t, func(s *side) {
		for _, kind := range []string{"access", "default"} {
			for _, list := range sorted(lists) {
				for _, on := range []string{"file", "dir", "team"} {
					name := fmt.Sprintf("%s-%s-%s", kind, list, on)
					if on == "file" {
						s.make(name, "x", 0o2664)
					} else {
						must(s, unix.Mkdir(s.path(name), 0o755))
					}
					must(s, unix.Chown(s.path(name), 1234, 4242))
					if on == "team" {
						must(s, unix.Chmod(s.path(name), 0o2775))
					}
					s.as(1234, 5678, nil, func() {
						_ = s.did("set "+name, unix.Setxattr(s.path(name), "system.posix_acl_"+kind, lists[list], 0))
					})
					s.look(name)
					for _, who := range people {
						s.as(who.uid, who.gid, who.groups, func() {
							for _, m := range []uint32{unix.R_OK, unix.W_OK, unix.X_OK} {
								_ = s.did(fmt.Sprintf("%s access %o", who.name, m), unix.Access(s.path(name), m))
							}
							_ = s.did(who.name+" opens", openClose(s.path(name), unix.O_RDONLY, 0))
						})
					}
					if on != "file" {
						for _, mask := range []int{0, 0o27, 0o777} {
							withUmask(s, mask, func() {
								in := fmt.Sprintf("%s/u%o-", name, mask)
								_ = s.did("create", openClose(s.path(in+"file"), unix.O_CREAT|unix.O_WRONLY, 0o666))
								_ = s.did("mkdir", unix.Mkdir(s.path(in+"dir"), 0o777))
								_ = s.did("mknod", unix.Mknod(s.path(in+"node"), unix.S_IFREG|0o640, 0))
								_ = s.did("mkfifo", unix.Mkfifo(s.path(in+"fifo"), 0o666))
								_ = s.did("symlink", unix.Symlink("x", s.path(in+"link")))
								fd, err := unix.Open(s.path(name), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o664)
								if s.did("tmpfile", err) == nil {
									_ = s.did("its link", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, s.path(in+"tmp"), unix.AT_SYMLINK_FOLLOW))
									must(s, unix.Close(fd))
								}
							})
						}
					}
					for _, mode := range []uint32{0o640, 0o2770, 0o7} {
						_ = s.did("chmod", unix.Chmod(s.path(name), mode))
						s.look(name)
					}
					_ = s.did("remove", unix.Removexattr(s.path(name), "system.posix_acl_"+kind))
					_ = s.did("chmod", unix.Chmod(s.path(name), 0o755))
				}
			}
		}
	})
}

func TestSameTimes(t *testing.T) {
	bothWays(t, func(s *side) {
		times := func(name string) (st unix.Stat_t) {
			must(s, unix.Lstat(s.path(name), &st))
			return st
		}
		old := []unix.Timespec{{Sec: 1000, Nsec: 123456789}, {Sec: 2000, Nsec: 987654321}}
		set := func(name string) {
			must(s, unix.UtimesNanoAt(unix.AT_FDCWD, s.path(name), old, unix.AT_SYMLINK_NOFOLLOW))
		}
		s.make("f", "content", 0o644)
		must(s, unix.Mkdir(s.path("d"), 0o755))
		must(s, unix.Symlink("f", s.path("l")))
		calls := []struct {
			name string
			call func() error
		}{
			{"nothing", func() error { return nil }},
			{"read", func() error { _, err := os.ReadFile(s.path("f")); return err }},
			{"read noatime", func() error {
				return withFile(s.path("f"), unix.O_RDONLY|unix.O_NOATIME, func(fd int) error { _, err := unix.Read(fd, make([]byte, 9)); return err })
			}},
			{"write", func() error {
				return withFile(s.path("f"), unix.O_WRONLY, func(fd int) error { _, err := unix.Write(fd, []byte("x")); return err })
			}},
			{"write nothing", func() error {
				return withFile(s.path("f"), unix.O_WRONLY, func(fd int) error { _, err := unix.Write(fd, nil); return err })
			}},
			{"truncate same", func() error { return unix.Truncate(s.path("f"), 7) }},
			{"ftruncate same", func() error {
				return withFile(s.path("f"), unix.O_WRONLY, func(fd int) error { return unix.Ftruncate(fd, 7) })
			}},
			{"truncate", func() error { return unix.Truncate(s.path("f"), 6) }},
			{"O_TRUNC", func() error { return openClose(s.path("f"), unix.O_WRONLY|unix.O_TRUNC, 0) }},
			{"O_TRUNC of nothing", func() error { return openClose(s.path("f"), unix.O_WRONLY|unix.O_TRUNC, 0) }},
			{"chmod", func() error { return unix.Chmod(s.path("f"), 0o600) }},
			{"chown", func() error { return unix.Chown(s.path("f"), 5, 5) }},
			{"chown none", func() error { return unix.Chown(s.path("f"), -1, -1) }},
			{"link", func() error { return unix.Link(s.path("f"), s.path("d/f2")) }},
			{"unlink", func() error { return unix.Unlink(s.path("d/f2")) }},
			{"rename", func() error {
				return errors.Join(unix.Rename(s.path("f"), s.path("d/f")), unix.Rename(s.path("d/f"), s.path("f")))
			}},
			{"setxattr", func() error { return unix.Setxattr(s.path("f"), "user.a", []byte("b"), 0) }},
			{"fallocate", func() error {
				return withFile(s.path("f"), unix.O_WRONLY, func(fd int) error { return unix.Fallocate(fd, 0, 0, 10) })
			}},
			{"create", func() error { return openClose(s.path("d/n"), unix.O_CREAT|unix.O_WRONLY, 0o644) }},
			{"mkdir", func() error { return unix.Mkdir(s.path("d/d"), 0o755) }},
			{"readdir", func() error { _, err := os.ReadDir(s.path("d")); return err }},
			{"readlink", func() error { _, err := os.Readlink(s.path("l")); return err }},
			{"mmap", func() error {
				return withFile(s.path("f"), unix.O_RDWR, func(fd int) error {
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
			}},
			{"utimes omit", func() error {
				return unix.UtimesNanoAt(unix.AT_FDCWD, s.path("f"), []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}, 0)
			}},
			{"utimes atime", func() error {
				return unix.UtimesNanoAt(unix.AT_FDCWD, s.path("f"), []unix.Timespec{{Sec: 77, Nsec: 88}, {Nsec: unix.UTIME_OMIT}}, 0)
			}},
		}
		for _, c := range calls {
			before := map[string]unix.Stat_t{}
			for _, n := range []string{"f", "d", "l"} {
				set(n)
				before[n] = times(n)
			}
			clockTick()
			_ = s.did(c.name, c.call())
			for _, n := range []string{"f", "d", "l"} {
				now, b := times(n), before[n]
				s.say("  %s: atime changed %v, mtime %v, ctime %v; kept %v %v", n, now.Atim != b.Atim, now.Mtim != b.Mtim, now.Ctim != b.Ctim, now.Atim == old[0], now.Mtim == old[1])
			}
		}
	})
}

// clockTick waits until the clock of file times has moved on (a jiffy).
func clockTick() {
	var a, b unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &a)
	for b = a; b == a; {
		_ = unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &b)
	}
}

// What a program is told of an object by any way is the same number.
func TestSameIdentity(t *testing.T) {
	bothWays(t, func(s *side) {
		s.make("f", "content", 0o644)
		must(s, unix.Mkdir(s.path("d"), 0o755))
		must(s, unix.Link(s.path("f"), s.path("d/hard")))
		must(s, unix.Symlink("f", s.path("l")))
		must(s, unix.Mknod(s.path("c"), unix.S_IFCHR|0o600, int(unix.Mkdev(5, 6))))
		for _, n := range []string{"f", "d", "d/hard", "l", "c", "."} {
			var here, under unix.Statx_t
			mask := unix.STATX_BASIC_STATS | unix.STATX_BTIME
			must(s, unix.Statx(unix.AT_FDCWD, s.path(n), unix.AT_SYMLINK_NOFOLLOW, mask, &here))
			must(s, unix.Statx(unix.AT_FDCWD, s.under+"/"+n, unix.AT_SYMLINK_NOFOLLOW, mask, &under))
			s.say("%s: same ino %v btime %v times %v blocks %v blksize %v size %v rdev %v links %v mask %x", n, here.Ino == under.Ino, here.Btime == under.Btime,
				here.Atime == under.Atime && here.Mtime == under.Mtime && here.Ctime == under.Ctime, here.Blocks == under.Blocks, here.Blksize == under.Blksize, here.Size == under.Size,
				here.Rdev_minor == under.Rdev_minor && here.Rdev_major == under.Rdev_major, here.Nlink == under.Nlink, here.Mask)
		}
		dir := s.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		for _, e := range entries(s, dir, 4096) {
			var st unix.Stat_t
			must(s, unix.Lstat(s.under+"/"+e.name, &st))
			if e.name != ".." {
				s.say("entry %s: same ino %v type %d", e.name, st.Ino == e.ino, e.kind)
			}
		}
		// maps and locks name it, too
		fd := s.open("f", unix.O_RDWR, 0)
		var st unix.Stat_t
		must(s, unix.Fstat(fd, &st))
		mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		must(s, err)
		defer func() { _ = unix.Munmap(mem) }()
		maps, err := os.ReadFile("/proc/self/maps")
		must(s, err)
		for _, line := range strings.Split(string(maps), "\n") {
			if strings.Contains(line, s.dir+"/f") {
				s.say("map: same ino %v", strings.Contains(line, fmt.Sprintf(" %d ", st.Ino)))
			}
		}
		var fs unix.Statfs_t
		var below unix.Statfs_t
		must(s, unix.Statfs(s.dir, &fs))
		must(s, unix.Statfs(s.under, &below))
		s.say("statfs: %v %v %v %v %v", fs.Bsize == below.Bsize, fs.Frsize == below.Frsize, fs.Namelen == below.Namelen, fs.Blocks == below.Blocks, fs.Files == below.Files)
	})
}

// Limits of names, paths, links, sizes and of the process.
func TestSameLimits(t *testing.T) {
	bothWays(t, func(s *side) {
		// far deeper than PATH_MAX, one level at a time
		name := strings.Repeat("d", 255)
		at, err := unix.Open(s.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(s, err)
		var chain []int
		for i := range 40 {
			must(s, unix.Mkdirat(at, name, 0o755))
			next, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			must(s, err)
			chain = append(chain, at)
			at = next
			fd, err := unix.Openat(at, "file", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
			must(s, err)
			_, err = unix.Write(fd, []byte(itoa(i)))
			must(s, err)
			must(s, unix.Close(fd))
		}
		_ = s.did("link deep down", unix.Linkat(at, "file", at, "again", 0))
		_ = s.did("rename deep down", unix.Renameat(at, "again", at, "moved"))
		_ = s.did("rename to the top", unix.Renameat(at, "moved", chain[0], "top"))
		var st unix.Stat_t
		must(s, unix.Fstatat(at, "file", &st, 0))
		s.say("deep: links %d size %d", st.Nlink, st.Size)
		must(s, unix.Close(at))
		for i := len(chain) - 1; i >= 0; i-- { // and away again
			sub, err := unix.Openat(chain[i], name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			must(s, err)
			must(s, unix.Unlinkat(sub, "file", 0))
			must(s, unix.Close(sub))
			must(s, unix.Unlinkat(chain[i], name, unix.AT_REMOVEDIR))
			must(s, unix.Close(chain[i]))
		}
		// a program that runs cannot be written
		sleep, err := exec.LookPath("sleep")
		must(s, err)
		program, err := os.ReadFile(sleep)
		must(s, err)
		s.make("prog", string(program), 0o755)
		cmd := exec.Command(s.path("prog"), "100")
		must(s, cmd.Start())
		_ = s.did("write a program that runs", openClose(s.path("prog"), unix.O_WRONLY, 0))
		_ = s.did("truncate it", unix.Truncate(s.path("prog"), 1))
		must(s, cmd.Process.Kill())
		_ = cmd.Wait() // killed
		fd := s.open("prog", unix.O_WRONLY, 0)
		err = exec.Command(s.path("prog"), "0").Run()
		_ = s.did("run what is open for writing", err)
		must(s, unix.Close(fd))
		s.make("script", "#!/bin/sh\nexit 3\n", 0o644)
		_ = s.did("run what is not executable", exec.Command(s.path("script")).Run())
		must(s, unix.Chmod(s.path("script"), 0o755))
		_ = s.did("run a script", exec.Command(s.path("script")).Run())
		// RLIMIT_FSIZE
		signal.Ignore(syscall.SIGXFSZ)
		defer signal.Reset(syscall.SIGXFSZ)
		var had unix.Rlimit
		must(s, unix.Getrlimit(unix.RLIMIT_FSIZE, &had))
		must(s, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1000, Max: had.Max}))
		fd = s.open("limited", unix.O_CREAT|unix.O_RDWR, 0o644)
		n, err := unix.Pwrite(fd, make([]byte, 600), 600)
		s.say("write across the limit: %d %s", n, errnoText(err))
		n, err = unix.Pwrite(fd, make([]byte, 600), 1000)
		s.say("write at the limit: %d %s", n, errnoText(err))
		_ = s.did("ftruncate past it", unix.Ftruncate(fd, 1001))
		_ = s.did("truncate past it", unix.Truncate(s.path("limited"), 5000))
		_ = s.did("fallocate past it", unix.Fallocate(fd, 0, 0, 2000))
		must(s, unix.Setrlimit(unix.RLIMIT_FSIZE, &had))
		s.look("limited")
	})
}
