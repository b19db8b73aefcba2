package fusefs_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// What is no file or directory works among those who use the layer.
func TestSameSpecialFiles(t *testing.T) {
	both(t, func(s *side) {
		// a socket that is bound and reached by a short path, as its address has 108 bytes
		dir := s.open(".", unix.O_PATH|unix.O_DIRECTORY, 0)
		addr := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/sock", dir)}
		srv, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(s, err)
		defer func() { _ = unix.Close(srv) }()
		_ = s.did("bind", unix.Bind(srv, addr))
		_ = s.did("bind again", unix.Bind(srv, addr))
		_ = s.did("listen", unix.Listen(srv, 1))
		for range 2 {
			c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			must(s, err)
			defer func() { _ = unix.Close(c) }()
			_ = s.did("connect", unix.Connect(c, addr))
			must(s, unix.Chmod(s.path("sock"), 0o600))
		}
		s.as(65533, 65533, nil, func() {
			c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			must(s, err)
			_ = s.did("a stranger connects", unix.Connect(c, addr))
			must(s, unix.Close(c))
		})
		_ = s.did("open a socket", openClose(s.path("sock"), unix.O_RDONLY, 0))
		_ = s.did("unlink it", unix.Unlink(s.path("sock")))
		c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(s, err)
		defer func() { _ = unix.Close(c) }()
		_ = s.did("connect to nothing", unix.Connect(c, addr))
		// a FIFO
		must(s, unix.Mkfifo(s.path("fifo"), 0o600))
		_ = s.did("open to write without a reader", openClose(s.path("fifo"), unix.O_WRONLY|unix.O_NONBLOCK, 0))
		r := s.open("fifo", unix.O_RDONLY|unix.O_NONBLOCK, 0)
		w := s.open("fifo", unix.O_WRONLY|unix.O_NONBLOCK, 0)
		_, err = unix.Write(w, []byte("through"))
		_ = s.did("write", err)
		buf := make([]byte, 20)
		n, err := unix.Read(r, buf)
		s.say("read %q %s", buf[:max(n, 0)], errnoText(err))
		// devices
		must(s, unix.Mknod(s.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(s, unix.Mknod(s.path("none"), unix.S_IFCHR|0o666, int(unix.Mkdev(4095, 77))))
		_ = s.did("open no device", openClose(s.path("none"), unix.O_RDONLY, 0))
		s.look("null")
	})
}

// Calls that move data by other ways than read and write, and ways of naming a file.
func TestSameWays(t *testing.T) {
	bothWays(t, func(s *side) {
		data := pattern2(200000, 4)
		s.make("f", string(data), 0o755)
		fd, to := s.open("f", unix.O_RDWR, 0), s.open("to", unix.O_CREAT|unix.O_RDWR, 0o644)
		off := int64(1000)
		all := 0
		for all < 150000 {
			n, err := unix.Sendfile(to, fd, &off, 150000-all)
			if err != nil || n == 0 {
				s.say("sendfile: %d %s", n, errnoText(err))
				break
			}
			all += n
		}
		s.say("sendfile: %d in all, then at %d", all, off)
		s.sum("to")
		var p [2]int
		must(s, unix.Pipe2(p[:], unix.O_CLOEXEC))
		defer func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) }()
		for _, at := range []int64{0, 12345, 199990, 300000} {
			from, into := at, at
			n, err := unix.Splice(fd, &from, p[1], nil, 10000, unix.SPLICE_F_NONBLOCK)
			s.say("splice from %d: some %v %s", at, n > 0, errnoText(err))
			if n > 0 {
				m, err := unix.Splice(p[0], nil, to, &into, int(n), 0)
				s.say("splice to: all %v %s", m == n, errnoText(err))
			}
		}
		s.sum("to")
		n, err := unix.Preadv(fd, [][]byte{make([]byte, 3), make([]byte, 5)}, 7)
		s.say("preadv: %d %s", n, errnoText(err))
		n, err = unix.Pwritev(to, [][]byte{[]byte("abc"), []byte("defgh")}, 190000)
		s.say("pwritev: %d %s", n, errnoText(err))
		// maps
		for _, c := range []struct {
			name        string
			prot, flags int
		}{{"private", unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE}, {"shared", unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED}, {"exec", unix.PROT_READ | unix.PROT_EXEC, unix.MAP_PRIVATE}} {
			mem, err := unix.Mmap(fd, 4096, 8192, c.prot, c.flags)
			if s.did("map "+c.name, err) != nil {
				continue
			}
			if err := faultIn(mem); err != nil {
				s.say("touch: %s", errnoText(err))
			}
			s.say("%s sees the file %v", c.name, sha256.Sum256(mem) == sha256.Sum256(data[4096:4096+8192]))
			if c.prot&unix.PROT_WRITE != 0 {
				must(s, poke(mem[100:], 'Z'))
				_ = s.did("msync", unix.Msync(mem, unix.MS_SYNC))
				var b [1]byte
				_, err := unix.Pread(fd, b[:], 4196)
				s.say("the file has %q %s", b, errnoText(err))
				_, err = unix.Pwrite(fd, data[4196:4197], 4196) // and back
				must(s, err)
				s.say("the map has the old byte %v", bytes.Equal(mem[100:101], data[4196:4197]))
			}
			must(s, unix.Munmap(mem))
		}
		ro := s.open("f", unix.O_RDONLY, 0)
		_, err = unix.Mmap(ro, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		_ = s.did("map to write what is open to read", err)
		wo := s.open("f", unix.O_WRONLY, 0)
		_, err = unix.Mmap(wo, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		_ = s.did("map what is open to write", err)
		// names
		top := s.open(".", unix.O_PATH|unix.O_DIRECTORY, 0)
		must(s, unix.Mkdir(s.path("d"), 0o755))
		must(s, unix.Symlink("../f", s.path("d/up")))
		must(s, unix.Symlink("/etc/passwd", s.path("abs")))
		for _, how := range []uint64{0, unix.RESOLVE_BENEATH, unix.RESOLVE_IN_ROOT, unix.RESOLVE_NO_SYMLINKS, unix.RESOLVE_NO_MAGICLINKS} {
			for _, name := range []string{"f", "d/up", "abs", "../x", "d/../f", "/f"} {
				got, err := unix.Openat2(top, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: how})
				s.say("openat2 %s %#x: %s", name, how, errnoText(err))
				if err == nil {
					must(s, unix.Close(got))
				}
			}
		}
		path := s.open("f", unix.O_PATH, 0)
		_, err = unix.Read(path, make([]byte, 1))
		_ = s.did("read by O_PATH", err)
		_ = s.did("fchmod by O_PATH", unix.Fchmod(path, 0o700))
		_ = s.did("chmod by its link", unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", path), 0o700))
		_ = s.did("fchmodat2", unix.Fchmodat(unix.AT_FDCWD, s.path("abs"), 0o600, unix.AT_SYMLINK_NOFOLLOW))
		var st unix.Stat_t
		_ = s.did("fstat by O_PATH", unix.Fstat(path, &st))
		to2, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", path))
		s.say("its link: %s %s", to2, errnoText(err))
	})
}
