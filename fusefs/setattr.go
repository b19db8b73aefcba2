package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

func (l *Layer) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := l.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	q := request{cancel: cancel, header: &in.InHeader, op: policy.OpSetattr}
	if in.Valid&fuse.FATTR_SIZE != 0 {
		q.size = int64(in.Size)
	}
	if e := l.node(q, n); e != 0 {
		return fuse.Status(e)
	}
	var h *handle
	if in.Valid&fuse.FATTR_FH != 0 {
		h = l.handles.get(in.Fh)
	}
	l.ledger.slot(&in.InHeader).begin(&in.InHeader, inodeID{}, inodeID{})
	if err := l.change(&in.InHeader, n, h, &in.SetAttrInCommon); err != nil {
		return status(err)
	}
	reach(placeDone, &in.InHeader)
	var st unix.Statx_t
	if err := statx(n.fd, &st); err != nil {
		return status(err)
	}
	fillAttr(&out.Attr, &st)
	out.SetTimeout(l.attrTime(n))
	return fuse.OK
}

// change makes the changes of one SETATTR, in the order in which a file system makes them (notify_change in fs/attr.c).
func (l *Layer) change(by *fuse.InHeader, n *node, h *handle, in *fuse.SetAttrInCommon) error {
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID|fuse.FATTR_MODE|fuse.FATTR_SIZE|fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return l.changeNothing(by, n)
	}
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		uid, gid := -1, -1
		if u, ok := in.GetUID(); ok {
			uid = int(u)
		}
		if g, ok := in.GetGID(); ok {
			gid = int(g)
		}
		if err := retry(func() error { return unix.Fchownat(n.fd, "", uid, gid, unix.AT_EMPTY_PATH) }); err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		if err := retry(func() error { return unix.Fchmodat(unix.AT_FDCWD, magic(n.fd), mode, 0) }); err != nil {
			return err
		}
	}
	if size, ok := in.GetSize(); ok {
		t := l.resizing(n, int64(size))
		err := truncate(n, h, int64(size))
		t.done()
		if err != nil {
			return err
		}
		if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
			if err := dropSetID(by, n.fd); err != nil {
				return err
			}
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return nil
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	set := func(i int, valid, now bool, sec uint64, nsec uint32) {
		switch {
		case now:
			times[i].Nsec = unix.UTIME_NOW
		case valid:
			times[i] = unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
		}
	}
	set(0, in.Valid&fuse.FATTR_ATIME != 0, in.Valid&fuse.FATTR_ATIME_NOW != 0, in.Atime, in.Atimensec)
	set(1, in.Valid&fuse.FATTR_MTIME != 0, in.Valid&fuse.FATTR_MTIME_NOW != 0, in.Mtime, in.Mtimensec)
	return retry(func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, magic(n.fd), times, 0) })
}

// truncate sets the size through the file's own description where it can, so
// that unlinked files and those whose mode forbids a new open work.
func truncate(n *node, h *handle, size int64) error {
	if h != nil && !h.dir && h.flags.Load()&unix.O_ACCMODE != unix.O_RDONLY {
		return retry(func() error { return unix.Ftruncate(h.fd, size) })
	}
	return retry(func() error { return unix.Truncate(magic(n.fd), size) })
}

// dropSetID clears the set-user-ID bit, and the set-group-ID bit where it means
// execution or the caller is not in the group, as the kernel does when someone
// without CAP_FSETID changes a file (setattr_should_drop_suidgid in fs/attr.c).
func dropSetID(h *fuse.InHeader, fd int) error {
	var st unix.Statx_t
	if err := statx(fd, &st); err != nil {
		return err
	}
	mode := uint32(st.Mode) & 0o7777
	want := mode &^ unix.S_ISUID
	if mode&unix.S_ISGID != 0 && (mode&unix.S_IXGRP != 0 || !member(h.Pid, h.Gid, st.Gid)) {
		want &^= unix.S_ISGID
	}
	if want == mode {
		return nil
	}
	return retry(func() error { return unix.Fchmodat(unix.AT_FDCWD, magic(fd), want, 0) })
}

// changeNothing does what a SETATTR without any attribute is sent for. It is a
// chown(2) to no owner, which clears set-ID bits all the same and is refused to
// strangers where it does; or the kernel is about to send FALLOCATE or
// COPY_FILE_RANGE of someone who may not keep these bits (file_modified in
// fs/inode.c, and fuse_setattr in fs/fuse/dir.c, which leaves them to the server).
func (l *Layer) changeNothing(h *fuse.InHeader, n *node) error {
	if c, ok := callOf(h.Pid); !ok || !c.among(chownCalls) {
		if !lacks(h.Pid, unix.CAP_FSETID) {
			return nil // it was about security.capability, which the write below clears
		}
		return dropSetID(h, n.fd)
	}
	chown := func() error { return unix.Fchownat(n.fd, "", -1, -1, unix.AT_EMPTY_PATH) }
	if h.Uid == 0 || !lacks(h.Pid, unix.CAP_FOWNER) {
		return retry(chown)
	}
	return l.creds.plainly(h, chown)
}
