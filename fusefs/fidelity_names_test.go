package fusefs_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// people are who makes the calls: root, an owner, a member of a group by a
// supplementary group, and a stranger.
var people = []struct {
	name     string
	uid, gid int
	groups   []int
}{
	{"root", 0, 0, nil},
	{"owner", 1234, 5678, nil},
	{"member", 1300, 1300, []int{77, 4242}},
	{"stranger", 65533, 65533, nil},
}

// badNames are paths that every call refuses in a way of its own.
func badNames(s *side) []string {
	long := strings.Repeat("n", 255)
	deep := strings.Repeat("d/", 2047)
	return []string{
		"absent", "absent/x", "file/x", "loop", "loop/x", "dangling", "dangling/x", "", "dir/", "file/", "absent/", ".", "..", "dir/.", "dir/..", long, long + "n", deep + "x", deep + "xx",
		"closed/x", "sticky/theirs", "full", "\xff\xfe",
	}
}

// furnish makes something of every kind.
func furnish(s *side) {
	s.make("file", "content", 0o640)
	must(s, unix.Chown(s.path("file"), 1234, 4242))
	must(s, unix.Mkdir(s.path("dir"), 0o755))
	must(s, unix.Chown(s.path("dir"), 1234, 4242))
	must(s, unix.Mkdir(s.path("full"), 0o755))
	s.make("full/x", "x", 0o600)
	must(s, unix.Symlink("loop", s.path("loop")))
	must(s, unix.Symlink("nowhere", s.path("dangling")))
	must(s, unix.Symlink("file", s.path("link")))
	must(s, unix.Symlink("dir", s.path("dirlink")))
	must(s, unix.Mkfifo(s.path("fifo"), 0o666))
	must(s, unix.Mkdir(s.path("closed"), 0o700))
	must(s, unix.Mkdir(s.path("sticky"), 0o755))
	s.make("sticky/theirs", "x", 0o666)
	must(s, unix.Chown(s.path("sticky/theirs"), 1, 1))
	must(s, unix.Chmod(s.path("sticky"), 0o1777))
	must(s, unix.Mkdir(s.path("team"), 0o755))
	must(s, unix.Chown(s.path("team"), 0, 4242))
	must(s, unix.Chmod(s.path("team"), 0o2775))
}

