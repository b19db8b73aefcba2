package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// accessACL is the extended attribute whose entries the mode bits are a part of (acl(5)).
const accessACL = "system.posix_acl_access"

// defaultACL is the extended attribute whose presence on a directory replaces
// the umask of who creates something in it (acl(5)).
const defaultACL = "system.posix_acl_default"

// modeFor applies the caller's umask, unless the directory's default ACL does it.
func modeFor(dir *node, mode, umask uint32) uint32 {
	if mode&umask&0o777 == 0 {
		return mode
	}
	if _, err := unix.Getxattr(magic(dir.fd), defaultACL, nil); err == nil {
		return mode
	}
	return mode &^ (umask & 0o777)
}

// make runs f, which makes name in dir, on the caller's behalf, and answers with what is there then.
func (l *Layer) make(h *fuse.InHeader, dir *node, name string, mode uint32, out *fuse.EntryOut, f func() error) fuse.Status {
	if err := l.creds.as(h, mode&unix.S_ISGID != 0, f); err != nil {
		return status(err)
	}
	return l.find(dir, name, out)
}

func (l *Layer) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	dir := l.nodes.get(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if e := l.entry(request{cancel: cancel, header: &in.InHeader, op: policy.OpMknod}, dir, name); e != 0 {
		return fuse.Status(e)
	}
	mode := modeFor(dir, in.Mode, in.Umask)
	return l.make(&in.InHeader, dir, name, mode, out, func() error { return unix.Mknodat(dir.fd, name, mode, int(in.Rdev)) })
}

func (l *Layer) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	dir := l.nodes.get(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if e := l.entry(request{cancel: cancel, header: &in.InHeader, op: policy.OpMkdir}, dir, name); e != 0 {
		return fuse.Status(e)
	}
	mode := modeFor(dir, in.Mode, in.Umask)
	return l.make(&in.InHeader, dir, name, mode, out, func() error { return unix.Mkdirat(dir.fd, name, mode) })
}

func (l *Layer) Symlink(cancel <-chan struct{}, h *fuse.InHeader, to, name string, out *fuse.EntryOut) fuse.Status {
	dir := l.nodes.get(h.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if e := l.entry(request{cancel: cancel, header: h, op: policy.OpSymlink}, dir, name); e != 0 {
		return fuse.Status(e)
	}
	return l.make(h, dir, name, 0, out, func() error { return unix.Symlinkat(to, dir.fd, name) })
}

func (l *Layer) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, n := l.nodes.get(in.NodeId), l.nodes.get(in.Oldnodeid)
	if dir == nil || n == nil {
		return fuse.Status(unix.ESTALE)
	}
	q := request{cancel: cancel, header: &in.InHeader, op: policy.OpLink}
	if _, e := l.decide(q, func() []string { return append(l.nodes.paths(n), l.nodes.entryPaths(dir, name)...) }); e != 0 {
		return fuse.Status(e)
	}
	err := retry(func() error { return unix.Linkat(n.fd, "", dir.fd, name, unix.AT_EMPTY_PATH) })
	if err != nil {
		return status(err)
	}
	l.nodes.bound(dir, name, n)
	l.renamed(n)
	if l.nodes.split(n) { // the answer may be about the other node
		l.notify.inode(n.id, -1)
	}
	return l.find(dir, name, out)
}

func (l *Layer) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	dir := l.nodes.get(h.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	return l.remove(request{cancel: cancel, header: h, op: policy.OpUnlink}, dir, name, 0)
}

func (l *Layer) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	dir := l.nodes.get(h.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	return l.remove(request{cancel: cancel, header: h, op: policy.OpRmdir}, dir, name, unix.AT_REMOVEDIR)
}

func (l *Layer) remove(q request, dir *node, name string, flags int) fuse.Status {
	if e := l.entry(q, dir, name); e != 0 {
		return fuse.Status(e)
	}
	if l.nodes.mountedOn(dir, name) {
		return fuse.EBUSY
	}
	n := l.nodes.child(dir, name)
	if err := retry(func() error { return unix.Unlinkat(dir.fd, name, flags) }); err != nil {
		return status(err)
	}
	l.nodes.unbound(dir, name)
	l.vanished(n)
	return fuse.OK
}

