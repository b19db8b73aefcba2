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
	s := l.ledger.slot(h)
	again := s.beginNow(h)
	err := l.creds.as(h, mode&unix.S_ISGID != 0, f)
	reach(placeDone, h)
	if err != nil && (err != unix.EEXIST || !again || !s.made(l.ledger.opened, h, dir, name, mode&unix.S_IFMT)) {
		return status(err)
	}
	return l.found(h, dir, name, out)
}

// found is find for a request whose look-up is booked.
func (l *Layer) found(h *fuse.InHeader, dir *node, name string, out *fuse.EntryOut) fuse.Status {
	st := l.find(dir, name, out)
	if st.Ok() {
		l.ledger.slot(h).counts(h, out.NodeId)
	}
	return st
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
	return l.make(&in.InHeader, dir, name, mode|unix.S_IFDIR, out, func() error { return unix.Mkdirat(dir.fd, name, mode) })
}

func (l *Layer) Symlink(cancel <-chan struct{}, h *fuse.InHeader, to, name string, out *fuse.EntryOut) fuse.Status {
	dir := l.nodes.get(h.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if e := l.entry(request{cancel: cancel, header: h, op: policy.OpSymlink}, dir, name); e != 0 {
		return fuse.Status(e)
	}
	return l.make(h, dir, name, unix.S_IFLNK, out, func() error { return unix.Symlinkat(to, dir.fd, name) })
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
	again := l.ledger.slot(&in.InHeader).begin(&in.InHeader, n.key.inode(), inodeID{})
	err := retry(func() error { return unix.Linkat(n.fd, "", dir.fd, name, unix.AT_EMPTY_PATH) })
	reach(placeDone, &in.InHeader)
	if err != nil && (err != unix.EEXIST || !again || at(dir, name) != n.key.inode()) {
		return status(err)
	}
	l.nodes.bound(dir, name, n)
	l.renamed(n)
	if l.nodes.split(n) { // the answer may be about the other node
		l.notify.inode(n.id, -1)
	}
	return l.found(&in.InHeader, dir, name, out)
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
	s := l.ledger.slot(q.header)
	again := s.begin(q.header, l.nodes.known(dir, name), inodeID{})
	if !again || !s.removed(dir, name) {
		if err := retry(func() error { return unix.Unlinkat(dir.fd, name, flags) }); err != nil {
			return status(err)
		}
	}
	reach(placeDone, q.header)
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
	s := l.ledger.slot(&in.InHeader)
	again := s.beginMove(&in.InHeader, in.Newdir, l.nodes.known(from, name), l.nodes.known(to, newName))
	var err error
	if again && s.moved(from, name, to, newName, in.Flags) {
		// What is left is to follow it.
	} else if in.Flags&unix.RENAME_WHITEOUT != 0 { // makes an object, which belongs to the caller
		err = l.creds.as(&in.InHeader, false, rename)
	} else {
		err = retry(rename)
	}
	reach(placeDone, &in.InHeader)
	if err != nil {
		return status(err)
	}
	if !again || l.nodes.known(to, newName) != s.object { // else it was followed, too
		l.nodes.renamed(from, name, to, newName, in.Flags)
	}
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
	s := l.ledger.slot(&in.InHeader)
	again := s.beginNow(&in.InHeader)
	for tries := 0; ; tries++ {
		err := l.creds.as(&in.InHeader, mode&unix.S_ISGID != 0, func() (err error) {
			h.fd, err = unix.Openat(dir.fd, name, flags|unix.O_CREAT|unix.O_EXCL, mode)
			return err
		})
		reach(placeDone, &in.InHeader)
		if err == unix.EEXIST && again && s.made(l.ledger.opened, &in.InHeader, dir, name, unix.S_IFREG) {
			h.fd, err = openMade(dir, name, flags)
		} else if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
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
	reach(placeDone, &in.InHeader)
	if err != nil {
		return status(err)
	}
	return l.created(h, nil, "", l.nodes.entryPaths(dir, "")[0], &in.InHeader, out)
}

// openMade opens a file that the caller has made, whatever its mode lets the caller do: who makes a file may do with it
// what it asked for.
func openMade(dir *node, name string, flags int) (fd int, err error) {
	path, err := openPath(dir.fd, name)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(path) }() // O_PATH
	err = retry(func() error {
		fd, err = unix.Open(magic(path), flags&^unix.O_NOFOLLOW, 0)
		return err
	})
	return fd, err
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
	s := l.ledger.slot(by)
	s.counts(by, out.NodeId)
	h.node = l.nodes.get(out.NodeId)
	if dir == nil {
		l.nodes.setLast(h.node, path)
	}
	l.handles.add(h, s, by)
	l.enterMode(h, by, &out.OpenOut)
	l.handles.kept.handle(h)
	return fuse.OK
}
