package fusefs

import "golang.org/x/sys/unix"

// An O_DIRECT file has a description below that is O_DIRECT, too, so that what the
// file system refuses is refused. Our buffers are aligned; FUSE does not say whether
// the program's is.

// sector is the least that an offset and a length are multiples of.
const sector = 512

// refusedPart reports whether a request that the file system below has refused with
// EINVAL may go past O_DIRECT, because it is not what the program asked for: whole is
// false, or the kernel has cut a transfer by the pages of a buffer that does not begin
// on one (fuse_get_user_pages in fs/fuse/file.c), where the program has no say.
func (h *handle) refusedPart(off, size int64, whole bool) bool {
	if h.flags.Load()&unix.O_DIRECT == 0 {
		return false
	}
	return h.cutShort(off, size) || !whole
}

// cutShort reports whether a request is a part of such a transfer: the first one, of
// nearly the greatest size, or one where the last left off.
func (h *handle) cutShort(off, size int64) bool {
	full := size > maxRequest-pageSize
	first := full && off%sector == 0 && size%sector != 0
	if !first && (off == 0 || h.cut.Load() != off) {
		return false
	}
	if full {
		h.cut.Store(off + size)
		h.keep(func(s *handleSlot) { s.cut.Store(off + size) })
	}
	return true
}
