package fusefs

import (
	"runtime"
	"strconv"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Requests of /dev/fuse (include/uapi/linux/fuse.h, Linux 6.9).
const (
	backingOpen  = 0x4010e501 // FUSE_DEV_IOC_BACKING_OPEN, _IOW(229, 1, struct fuse_backing_map)
	backingClose = 0x4004e502 // FUSE_DEV_IOC_BACKING_CLOSE, _IOW(229, 2, uint32_t)
)

// openBacking names a file to the kernel, for files of the layer that are
// passed through to it. fd is an O_PATH descriptor, which kernels before 6.16
// do not take (fuse_backing_open in fs/fuse/backing.c): they get one that can read.
func (d *device) openBacking(fd int) (int32, error) {
	id, e := d.backingOf(fd)
	if e != unix.EBADF {
		return id, errnoOrNil(e)
	}
	read, err := unix.Open(magic(fd), unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(read) }() // the kernel has its own
	id, e = d.backingOf(read)
	return id, errnoOrNil(e)
}

func (d *device) backingOf(fd int) (int32, unix.Errno) {
	m := fuse.BackingMap{Fd: int32(fd)}
	id, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), backingOpen, uintptr(unsafe.Pointer(&m)))
	runtime.KeepAlive(&m)
	return int32(id), e
}

// closeBacking gives a name back. Files that are open keep what they need.
func (d *device) closeBacking(id int32) {
	v := uint32(id)
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), backingClose, uintptr(unsafe.Pointer(&v)))
	if e != 0 && e != unix.ENODEV && e != unix.EPERM { // the connection has ended, and its names with it
		d.log.Warn("give back the kernel's name of a file below: "+strconv.Itoa(int(id)), "err", e)
	}
}

// dropBackingID gives back a name that may not be one.
func (d *device) dropBackingID(id int32) {
	v := uint32(id)
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), backingClose, uintptr(unsafe.Pointer(&v))) // ENOENT mostly
}

func errnoOrNil(e unix.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}