func (l *Layer) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	from, to := l.nodes.get(in.NodeId), l.nodes.get(in.Newdir)
	if from == nil || to == nil {
		return fuse.Status(unix.ESTALE)
	}
	q := request{cancel: cancel, header: &in.InHeader, op: policy.OpRename}
	if _, e := l.decide(q, func() []string { return append(l.nodes.entryPaths(from, name), l.nodes.entryPaths(to, newName)...) }); e != 0 {
		return fuse.Status(e)
	}
	if from.key.mount == to.key.mount && (l.nodes.mountedOn(from, name) || l.nodes.mountedOn(to, newName)) { // else EXDEV
		return fuse.EBUSY
	}
	rename := func() error { return unix.Renameat2(from.fd, name, to.fd, newName, uint(in.Flags)) }
	moves := l.relocating(from, name, to, newName)
	var err error
	if in.Flags&unix.RENAME_WHITEOUT != 0 { // makes an object, which belongs to the caller
		err = l.creds.as(&in.InHeader, false, rename)
	} else {
		err = retry(rename)
	}
	if err != nil {
		return status(err)
	}
	l.nodes.renamed(from, name, to, newName, in.Flags)
	moves.done()
	l.renamed(l.nodes.named(to, newName))
	if in.Flags&unix.RENAME_EXCHANGE != 0 {
		l.renamed(l.nodes.named(from, name))
	}
	return fuse.OK
}

// dropped are flags that the layer's own file keeps and the description below
// must not have; O_CREAT and O_EXCL are done by then.
const dropped = unix.O_NOFOLLOW | unix.O_CREAT | unix.O_EXCL | unix.O_NOCTTY | unix.O_NONBLOCK | fuse.FMODE_EXEC | unix.O_ASYNC

func (l *Layer) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	dir := l.nodes.get(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if e := l.entry(request{cancel: cancel, header: &in.InHeader, op: policy.OpCreate}, dir, name); e != 0 {
		return fuse.Status(e)
	}
	mode := modeFor(dir, in.Mode, in.Umask)
	flags := int(in.Flags)&^dropped | unix.O_NOFOLLOW | unix.O_CLOEXEC
	h := newHandle(-1, in.Flags)
	h.exact = in.Flags&unix.O_APPEND != 0 || mode&(unix.S_ISUID|unix.S_ISGID) != 0 // see needsLayer: it is new
	for tries := 0; ; tries++ {
		err := l.creds.as(&in.InHeader, mode&unix.S_ISGID != 0, func() (err error) {
			h.fd, err = unix.Openat(dir.fd, name, flags|unix.O_CREAT|unix.O_EXCL, mode)
			return err
		})
		if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
			// Someone made it since the kernel looked. That file's permissions were not checked by anybody: open it with the caller's own.
			h.fd, err = l.creds.open(&in.InHeader, dir.fd, name, flags)
			h.exact = true // its mode is not looked at
			if err == unix.ENOENT && tries < 8 {
				continue
			}
		}
		if err != nil {
			return status(err)
		}
		break
	}
	return l.created(h, dir, name, "", &in.InHeader, out)
}

func (l *Layer) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	dir := l.nodes.get(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if e := l.entry(request{cancel: cancel, header: &in.InHeader, op: policy.OpTmpfile}, dir, ""); e != 0 {
		return fuse.Status(e)
	}
	mode := modeFor(dir, in.Mode, in.Umask)
	flags := int(in.Flags)&^(dropped&^unix.O_EXCL) | unix.O_TMPFILE | unix.O_CLOEXEC // O_EXCL: may never get a name
	h := newHandle(-1, in.Flags)
	h.exact = in.Flags&unix.O_APPEND != 0 || mode&(unix.S_ISUID|unix.S_ISGID) != 0
	err := l.creds.as(&in.InHeader, mode&unix.S_ISGID != 0, func() (err error) {
		h.fd, err = unix.Openat(dir.fd, ".", flags, mode)
		return err
	})
	if err != nil {
		return status(err)
	}
	return l.created(h, nil, "", l.nodes.entryPaths(dir, "")[0], &in.InHeader, out)
}

// created answers with the node and the handle of a new file, which has a name in dir or, without
// one, a path for rules. The mode that the file is open in depends on either.
func (l *Layer) created(h *handle, dir *node, name, path string, by *fuse.InHeader, out *fuse.CreateOut) fuse.Status {
	fd, err := unix.Open(magic(h.fd), unix.O_PATH|unix.O_CLOEXEC, 0) // not by name: that may be another file's by now
	if err != nil {
		h.close()
		return status(err)
	}
	if st := l.enter(fd, dir, name, &out.EntryOut); !st.Ok() {
		h.close()
		return st
	}
	h.node = l.nodes.get(out.NodeId)
	if dir == nil {
		l.nodes.setLast(h.node, path)
	}
	l.handles.add(h)
	l.enterMode(h, by, &out.OpenOut)
	return fuse.OK
}
