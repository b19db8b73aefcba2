package fusefs

import (
	"encoding/binary"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// IoctlHandle is an ioctl(2) request, _IOR('F', 0xf6, uint64). On a file or
// directory of a layer it returns the handle of the open file. It is answered
// for processes that are trusted; for everyone else it is ENOTTY, as on any
// other file system.
const IoctlHandle = 0x800846f6

// ioctlRequest is a request that is passed on. The kernel carries as many bytes as the
// number of a request says (_IOC_SIZE, fuse_do_ioctl in fs/fuse/ioctl.c), whatever the
// file system reads and writes.
type ioctlRequest struct {
	in, out int  // bytes that the file system below reads and writes
	caller  bool // it checks who asks
}

// ioctls are the requests that are about one inode or only read (include/uapi/linux/fs.h, fs/xfs/libxfs/xfs_fs.h).
var ioctls = map[uint32]ioctlRequest{
	0x80086601: {out: 4},              // FS_IOC_GETFLAGS
	0x40086602: {in: 4},               // FS_IOC_SETFLAGS; the kernel has checked who asks
	0x801c581f: {out: 28},             // FS_IOC_FSGETXATTR
	0x401c5820: {in: 28},              // FS_IOC_FSSETXATTR; likewise
	0x80087601: {out: 4},              // FS_IOC_GETVERSION
	0x40087602: {in: 4, caller: true}, // FS_IOC_SETVERSION
	0x81009431: {out: 256},            // FS_IOC_GETFSLABEL
	0x800c581e: {out: 12},             // XFS_IOC_DIOINFO
}

// administrative are requests about the whole file system, for whose administrators
// they are. From a container they are answered as to anybody else.
var administrative = map[uint32]bool{
	0xc0185879: true, // FITRIM
	0x41009432: true, // FS_IOC_SETFSLABEL
}

// maxIoctl is the most bytes that one of them reads or writes.
const maxIoctl = 256

// ioctl answers a request and tells how many bytes of output there are.
func (l *Layer) ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, input, output []byte) (int, fuse.Status) {
	h := l.handles.get(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	if in.Cmd == IoctlHandle && len(output) == 8 && l.trusted.has(in.Pid) {
		binary.NativeEndian.PutUint64(output, h.id)
		return 8, fuse.OK
	}
	if e := l.node(request{cancel: cancel, header: &in.InHeader, op: policy.OpIoctl}, h.node); e != 0 {
		return 0, fuse.Status(e)
	}
	if administrative[in.Cmd] {
		return 0, fuse.EPERM
	}
	r, ok := ioctls[in.Cmd]
	if !ok || len(input) < r.in || len(output) < r.out {
		return 0, fuse.Status(unix.ENOTTY)
	}
	fd, err := h.file()
	if err != nil {
		return 0, status(err)
	}
	var arg [maxIoctl]byte
	copy(arg[:], input[:r.in])
	call := func() error {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(in.Cmd), uintptr(unsafe.Pointer(&arg[0]))); e != 0 {
			return e
		}
		return nil
	}
	if r.caller && lacks(in.Pid, unix.CAP_FOWNER) {
		err = l.creds.plainly(&in.InHeader, call)
	} else {
		err = retry(call)
	}
	if err != nil {
		return 0, status(err)
	}
	if r.in > 0 { // the kernel does not expect that it changes a time
		l.notify.inode(h.node.id, -1)
	}
	return copy(output, arg[:r.out]), fuse.OK
}

// ioctl answers an IOCTL. go-fuse would always answer with as many bytes as the request
// has room for, and so write behind an int where the request's number says long.
func (r *reader) ioctl(n int) []byte {
	q := in[fuse.IoctlIn](r)
	const size = int(unsafe.Sizeof(fuse.IoctlIn{}))
	const answer = int(unsafe.Sizeof(fuse.IoctlOut{}))
	buf := r.dataBuffer(answer + int(min(q.OutSize, maxRequest-uint32(answer))))
	input := r.in[size:n]
	have, st := r.d.layer.ioctl(r.cancel, q, input[:min(len(input), int(q.InSize))], buf[headerSize+answer:])
	if st != fuse.OK {
		return r.reply(st, 0)
	}
	clear(buf[headerSize : headerSize+answer])
	o := (*fuse.OutHeader)(unsafe.Pointer(&buf[0]))
	*o = fuse.OutHeader{Length: uint32(headerSize + answer + have), Unique: q.Unique}
	return buf[:o.Length]
}
