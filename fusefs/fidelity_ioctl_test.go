package fusefs_test

import (
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests about inodes by ioctl(2), as far as FUSE carries them.
func TestSameIoctls(t *testing.T) {
	num := func(dir, typ, nr, size uint) uintptr { return uintptr(dir<<30 | size<<16 | typ<<8 | nr) }
	const r, w = 2, 1 // _IOC_READ, _IOC_WRITE
	requests := []struct {
		name string
		nr   uintptr
		size int // of what is compared
	}{
		{"FS_IOC_GETFLAGS", unix.FS_IOC_GETFLAGS, 4},
		{"FS_IOC_GETVERSION", num(r, 'v', 1, 8), 4},
		{"FS_IOC_FSGETXATTR", num(r, 'X', 31, 28), 28},
		{"FIGETBSZ", 2, 4},
		{"FIONREAD", 0x541b, 4},
		{"FS_IOC_GETFSLABEL", num(r, 0x94, 49, 256), 17},
		{"FITRIM as nobody", num(r|w, 'X', 121, 24), 0},
		{"TCGETS", 0x5401, 0},
		{"unknown", num(r|w, 0xee, 9, 16), 0},
	}
	both(t, func(s *side) {
		s.make("f", "content", 0o644)
		must(s, unix.Mkdir(s.path("d"), 0o755))
		must(s, unix.Chown(s.path("f"), 1234, 5678))
		for _, f := range []string{"f", "d"} {
			fd := s.open(f, unix.O_RDONLY, 0)
			for _, q := range requests {
				buf := make([]byte, 512)
				for i := range buf {
					buf[i] = 0xaa
				}
				call := func() { s.say("%s of %s: %s", q.name, f, errnoText(ioctl(fd, q.nr, unsafe.Pointer(&buf[0])))) }
				if strings.HasSuffix(q.name, "nobody") {
					s.as(65533, 65533, nil, call)
				} else {
					call()
				}
				if q.name == "FS_IOC_GETVERSION" { // differs from file to file
					s.say("  not touched after %d bytes: %x", q.size, buf[q.size:16])
					continue
				}
				s.say("  %x", buf[:q.size])
			}
		}
		// set
		fd := s.open("f", unix.O_RDONLY, 0)
		version := func(n uint32) error { return ioctl(fd, num(w, 'v', 2, 8), unsafe.Pointer(&n)) }
		var now [2]uint32
		for _, who := range people {
			s.as(who.uid, who.gid, who.groups, func() {
				_ = s.did(who.name+" sets the generation", version(uint32(4711+who.uid)))
				_ = s.did("get it", ioctl(fd, num(r, 'v', 1, 8), unsafe.Pointer(&now)))
				s.say("it is %d", now[0])
				var flags uint64
				_ = s.did("get flags", ioctl(fd, unix.FS_IOC_GETFLAGS, unsafe.Pointer(&flags)))
				had := flags
				flags = had | noDump
				_ = s.did(who.name+" sets flags", ioctl(fd, unix.FS_IOC_SETFLAGS, unsafe.Pointer(&flags)))
				flags = had | 0x10 // FS_IMMUTABLE_FL
				err := ioctl(fd, unix.FS_IOC_SETFLAGS, unsafe.Pointer(&flags))
				_ = s.did(who.name+" sets immutable", err)
				if err == nil {
					_ = s.did("write", openClose(s.path("f"), unix.O_WRONLY, 0))
					_ = s.did("unlink", unix.Unlink(s.path("f")))
					_ = s.did("link", unix.Link(s.path("f"), s.path("f2")))
					_ = s.did("chmod", unix.Chmod(s.path("f"), 0o600))
					_ = s.did("utimes", unix.UtimesNanoAt(unix.AT_FDCWD, s.path("f"), []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}, 0))
					flags = had | 0x20 // FS_APPEND_FL
					_ = s.did("append only", ioctl(fd, unix.FS_IOC_SETFLAGS, unsafe.Pointer(&flags)))
					_ = s.did("write", openClose(s.path("f"), unix.O_WRONLY, 0))
					_ = s.did("append", openClose(s.path("f"), unix.O_WRONLY|unix.O_APPEND, 0))
					_ = s.did("truncate", unix.Truncate(s.path("f"), 1))
					flags = had
					_ = s.did("clear", ioctl(fd, unix.FS_IOC_SETFLAGS, unsafe.Pointer(&flags)))
				}
			})
		}
		// A label is the file system's: only who may set it there is let through, and nobody is from here.
		var label [256]byte
		s.as(1234, 5678, nil, func() { _ = s.did("set the label", ioctl(fd, num(w, 0x94, 50, 256), unsafe.Pointer(&label))) })
	})
}