// Every call that takes a name, with each kind of object and each way to be refused, by different people.
func TestSameNamespaceCalls(t *testing.T) {
	calls := []struct {
		name string
		call func(p string) error
	}{
		{"open r", func(p string) error { return openClose(p, unix.O_RDONLY|unix.O_NONBLOCK, 0) }},
		{"open w", func(p string) error { return openClose(p, unix.O_WRONLY|unix.O_NONBLOCK, 0) }},
		{"open rw", func(p string) error { return openClose(p, unix.O_RDWR|unix.O_NONBLOCK, 0) }},
		{"open trunc", func(p string) error { return openClose(p, unix.O_WRONLY|unix.O_TRUNC|unix.O_NONBLOCK, 0) }},
		{"open r trunc", func(p string) error { return openClose(p, unix.O_RDONLY|unix.O_TRUNC|unix.O_NONBLOCK, 0) }},
		{"open append", func(p string) error { return openClose(p, unix.O_WRONLY|unix.O_APPEND|unix.O_NONBLOCK, 0) }},
		{"open nofollow", func(p string) error { return openClose(p, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) }},
		{"open directory", func(p string) error { return openClose(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0) }},
		{"open path", func(p string) error { return openClose(p, unix.O_PATH, 0) }},
		{"open noatime", func(p string) error { return openClose(p, unix.O_RDONLY|unix.O_NOATIME|unix.O_NONBLOCK, 0) }},
		{"open creat", func(p string) error { return openClose(p, unix.O_CREAT|unix.O_WRONLY|unix.O_NONBLOCK, 0o4751) }},
		{"open creat excl", func(p string) error {
			return openClose(p, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NONBLOCK, 0o2666)
		}},
		{"open creat ro", func(p string) error { return openClose(p, unix.O_CREAT|unix.O_WRONLY|unix.O_TRUNC|unix.O_NONBLOCK, 0) }},
		{"open creat dir", func(p string) error { return openClose(p, unix.O_CREAT|unix.O_DIRECTORY, 0o600) }},
		{"open tmpfile", func(p string) error { return openClose(p, unix.O_TMPFILE|unix.O_RDWR, 0o600) }},
		{"open tmpfile ro", func(p string) error { return openClose(p, unix.O_TMPFILE|unix.O_RDONLY, 0o600) }},
		{"mkdir", func(p string) error { return unix.Mkdir(p, 0o7777) }},
		{"rmdir", unix.Rmdir},
		{"unlink", unix.Unlink},
		{"mkfifo", func(p string) error { return unix.Mkfifo(p, 0o7777) }},
		{"mknod file", func(p string) error { return unix.Mknod(p, unix.S_IFREG|0o6755, 0) }},
		{"mknod none", func(p string) error { return unix.Mknod(p, 0o644, 0) }},
		{"mknod char", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(11, 300))) }},
		{"mknod block", func(p string) error { return unix.Mknod(p, unix.S_IFBLK|0o600, int(unix.Mkdev(4000, 3000))) }},
		{"mknod socket", func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o600, 0) }},
		{"mknod whiteout", func(p string) error { return unix.Mknod(p, unix.S_IFCHR, 0) }},
		{"mknod directory", func(p string) error { return unix.Mknod(p, unix.S_IFDIR|0o600, 0) }},
		{"symlink", func(p string) error { return unix.Symlink("to", p) }},
		{"symlink long", func(p string) error { return unix.Symlink(strings.Repeat("l", 4095), p) }},
		{"symlink too long", func(p string) error { return unix.Symlink(strings.Repeat("l", 4096), p) }},
		{"symlink empty", func(p string) error { return unix.Symlink("", p) }},
		{"chmod", func(p string) error { return unix.Chmod(p, 0o6711) }},
		{"chmod 2", func(p string) error { return unix.Chmod(p, 0o2600) }},
		{"chown uid", func(p string) error { return unix.Chown(p, 1300, -1) }},
		{"chown gid", func(p string) error { return unix.Chown(p, -1, 77) }},
		{"chown none", func(p string) error { return unix.Chown(p, -1, -1) }},
		{"chown self", func(p string) error { return unix.Chown(p, 1234, 5678) }},
		{"lchown", func(p string) error { return unix.Lchown(p, 1234, 4242) }},
		{"truncate", func(p string) error { return unix.Truncate(p, 3) }},
		{"truncate up", func(p string) error { return unix.Truncate(p, 1<<20) }},
		{"truncate negative", func(p string) error { return unix.Truncate(p, -1) }},
		{"truncate huge", func(p string) error { return unix.Truncate(p, 1<<62) }},
		{"truncate back", func(p string) error { return unix.Truncate(p, 0) }},
		{"utimes", func(p string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 3, Nsec: 999999999}}, 0)
		}},
		{"utimes now", func(p string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}, 0)
		}},
		{"utimes one now", func(p string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_OMIT}}, 0)
		}},
		{"utimes omit", func(p string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}, 0)
		}},
		{"utimes negative", func(p string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: -5}, {Sec: -1 << 40}}, unix.AT_SYMLINK_NOFOLLOW)
		}},
		{"utimes bad", func(p string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Nsec: 1e9}, {}}, 0) }},
		{"access r", func(p string) error { return unix.Access(p, unix.R_OK) }},
		{"access w", func(p string) error { return unix.Access(p, unix.W_OK) }},
		{"access x", func(p string) error { return unix.Access(p, unix.X_OK) }},
		{"access f", func(p string) error { return unix.Access(p, unix.F_OK) }},
		{"chdir", func(p string) error { return unix.Faccessat(unix.AT_FDCWD, p+"/.", unix.X_OK, 0) }},
		{"readlink", func(p string) error { _, err := unix.Readlink(p, make([]byte, 9)); return err }},
		{"getxattr", func(p string) error { _, err := unix.Lgetxattr(p, "user.none", nil); return err }},
		{"setxattr", func(p string) error { return unix.Lsetxattr(p, "user.a", []byte("v"), 0) }},
		{"setxattr trusted", func(p string) error { return unix.Lsetxattr(p, "trusted.a", []byte("v"), 0) }},
		{"removexattr", func(p string) error { return unix.Lremovexattr(p, "user.a") }},
		{"statfs", func(p string) error { var st unix.Statfs_t; return unix.Statfs(p, &st) }},
	}
	for _, who := range people[:3] { // a stranger may do less than a member
		t.Run(who.name, func(t *testing.T) {
			both(t, func(s *side) {
				names := append(badNames(s), "file", "dir", "full", "link", "dirlink", "fifo", "team", "new", "team/new", "sticky/new", "dir/new", "closed")
				for _, c := range calls {
					for _, n := range names {
						err := s.room(furnish, fmt.Sprintf("%s %.40q", c.name, n), func(in *side) (err error) {
							p := in.path(n)
							if n == "" {
								p = ""
							}
							s.as(who.uid, who.gid, who.groups, func() { err = c.call(p) })
							return err
						})
						if err == nil && !reads(c.name) {
							s.leave()
						}
					}
					s.leave() // what failed has changed nothing
				}
			})
		})
	}
}

