package fusefs

import (
	"slices"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// cacheTime is how long the kernel may keep names and attributes that no rule
// can act on: a change made behind the layer is seen after it at the latest.
const cacheTime = 500 * time.Millisecond

var (
	entryOps = policy.OpSet(0).With(policy.OpLookup)
	attrOps  = policy.OpSet(0).With(policy.OpGetattr).With(policy.OpAccess)
)

// status is the answer for an error of the file system below. ENOSYS is never
// given: the kernel would stop sending the operation.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if e, ok := err.(syscall.Errno); ok && e != unix.ENOSYS {
		return fuse.Status(e)
	}
	return fuse.Status(unix.EOPNOTSUPP)
}

func fillAttr(a *fuse.Attr, s *unix.Statx_t) {
	*a = fuse.Attr{
		Ino: s.Ino, Size: s.Size, Blocks: s.Blocks, Mode: uint32(s.Mode), Nlink: s.Nlink,
		Owner: fuse.Owner{Uid: s.Uid, Gid: s.Gid}, Rdev: uint32(unix.Mkdev(s.Rdev_major, s.Rdev_minor)), Blksize: s.Blksize,
		Atime: uint64(s.Atime.Sec), Atimensec: s.Atime.Nsec,
		Mtime: uint64(s.Mtime.Sec), Mtimensec: s.Mtime.Nsec,
		Ctime: uint64(s.Ctime.Sec), Ctimensec: s.Ctime.Nsec,
	}
}

// answer fills the reply about an object that was found or made under a name.
func (l *Layer) answer(n *node, st *unix.Statx_t, out *fuse.EntryOut) {
	out.NodeId, out.Generation = n.id, 1
	fillAttr(&out.Attr, st)
	out.SetAttrTimeout(l.attrTime(n))
	if l.settling() {
		return
	}
	if set := l.rules.Load(); set.ops&entryOps == 0 || !set.could(entryOps, l.nodes.paths(n)) {
		out.SetEntryTimeout(cacheTime)
	}
}

// settling reports that a swapper is at work: the target still uses some of its
// files below, and a size that was cached meanwhile would be wrong once they are
// on the layer (lseek(2) with SEEK_END trusts it).
func (l *Layer) settling() bool { return l.trusted.n.Load() > 0 }

// attrTime is how long the kernel may keep attributes: not at all where a rule
// can act on them, or where it has two inodes of the file and would see what is
// done through one in that one only (retire.go).
func (l *Layer) attrTime(n *node) time.Duration {
	if l.settling() || l.nodes.split(n) {
		return 0
	}
	set := l.rules.Load()
	if set.ops&attrOps != 0 && set.could(attrOps, l.nodes.paths(n)) {
		return 0
	}
	return cacheTime
}

// find looks a name up below and answers with its node.
func (l *Layer) find(dir *node, name string, out *fuse.EntryOut) fuse.Status {
	if known := l.nodes.named(dir, name); known != nil {
		// Mostly it is still what it was: its node pins it, so that the same numbers mean the same object.
		var st unix.Statx_t
		if statxAt(dir.fd, name, &st) == nil && keyOf(&st) == known.key && l.nodes.again(known) {
			l.answer(known, &st, out)
			return fuse.OK
		}
	}
	fd, err := openPath(dir.fd, name)
	if err != nil {
		if err == unix.ENOENT {
			l.nodes.unbound(dir, name)
		}
		return status(err)
	}
	return l.enter(fd, dir, name, out)
}

func openPath(dir int, name string) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// enter answers with the node of fd, which it owns.
func (l *Layer) enter(fd int, dir *node, name string, out *fuse.EntryOut) fuse.Status {
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		_ = unix.Close(fd) // O_PATH
		return status(err)
	}
	n := l.nodes.enter(fd, &st, dir, name)
	l.answer(n, &st, out)
	l.trim()
	return fuse.OK
}

// Lookup implements fuse.RawFileSystem, as do the methods below.
func (l *Layer) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name == "." || name == ".." {
		return l.lookupSelf(h, name, out)
	}
	dir := l.nodes.get(h.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if dir == l.nodes.root {
		if a := l.armed.token(h.Pid, name); a != nil {
			return l.findToken(a, out)
		}
	}
	if q := (request{cancel: cancel, header: h, op: policy.OpLookup}); l.rules.Load().ops&q.ops() != 0 && !l.mounted(dir, name) {
		if e := l.entry(q, dir, name); e != 0 {
			return fuse.Status(e)
		}
	}
	return l.found(h, dir, name, out)
}

