package fusefs

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// Attributes are overridden in the answer to a program that asks for them, and
// nowhere else. The kernel keeps what a GETATTR answers, and works with it: it
// would cut a file's pages at a size that is not the file's, and grant
// permissions that nobody has. But an answer that is older than the last
// invalidation of the inode it only passes on (fuse_change_attributes in
// fs/fuse/inode.c compares attr_version). So the layer invalidates the inode
// first, then answers: the program sees the attributes that the rule says, the
// kernel goes on with the true ones.

// override applies what rules override to attributes that are about to be
// answered. It reports false when the kernel would keep them: then they stay true.
func (l *Layer) override(c *change, n *node, st *unix.Statx_t) bool {
	if !c.is(ActionAttr) {
		return false
	}
	if !l.notify.passOn(n.id) {
		return false
	}
	a := &c.attr
	set(&st.Ino, a.Ino)
	set(&st.Size, a.Size)
	set(&st.Blocks, a.Blocks)
	setTime(&st.Atime, a.Atime)
	setTime(&st.Mtime, a.Mtime)
	setTime(&st.Ctime, a.Ctime)
	set(&st.Nlink, a.Nlink)
	set(&st.Uid, a.UID)
	set(&st.Gid, a.GID)
	if a.Perm != nil {
		st.Mode = st.Mode&^0o7777 | uint16(*a.Perm)
	}
	return true
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func setTime(to *unix.StatxTimestamp, from *time.Time) {
	if from != nil {
		to.Sec, to.Nsec = from.Unix(), uint32(from.Nanosecond())
	}
}

// mergeAttr adds what next overrides and a does not.
func mergeAttr(a, next policy.Attr) policy.Attr {
	add(&a.Ino, next.Ino)
	add(&a.Size, next.Size)
	add(&a.Blocks, next.Blocks)
	add(&a.Atime, next.Atime)
	add(&a.Mtime, next.Mtime)
	add(&a.Ctime, next.Ctime)
	add(&a.Perm, next.Perm)
	add(&a.Nlink, next.Nlink)
	add(&a.UID, next.UID)
	add(&a.GID, next.GID)
	return a
}

func add[T any](to **T, from *T) {
	if *to == nil {
		*to = from
	}
}
