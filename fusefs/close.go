package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// EndFlushes spares a layer that is about to be taken off the FLUSH of each
// close: the next one is answered with ENOSYS, after which the kernel sends none
// on this connection (fuse_flush in fs/fuse/file.c). FLUSH is also what ends
// POSIX locks, so that a layer with such locks goes on as it is, and false is
// returned. Who takes such a lock after the call loses it when the description it
// was taken through is closed, not before.
func (l *Layer) EndFlushes() bool {
	if len(l.LockedFiles()) > 0 {
		return false
	}
	l.ending.Store(true)
	l.nodes.kept.numbers(func(h *tableHead) { h.ending.Store(true) })
	return true
}

// Flush is sent for each close(2). POSIX locks of the closing process go
// whatever a rule says, because they go with any close; but not when a swapper
// closes a file that it has moved to another inode of the same file below.
func (l *Layer) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h := l.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	closing := func(o *lockOwner) bool { return o.id == in.LockOwner }
	if !l.moving(h.node, closing) && !h.node.locks.stays(closing) {
		h.node.locks.drop(closing)
		if h.posixOwner.CompareAndSwap(in.LockOwner, 0) { // the name may be used again
			h.keep(func(s *handleSlot) { s.posixOwner.CompareAndSwap(in.LockOwner, 0) })
		}
	}
	if l.ending.Load() {
		return fuse.ENOSYS
	}
	if e := l.node(request{cancel: cancel, header: &in.InHeader, op: policy.OpFlush}, h.node); e != 0 {
		return fuse.Status(e)
	}
	if h.dir || h.flags.Load()&unix.O_ACCMODE == unix.O_RDONLY || !l.answersClose(h.node) {
		return fuse.OK
	}
	l.ledger.slot(&in.InHeader).begin(&in.InHeader, inodeID{}, inodeID{})
	// Closing a duplicate makes a file system below that reports errors at close (NFS, FUSE) report them now.
	d, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return status(err)
	}
	if err := unix.Close(d); err != nil && err != unix.EINTR {
		return status(err)
	}
	return fuse.OK
}

// answersClose reports whether the file system of a node may have something to
// say when a descriptor is closed (flush in struct file_operations). The local
// ones have not.
func (l *Layer) answersClose(n *node) bool {
	dev := unix.Mkdev(n.key.major, n.key.minor)
	if answers, known := l.closes.Load(dev); known {
		return answers.(bool)
	}
	var s unix.Statfs_t
	if unix.Fstatfs(n.fd, &s) != nil {
		return true
	}
	answers := true
	switch s.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC:
		answers = false
	}
	l.closes.Store(dev, answers)
	return answers
}

// fsyncData is FUSE_FSYNC_FDATASYNC of include/uapi/linux/fuse.h.
const fsyncData = 1

func (l *Layer) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	op := policy.OpFsync
	if in.FsyncFlags&fsyncData != 0 {
		op = policy.OpFdatasync
	}
	return l.fsync(cancel, in, op)
}

func (l *Layer) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return l.fsync(cancel, in, policy.OpFsyncdir)
}

func (l *Layer) fsync(cancel <-chan struct{}, in *fuse.FsyncIn, op policy.Op) fuse.Status {
	h := l.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	c, e := l.judge(request{cancel: cancel, header: &in.InHeader, op: op}, h.node)
	if e != 0 {
		return fuse.Status(e)
	}
	if c.is(ActionLost) {
		l.record(c)
		return fuse.OK
	}
	fd, err := h.file()
	if err != nil {
		return status(err)
	}
	l.blocking(&in.InHeader)
	l.ledger.slot(&in.InHeader).begin(&in.InHeader, inodeID{}, inodeID{}) // an error of write-back is reported once
	sync := unix.Fsync
	if in.FsyncFlags&fsyncData != 0 {
		sync = unix.Fdatasync
	}
	err = retry(func() error { return sync(fd) })
	reach(placeDone, &in.InHeader)
	return status(err)
}

func (l *Layer) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	l.release(cancel, in, policy.OpRelease)
}

func (l *Layer) ReleaseDir(in *fuse.ReleaseIn) { l.release(nil, in, policy.OpReleasedir) }

func (l *Layer) release(cancel <-chan struct{}, in *fuse.ReleaseIn, op policy.Op) {
	s := l.ledger.slot(&in.InHeader)
	h := l.handles.get(in.Fh)
	if h == nil {
		if s.begunBefore(&in.InHeader) && s.position == releasesAdopted { // by a server that may have died before it said so
			l.released(in.Fh)
		}
		return
	}
	_ = l.node(request{cancel: cancel, header: &in.InHeader, op: op}, h.node) // nobody waits for a release
	if s != nil {
		s.book(&in.InHeader)
		if h.adopted {
			s.position = releasesAdopted
		}
		s.begin(&in.InHeader, inodeID{}, inodeID{})
	}
	if l.handles.remove(in.Fh) == nil {
		return
	}
	// POSIX locks went with FLUSH. What is left are OFD locks whose kind could not be told.
	last := func(o *lockOwner) bool { return o.fh == h.id }
	if !l.moving(h.node, last) && !h.node.locks.stays(last) {
		h.node.locks.drop(last)
	}
	if owner := h.posixOwner.Load(); owner != 0 && l.ending.Load() { // there was no FLUSH
		h.node.locks.drop(func(o *lockOwner) bool { return o.id == owner })
	}
	l.leaveMode(h)
	l.vanished(h.node)
	h.close()
	reach(placeDone, &in.InHeader)
	if h.adopted {
		l.released(h.id)
	}
}

// releasesAdopted, in ledgerSlot.position, says that a RELEASE is about an adopted description.
const releasesAdopted = 1

func (l *Layer) released(handle uint64) {
	if l.o.Released != nil {
		l.o.Released(handle)
	}
}
