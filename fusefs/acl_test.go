package fusefs_test

import (
	"encoding/binary"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// acl encodes an access list as the kernel stores it (include/uapi/linux/posix_acl_xattr.h).
func acl(entries ...[3]uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

const (
	aclUserObj, aclUser, aclGroupObj, aclMask, aclOther = 1, 2, 4, 16, 32
	nobody                                              = ^uint32(0)
)

func TestAccessLists(t *testing.T) {
	b := over(t, setup{})
	list := acl([3]uint32{aclUserObj, 7, nobody}, [3]uint32{aclUser, 6, 1234}, [3]uint32{aclGroupObj, 0, nobody}, [3]uint32{aclMask, 6, nobody}, [3]uint32{aclOther, 0, nobody})
	b.write("f", "secret")
	if err := unix.Setxattr(b.path("f"), "system.posix_acl_access", list, 0); err != nil {
		t.Skip("no access lists below: ", err)
	}
	asUser(t, 1234, 5678, func() {
		if err := openClose(b.path("f"), unix.O_RDWR, 0); err != nil {
			t.Errorf("whom the list lets in: %v", err)
		}
	})
	asUser(t, 1235, 5678, func() {
		if err := openClose(b.path("f"), unix.O_RDONLY, 0); err != unix.EACCES {
			t.Errorf("whom it does not: %v", err)
		}
	})
	b.rules("io error=EIO op=getxattr") // the kernel's own reads of the list are not getxattr(2)
	asUser(t, 1234, 5678, func() {
		if err := openClose(b.path("f"), unix.O_RDWR, 0); err != nil {
			t.Errorf("with a getxattr rule: %v", err)
		}
	})
}

// A directory's default access list takes the place of the umask.
func TestDefaultAccessList(t *testing.T) {
	b := over(t, setup{})
	list := acl([3]uint32{aclUserObj, 7, nobody}, [3]uint32{aclGroupObj, 7, nobody}, [3]uint32{aclOther, 5, nobody})
	for _, dir := range []string{"with", "without"} {
		must(t, unix.Mkdir(b.path(dir), 0o755))
		if dir == "with" {
			if err := unix.Setxattr(b.path(dir), "system.posix_acl_default", list, 0); err != nil {
				t.Skip("no access lists below: ", err)
			}
		}
	}
	mode := func(p string) uint32 {
		var st unix.Stat_t
		must(t, unix.Stat(p, &st))
		return st.Mode & 0o777
	}
	for _, dir := range []string{"with", "without"} {
		up, down := b.path(dir+"/up"), b.under(dir+"/down")
		withUmask(t, 0o077, func() {
			if err := openClose(up, unix.O_CREAT|unix.O_WRONLY, 0o666); err != nil {
				t.Error(err)
			}
			if err := openClose(down, unix.O_CREAT|unix.O_WRONLY, 0o666); err != nil {
				t.Error(err)
			}
		})
		if mode(up) != mode(down) {
			t.Errorf("%s default list: mode %o, below %o", dir, mode(up), mode(down))
		}
	}
	if mode(b.path("with/up")) != 0o664 {
		t.Errorf("the umask was not replaced: %o", mode(b.path("with/up")))
	}
}

// withUmask runs f on a thread that has its own umask.
func withUmask(t testing.TB, mask int, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			t.Error(err)
			return
		}
		unix.Umask(mask)
		f()
	}()
	<-done
}