// reads reports whether a call changes nothing when it works.
func reads(call string) bool {
	return strings.HasPrefix(call, "access") || call == "open r" || call == "open nofollow" || call == "open directory" || call == "statfs" || call == "chdir"
}

// Renames and links of each kind to each kind, by different people.
func TestSameTwoNameCalls(t *testing.T) {
	flags := []struct {
		name string
		call func(a, b string) error
	}{
		{"rename", unix.Rename},
		{"noreplace", func(a, b string) error {
			return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE)
		}},
		{"exchange", func(a, b string) error {
			return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
		}},
		{"whiteout", func(a, b string) error {
			return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_WHITEOUT)
		}},
		{"both", func(a, b string) error {
			return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE)
		}},
		{"unknown", func(a, b string) error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, 1<<10) }},
		{"link", unix.Link},
		{"link follow", func(a, b string) error {
			return unix.Linkat(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.AT_SYMLINK_FOLLOW)
		}},
	}
	from := []string{"file", "dir", "full", "link", "fifo", "absent", "sticky/theirs", "closed/x", "dir/", ".", "loop", "team"}
	to := []string{"new", "file", "dir", "full", "link", "dir/new", "team/new", "sticky/theirs", "closed/x", "full/sub", "absent/x", "new/", "..", strings.Repeat("n", 256)}
	for _, who := range people[:3] { // a stranger may do less than a member
		t.Run(who.name, func(t *testing.T) {
			both(t, func(s *side) {
				for _, c := range flags {
					for _, a := range from {
						for _, b := range to {
							err := s.room(furnish, fmt.Sprintf("%s %q %.20q", c.name, a, b), func(in *side) (err error) {
								s.as(who.uid, who.gid, who.groups, func() { err = c.call(in.path(a), in.path(b)) })
								return err
							})
							if err == nil {
								s.leave()
							}
						}
						s.leave() // what failed has changed nothing
					}
				}
			})
		})
	}
}

// No name is special in the root of a layer.
func TestSameNameOfTheLibrary(t *testing.T) {
	const name = ".go-fuse-epoll-hack" // go-fuse answers for it by itself
	both(t, func(s *side) {
		s.make("f", "x", 0o644)
		must(s, unix.Mkdir(s.path("d"), 0o755))
		p := s.path(name)
		makes := map[string]func() error{
			"creat":   func() error { return openClose(p, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644) },
			"mkdir":   func() error { return unix.Mkdir(p, 0o755) },
			"mknod":   func() error { return unix.Mkfifo(p, 0o644) },
			"symlink": func() error { return unix.Symlink("to", p) },
			"link":    func() error { return unix.Link(s.path("f"), p) },
			"rename":  func() error { return unix.Rename(s.path("d"), p) },
			"exchange": func() error {
				must(s, os.WriteFile(p, nil, 0o600))
				return unix.Renameat2(unix.AT_FDCWD, s.path("f"), unix.AT_FDCWD, p, unix.RENAME_EXCHANGE)
			},
		}
		for _, m := range sorted(makes) {
			s.look(name)
			_ = s.did(m, makes[m]())
			s.look(name)
			if m == "rename" {
				_ = s.did("rename back", unix.Rename(p, s.path("d")))
				continue
			}
			if err := unix.Unlink(p); err != nil {
				_ = s.did("unlink", err)
				_ = s.did("rmdir", unix.Rmdir(p))
			}
		}
	})
}
