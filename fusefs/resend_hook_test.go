package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
)

// OnPlace has f told which places requests come to; again says that the request was sent before, to another server.
func OnPlace(f func(place string, opcode uint32, again bool)) {
	reached = func(p place, h *fuse.InHeader) { f(string(p), h.Opcode, resent(h)) }
}

// Opcodes by name, for tests that choose one.
var Opcodes = map[string]uint32{
	"lookup": opLookup, "getattr": opGetattr, "setattr": 4, "symlink": opSymlink, "mknod": opMknod, "mkdir": opMkdir, "unlink": opUnlink, "rmdir": opRmdir,
	"rename": opRename, "rename2": opRename2, "link": opLink, "open": opOpen, "read": opRead, "write": opWrite, "release": opRelease, "fsync": opFsync,
	"setxattr": 21, "removexattr": 24, "flush": opFlush, "opendir": 27, "readdir": 28, "releasedir": 29, "getlk": opGetlk, "setlk": opSetlk, "setlkw": opSetlkw,
	"create": opCreate, "interrupt": opInterrupt, "fallocate": 43, "readdirplus": 44, "copy_file_range": opCopyFileRange, "copy_file_range32": 47, "tmpfile": 51,
}

// Known is how many objects the kernel knows of the layer, without its root, and how many of its files are open.
func (l *Layer) Known() (nodes, handles int) {
	l.handles.mu.RLock()
	defer l.handles.mu.RUnlock()
	return l.nodes.count() - 1, len(l.handles.m)
}

// Slots is how many slots of the ledger were ever used.
func (l *Layer) Slots() int { return int(l.ledger.head.mark) - 1 }
