package fusefs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl makes a request whose argument is a buffer.
func ioctl(fd int, request uint32, buf []byte) error {
	// A copy of fixed size: the kernel may read or write up to a long where the caller's buffer holds an int.
	var arg [32]byte
	copy(arg[:], buf)
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&arg[0])))
	if e != 0 {
		return e
	}
	copy(buf, arg[:])
	return nil
}
