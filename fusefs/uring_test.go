package fusefs_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// uring is an io_uring of one entry (include/uapi/linux/io_uring.h).
type uring struct {
	fd          int
	rings, sqes []byte
	p           uringParams
}

type uringParams struct {
	sqEntries, cqEntries, flags, threadCPU, threadIdle, features, wqFD uint32
	_                                                                  [3]uint32
	sq                                                                 struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

type uringEntry struct {
	opcode, flags uint8
	_             uint16
	fd            int32
	off, addr     uint64
	len, opFlags  uint32
	data          uint64
	_             [3]uint64
}

const (
	uringFsync = 3
	uringStatx = 21
	uringRead  = 22
	uringWrite = 23
)

func newUring(t testing.TB) *uring {
	t.Helper()
	u := &uring{}
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&u.p)), 0)
	if e == unix.ENOSYS || e == unix.EPERM {
		t.Skip("no io_uring here: ", e)
	}
	if e != 0 {
		t.Fatal(e)
	}
	u.fd = int(fd)
	t.Cleanup(func() { _ = unix.Close(u.fd) })
	size := max(u.p.sq.array+4*u.p.sqEntries, u.p.cq.cqes+16*u.p.cqEntries)
	var err error
	u.rings, err = unix.Mmap(u.fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	must(t, err)
	u.sqes, err = unix.Mmap(u.fd, 0x10000000, 64, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	must(t, err)
	t.Cleanup(func() { _, _ = unix.Munmap(u.rings), unix.Munmap(u.sqes) })
	return u
}

func (u *uring) word(at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&u.rings[at])) }

// do submits one request and waits for it.
func (u *uring) do(e uringEntry) (int, error) {
	*(*uringEntry)(unsafe.Pointer(&u.sqes[0])) = e
	*u.word(u.p.sq.array) = 0
	atomic.AddUint32(u.word(u.p.sq.tail), 1)
	for {
		_, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), 1, 1, 1 /* GETEVENTS */, 0, 0)
		if e != 0 && e != unix.EINTR {
			return 0, e
		}
		head := atomic.LoadUint32(u.word(u.p.cq.head))
		if head == atomic.LoadUint32(u.word(u.p.cq.tail)) {
			continue
		}
		res := int32(*u.word(u.p.cq.cqes + 16*(head&*u.word(u.p.cq.mask)) + 8))
		atomic.StoreUint32(u.word(u.p.cq.head), head+1)
		if res < 0 {
			return 0, unix.Errno(-res)
		}
		return int(res), nil
	}
}

func (u *uring) rw(op uint8, fd int, b []byte, off int64) (int, error) {
	return u.do(uringEntry{opcode: op, fd: int32(fd), addr: uint64(uintptr(unsafe.Pointer(&b[0]))), len: uint32(len(b)), off: uint64(off)})
}

// aio is a context of io_submit(2).
type aio struct{ id uintptr }

type aioBlock struct {
	_          [16]byte // data, key, flags of the request
	opcode     uint16
	_          int16
	fd         uint32
	buf, bytes uint64
	offset     int64
	_          [16]byte // reserved, flags, descriptor of an eventfd
}

type aioEvent struct{ data, obj, res, res2 int64 }

const (
	aioRead  = 0
	aioWrite = 1
	aioFsync = 2
)

func newAIO(t testing.TB) *aio {
	t.Helper()
	a := &aio{}
	_, _, e := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&a.id)), 0)
	if e == unix.ENOSYS {
		t.Skip("no AIO here")
	}
	if e != 0 {
		t.Fatal(e)
	}
	t.Cleanup(func() { _, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, a.id, 0, 0) })
	return a
}

func (a *aio) rw(op uint16, fd int, b []byte, off int64) (int, error) {
	c := aioBlock{opcode: op, fd: uint32(fd), offset: off}
	if len(b) > 0 {
		c.buf, c.bytes = uint64(uintptr(unsafe.Pointer(&b[0]))), uint64(len(b))
	}
	list := []*aioBlock{&c}
	if _, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, a.id, 1, uintptr(unsafe.Pointer(&list[0]))); e != 0 {
		return 0, e
	}
	var ev aioEvent
	for {
		n, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, a.id, 1, 1, uintptr(unsafe.Pointer(&ev)), 0, 0)
		switch {
		case e == unix.EINTR:
		case e != 0:
			return 0, e
		case n != 1:
			return 0, errors.New("no event")
		case ev.res < 0:
			return 0, unix.Errno(-ev.res)
		default:
			return int(ev.res), nil
		}
	}
}
