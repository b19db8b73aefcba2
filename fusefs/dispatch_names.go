package fusefs

import (
	"bytes"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Requests that make, move or remove a name (enum fuse_opcode in
// include/uapi/linux/fuse.h). go-fuse, which would decode them, keeps a name in the
// root for itself (pollHackName in its fuse/poll.go).
const (
	opSymlink = 6
	opMknod   = 8
	opMkdir   = 9
	opRmdir   = 11
	opRename  = 12
	opLink    = 13
	opRename2 = 45
)

// renameIn is struct fuse_rename_in; that of RENAME2 is fuse.RenameIn.
type renameIn struct {
	fuse.InHeader
	Newdir uint64
}

// names are the two strings at an offset of the request, which the kernel ends with zeros.
func (r *reader) names(at uintptr, n int) (a, b string, ok bool) { return namesIn(r.in[at:n]) }

func namesIn(request []byte) (a, b string, ok bool) {
	first, rest, ok := bytes.Cut(request, []byte{0})
	if !ok {
		return "", "", false
	}
	second, _, ok := bytes.Cut(rest, []byte{0})
	return string(first), string(second), ok
}

// dispatchName answers one of these requests.
func (r *reader) dispatchName(n int) []byte {
	h, l := r.header(), r.d.layer
	size := fixed[h.Opcode]
	o := out[fuse.EntryOut](r)
	switch h.Opcode {
	case opMknod:
		return r.reply(l.Mknod(r.cancel, in[fuse.MknodIn](r), r.name(size, n), o), unsafe.Sizeof(*o))
	case opMkdir:
		return r.reply(l.Mkdir(r.cancel, in[fuse.MkdirIn](r), r.name(size, n), o), unsafe.Sizeof(*o))
	case opLink:
		return r.reply(l.Link(r.cancel, in[fuse.LinkIn](r), r.name(size, n), o), unsafe.Sizeof(*o))
	case opRmdir:
		return r.reply(l.Rmdir(r.cancel, h, r.name(size, n)), 0)
	}
	a, b, ok := r.names(size, n)
	if !ok {
		r.d.log.Error("a request from /dev/fuse without its two names", "opcode", h.Opcode)
		return r.reply(fuse.EIO, 0)
	}
	switch h.Opcode {
	case opSymlink:
		return r.reply(l.Symlink(r.cancel, h, b, a, o), unsafe.Sizeof(*o))
	case opRename:
		q := in[renameIn](r)
		return r.reply(l.Rename(r.cancel, &fuse.RenameIn{InHeader: q.InHeader, Newdir: q.Newdir}, a, b), 0)
	case opRename2:
		return r.reply(l.Rename(r.cancel, in[fuse.RenameIn](r), a, b), 0)
	}
	return r.reply(fuse.ENOSYS, 0)
}