// mounted reports whether something is mounted on a name of the layer, or below it: after a look-up that fails the kernel
// takes that off (fuse_dentry_revalidate in fs/fuse/dir.c, d_invalidate in fs/dcache.c).
func (l *Layer) mounted(dir *node, name string) bool {
	return l.o.Mounted != nil && slices.ContainsFunc(l.nodes.entryPaths(dir, name), l.o.Mounted)
}

// findToken answers for a name that stands for an object without one.
func (l *Layer) findToken(a *armedAdoption, out *fuse.EntryOut) fuse.Status {
	fd, err := unix.Open(magic(a.Description), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return status(err)
	}
	st := l.enter(fd, nil, "", out)
	if st.Ok() {
		if n := l.nodes.get(out.NodeId); n != nil {
			l.nodes.setLast(n, a.Path)
		}
		out.SetEntryTimeout(0)
	}
	return st
}

func (l *Layer) Forget(id, lookups uint64) {
	if n := l.nodes.forget(id, lookups); n != nil {
		l.dropBacking(n)
		l.nodes.leave(n)
	}
}

// attributes reads an object's attributes, through the handle if there is one:
// its description outlives every name.
func (l *Layer) attributes(n *node, fh uint64, has bool, st *unix.Statx_t) error {
	if has {
		if h := l.handles.get(fh); h != nil && h.fd >= 0 {
			return statx(h.fd, st)
		}
	}
	return statx(n.fd, st)
}

func (l *Layer) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := l.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	op := policy.OpGetattr
	if in.Flags()&fuse.FUSE_GETATTR_FH == 0 {
		op = l.attrOp(&in.InHeader, n)
	}
	c, e := l.judge(request{cancel: cancel, header: &in.InHeader, op: op}, n)
	if e != 0 {
		return fuse.Status(e)
	}
	var st unix.Statx_t
	if err := l.attributes(n, in.Fh(), in.Flags()&fuse.FUSE_GETATTR_FH != 0, &st); err != nil {
		return status(err)
	}
	l.override(c, n, &st)
	fillAttr(&out.Attr, &st)
	out.SetTimeout(l.attrTime(n))
	return fuse.OK
}

func (l *Layer) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n := l.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	c, e := l.judge(request{cancel: cancel, header: &in.InHeader, op: policy.OpGetattr}, n)
	if e != 0 {
		return fuse.Status(e)
	}
	var st unix.Statx_t
	if err := l.attributes(n, in.Fh, in.GetattrFlags&fuse.FUSE_GETATTR_FH != 0, &st); err != nil {
		return status(err)
	}
	l.override(c, n, &st)
	st.Mask &= unix.STATX_BASIC_STATS | unix.STATX_BTIME // the kernel knows the mount better than we
	out.FromStatx(&st)
	out.SetTimeout(l.attrTime(n))
	return fuse.OK
}

// Access is sent on a mount without default_permissions by kernels that do not
// check access lists. See attrOp for the others.
func (l *Layer) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	n := l.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if e := l.node(request{cancel: cancel, header: &in.InHeader, op: policy.OpAccess}, n); e != 0 {
		return fuse.Status(e)
	}
	return status(l.creds.access(&in.InHeader, n.fd, in.Mask))
}

func (l *Layer) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n := l.nodes.get(h.NodeId)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	c, e := l.judge(request{cancel: cancel, header: h, op: policy.OpReadlink}, n)
	if e != 0 {
		return nil, fuse.Status(e)
	}
	b := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", b)
	if c != nil {
		l.answerWith(c, b[:max(size, 0)], 0)
	}
	if err != nil {
		return nil, status(err)
	}
	return b[:size], fuse.OK
}

func (l *Layer) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n := l.nodes.get(h.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	q := request{cancel: cancel, header: h, op: policy.OpStatfs}
	if e := l.node(q, n); e != 0 {
		return fuse.Status(e)
	}
	var s syscall.Statfs_t
	if err := retry(func() error { return syscall.Fstatfs(n.fd, &s) }); err != nil {
		return status(err)
	}
	l.fitStatfs(&q, n, &s)
	out.FromStatfsT(&s)
	return fuse.OK
}
