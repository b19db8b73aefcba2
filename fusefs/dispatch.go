package fusefs

import (
	"bytes"
	"fmt"
	"runtime/debug"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Requests that are decoded here (enum fuse_opcode in include/uapi/linux/fuse.h):
// those that are frequent, those that can wait for long, and those that go-fuse
// does not know.
const (
	opLookup        = 1
	opForget        = 2
	opGetattr       = 3
	opUnlink        = 10
	opOpen          = 14
	opRead          = 15
	opWrite         = 16
	opRelease       = 18
	opFsync         = 20
	opFlush         = 25
	opInit          = 26
	opGetlk         = 31
	opSetlk         = 32
	opSetlkw        = 33
	opCreate        = 35
	opInterrupt     = 36
	opIoctl         = 39
	opBatchForget   = 42
	opCopyFileRange = 53 // with a 64-bit answer, Linux 6.18
)

// fixed is the size of the part of a request that is the same for all requests of its kind.
var fixed = [...]uintptr{
	opLookup: unsafe.Sizeof(fuse.InHeader{}), opForget: unsafe.Sizeof(fuse.ForgetIn{}), opGetattr: unsafe.Sizeof(fuse.GetAttrIn{}),
	opUnlink: unsafe.Sizeof(fuse.InHeader{}), opOpen: unsafe.Sizeof(fuse.OpenIn{}), opRead: unsafe.Sizeof(fuse.ReadIn{}),
	opWrite: unsafe.Sizeof(fuse.WriteIn{}), opRelease: unsafe.Sizeof(fuse.ReleaseIn{}), opFsync: unsafe.Sizeof(fuse.FsyncIn{}),
	opFlush: unsafe.Sizeof(fuse.FlushIn{}), opGetlk: unsafe.Sizeof(fuse.LkIn{}), opSetlk: unsafe.Sizeof(fuse.LkIn{}),
	opSetlkw: unsafe.Sizeof(fuse.LkIn{}), opCreate: unsafe.Sizeof(fuse.CreateIn{}), opInterrupt: unsafe.Sizeof(fuse.InterruptIn{}),
	opSymlink: unsafe.Sizeof(fuse.InHeader{}), opMknod: unsafe.Sizeof(fuse.MknodIn{}), opMkdir: unsafe.Sizeof(fuse.MkdirIn{}),
	opRmdir: unsafe.Sizeof(fuse.InHeader{}), opRename: unsafe.Sizeof(renameIn{}), opLink: unsafe.Sizeof(fuse.LinkIn{}), opRename2: unsafe.Sizeof(fuse.RenameIn{}),
	opIoctl: unsafe.Sizeof(fuse.IoctlIn{}), opBatchForget: unsafe.Sizeof(batchForgetIn{}), opCopyFileRange: unsafe.Sizeof(fuse.CopyFileRangeIn{}),
}

type batchForgetIn struct {
	fuse.InHeader
	Count, Dummy uint32
}

type forgetOne struct{ NodeID, Lookups uint64 }

// serve answers the request of n bytes that was read.
func (r *reader) serve(n int) {
	h := r.header()
	if n < int(unsafe.Sizeof(*h)) || int(h.Length) != n {
		r.d.log.Error("a request from /dev/fuse that is shorter than it says", "bytes", n)
		return
	}
	r.begin(h.Unique)
	answer := r.answer(n)
	r.finish()
	if answer == nil {
		return
	}
	r.d.answerAsked(answer)
	// ENOENT: the caller was interrupted and is gone. ENODEV: the connection is.
	if _, err := r.d.write(answer); err != nil && err != unix.ENOENT && err != unix.ENODEV {
		r.d.log.Error("answer a request", "opcode", h.Opcode, "err", err)
	}
	reach(placeSent, h)
}

// guarded has one request that makes us panic fail, instead of all that come after it.
func (r *reader) guarded(n int) (answer []byte) {
	defer func() {
		if p := recover(); p != nil {
			r.d.log.Error("panic while answering a request; it fails with EIO", "opcode", r.header().Opcode, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			answer = r.reply(fuse.EIO, 0)
		}
	}()
	return r.dispatch(n)
}

// reply completes an answer in out that has size bytes after its header, or is an error.
func (r *reader) reply(st fuse.Status, size uintptr) []byte {
	if st != fuse.OK {
		size = 0
	}
	o := (*fuse.OutHeader)(unsafe.Pointer(&r.out[0]))
	*o = fuse.OutHeader{Length: uint32(headerSize) + uint32(size), Status: -int32(st), Unique: r.header().Unique}
	return r.out[:o.Length]
}

// in gives a request as the struct of its kind.
func in[T any](r *reader) *T { return (*T)(unsafe.Pointer(&r.in[0])) }

// out gives room for the answer, zeroed.
func out[T any](r *reader) *T {
	p := (*T)(unsafe.Pointer(&r.out[headerSize]))
	*p = *new(T)
	return p
}

// name is the string at an offset of the request.
func (r *reader) name(at uintptr, n int) string { return nameIn(r.in[at:n]) }

func nameIn(b []byte) string {
	name, _, _ := bytes.Cut(b, []byte{0})
	return string(name)
}

// dispatch answers a request; nil where no answer is due.
func (r *reader) dispatch(n int) []byte {
	h, l := r.header(), r.d.layer
	if h.Opcode >= uint32(len(fixed)) || fixed[h.Opcode] == 0 {
		return r.passOn(n)
	}
	size := fixed[h.Opcode]
	if n < int(size) {
		r.d.log.Error("a request from /dev/fuse that is too short for its kind", "opcode", h.Opcode, "bytes", n)
		return r.reply(fuse.EIO, 0)
	}
	switch h.Opcode {
	case opLookup:
		o := out[fuse.EntryOut](r)
		return r.reply(l.Lookup(r.cancel, h, r.name(size, n), o), unsafe.Sizeof(*o))
	case opForget:
		l.Forget(h.NodeId, in[fuse.ForgetIn](r).Nlookup)
		return nil
	case opBatchForget:
		count := min(int(in[batchForgetIn](r).Count), (n-int(size))/int(unsafe.Sizeof(forgetOne{})))
		if count > 0 {
			for _, f := range unsafe.Slice((*forgetOne)(unsafe.Pointer(&r.in[size])), count) {
				l.Forget(f.NodeID, f.Lookups)
			}
		}
		return nil
	case opGetattr:
		o := out[fuse.AttrOut](r)
		return r.reply(l.GetAttr(r.cancel, in[fuse.GetAttrIn](r), o), unsafe.Sizeof(*o))
	case opUnlink:
		return r.reply(l.Unlink(r.cancel, h, r.name(size, n)), 0)
	case opOpen:
		o := out[fuse.OpenOut](r)
		return r.reply(l.Open(r.cancel, in[fuse.OpenIn](r), o), unsafe.Sizeof(*o))
	case opCreate:
		o := out[fuse.CreateOut](r)
		return r.reply(l.Create(r.cancel, in[fuse.CreateIn](r), r.name(size, n), o), unsafe.Sizeof(*o))
	case opRead:
		return r.read()
	case opWrite:
		o := out[fuse.WriteOut](r)
		var st fuse.Status
		data := r.in[size:n]
		o.Size, st = l.Write(r.cancel, in[fuse.WriteIn](r), data)
		return r.reply(st, unsafe.Sizeof(*o))
	case opFlush:
		return r.reply(l.Flush(r.cancel, in[fuse.FlushIn](r)), 0)
	case opRelease:
		l.Release(r.cancel, in[fuse.ReleaseIn](r))
		return r.reply(fuse.OK, 0)
	case opFsync:
		return r.reply(l.Fsync(r.cancel, in[fuse.FsyncIn](r)), 0)
	case opGetlk:
		o := out[fuse.LkOut](r)
		return r.reply(l.GetLk(r.cancel, in[fuse.LkIn](r), o), unsafe.Sizeof(*o))
	case opSetlk:
		return r.reply(l.SetLk(r.cancel, in[fuse.LkIn](r)), 0)
	case opSetlkw:
		return r.reply(l.SetLkw(r.cancel, in[fuse.LkIn](r)), 0)
	case opCopyFileRange:
		o := out[uint64](r)
		copied, st := l.CopyFileRange(r.cancel, in[fuse.CopyFileRangeIn](r))
		*o = uint64(copied)
		return r.reply(st, unsafe.Sizeof(*o))
	case opInterrupt:
		return r.interruptRequest(n)
	case opIoctl:
		return r.ioctl(n)
	}
	return r.dispatchName(n)
}

// read answers a READ. The data is put where it is sent from.
func (r *reader) read() []byte {
	q := in[fuse.ReadIn](r)
	buf := r.dataBuffer(int(min(q.Size, maxRequest)))
	res, st := r.d.layer.Read(r.cancel, q, buf[headerSize:])
	if st != fuse.OK {
		return r.reply(st, 0)
	}
	data, st := res.Bytes(buf[headerSize:])
	if st != fuse.OK {
		return r.reply(st, 0)
	}
	if len(data) > 0 && &data[0] != &buf[headerSize] {
		copy(buf[headerSize:], data)
	}
	o := (*fuse.OutHeader)(unsafe.Pointer(&buf[0]))
	*o = fuse.OutHeader{Length: uint32(headerSize + len(data)), Unique: q.Unique}
	return buf[:o.Length]
}

// interruptRequest passes FUSE_INTERRUPT on. EAGAIN has the kernel ask again: the
// request may have been read and not be known here yet (interrupts in
// Documentation/filesystems/fuse/fuse.rst). There is no other answer.
func (r *reader) interruptRequest(n int) []byte {
	unique := in[fuse.InterruptIn](r).Unique
	if a := r.d.answering(unique); a != nil && a.interrupt(unique) {
		return nil
	}
	size, _ := r.d.proto.HandleRequest([][]byte{r.in[:n]}, [][]byte{r.out})
	if size == 0 {
		return nil
	}
	return r.out[:size]
}

// passOn has go-fuse decode and answer a request.
func (r *reader) passOn(n int) []byte {
	buf := r.dataBuffer(maxRequest)
	size, st := r.d.proto.HandleRequest([][]byte{r.in[:n]}, [][]byte{buf})
	switch {
	case st != fuse.OK:
		return r.reply(st, 0)
	case size == 0:
		return nil
	}
	return buf[:size]
}
