package fusefs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

func (l *Layer) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := l.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if h, err, ok := l.adopt(in.Pid, n, in.Flags, false); ok {
		if err != nil {
			return status(err)
		}
		l.enterMode(h, &in.InHeader, out)
		l.handles.kept.handle(h)
		return fuse.OK
	}
	if e := l.node(request{cancel: cancel, header: &in.InHeader, op: policy.OpOpen}, n); e != 0 {
		return fuse.Status(e)
	}
	stopped := l.awaitMove(cancel, n, &in.InHeader)
	if in.Flags&(unix.O_ACCMODE|unix.O_TRUNC|unix.O_DIRECT) == unix.O_RDONLY { // the file system below has a say in O_DIRECT
		return l.openToRead(n, in, out, stopped)
	}
	if in.Flags&unix.O_TRUNC != 0 {
		l.ledger.slot(&in.InHeader).begin(&in.InHeader, inodeID{}, inodeID{})
	}
	t := l.truncating(n, in.Flags)
	fd, err := reopen(n, in.Flags)
	t.done()
	reach(placeDone, &in.InHeader)
	if err != nil {
		return status(err)
	}
	if in.Flags&unix.O_TRUNC != 0 && in.Mode&fuse.OPEN_KILL_SUIDGID != 0 {
		if err := dropSetID(&in.InHeader, fd); err != nil {
			_ = unix.Close(fd) // never written
			return status(err)
		}
	}
	h := newHandle(fd, in.Flags)
	h.node, h.exact, h.stopped = n, needsLayer(n, in.Flags), stopped
	l.handles.add(h, l.ledger.slot(&in.InHeader), &in.InHeader)
	l.enterMode(h, &in.InHeader, out)
	l.handles.kept.handle(h)
	return fuse.OK
}

// openToRead opens a file that will only be read. If the kernel reads it by
// itself, it has a description of its own, and ours is opened when something
// else is asked for: most files are only read and closed. One that can be written
// is opened at once, so that it has its own share of errors of write-back (fsync(2)).
func (l *Layer) openToRead(n *node, in *fuse.OpenIn, out *fuse.OpenOut, stopped bool) fuse.Status {
	h := newHandle(-1, in.Flags)
	h.node, h.stopped = n, stopped
	l.handles.add(h, l.ledger.slot(&in.InHeader), &in.InHeader)
	l.enterMode(h, &in.InHeader, out)
	if h.mode != modePassthrough {
		if _, err := h.file(); err != nil {
			l.handles.remove(h.id)
			l.leaveMode(h)
			return status(err)
		}
	}
	l.handles.kept.handle(h)
	return fuse.OK
}

// reopen opens the file of a node anew. With O_NONBLOCK the open, and only that,
// does not wait for somebody to give a lease back (F_SETLEASE, fcntl(2)).
func reopen(n *node, flags uint32) (fd int, err error) {
	how := int(flags) &^ dropped
	nonblock := int(flags) & unix.O_NONBLOCK
	err = retry(func() error {
		fd, err = unix.Open(magic(n.fd), how|nonblock|unix.O_CLOEXEC, 0)
		return err
	})
	if err == nil && nonblock != 0 {
		if _, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, how); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
	}
	return fd, err
}

// readOp tells a read(2) from a page fault. For a direct-I/O file the kernel
// names the lock owner with every read(2) (fuse_send_read in fs/fuse/file.c)
// and with no page that it fills, which happens for memory maps, splice(2) and
// sendfile(2). Of a cached file it cannot be told.
func readOp(h *handle, flags uint32) policy.Op {
	if flags&fuse.READ_LOCKOWNER == 0 && h.mode != modeCached {
		return policy.OpMmapRead
	}
	return policy.OpRead
}

func (l *Layer) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := l.handles.get(in.Fh)
	if h == nil || h.dir {
		return nil, fuse.EBADF
	}
	q := request{cancel: cancel, header: &in.InHeader, op: readOp(h, in.ReadFlags), offset: int64(in.Offset), size: int64(in.Size)}
	if q.op == policy.OpMmapRead {
		// sendfile(2) and splice(2) fill pages too, and are reads to whoever calls them: cat of busybox is one.
		q.also = q.also.With(policy.OpRead)
	}
	c, e := l.judge(q, h.node)
	if e != 0 {
		return nil, fuse.Status(e)
	}
	buf = buf[:min(len(buf), int(in.Size))]
	if c.is(ActionShort) {
		buf = buf[:c.short(len(buf))]
	}
	own, err := h.file()
	if err != nil {
		return nil, status(err)
	}
	h.learn()
	fd := own
	if q.op == policy.OpRead {
		h.follow(in.Flags)
	} else if h.flags.Load()&unix.O_DIRECT != 0 {
		if fd, err = h.alias(false); err != nil {
			return nil, status(err)
		}
	}
	n, err := pread(fd, buf, int64(in.Offset))
	if err == unix.EINVAL && fd == own && h.refusedPart(int64(in.Offset), int64(in.Size), c == nil) {
		if fd, err = h.alias(false); err == nil {
			n, err = pread(fd, buf, int64(in.Offset))
		}
	}
	if c != nil {
		l.answerWith(c, buf[:max(n, 0)], int64(in.Offset))
	}
	if err != nil {
		return nil, status(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func pread(fd int, b []byte, off int64) (n int, err error) {
	err = retry(func() error { n, err = unix.Pread(fd, b, off); return err })
	return n, err
}

func (l *Layer) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := l.handles.get(in.Fh)
	if h == nil || h.dir {
		return 0, fuse.EBADF
	}
	q := request{cancel: cancel, header: &in.InHeader, op: policy.OpWrite, offset: int64(in.Offset), size: int64(len(data))}
	back := in.WriteFlags&fuse.WRITE_CACHE != 0 // pages written back: the kernel chose the file, and the flags are not the writer's
	if back {
		q.op = policy.OpMmapWrite
	}
	c, e := l.judge(q, h.node)
	if e != 0 {
		return 0, fuse.Status(e)
	}
	if c.is(ActionLost) {
		l.record(c)
		return uint32(len(data)), fuse.OK
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := dropSetID(&in.InHeader, h.fd); err != nil {
			return 0, status(err)
		}
	}
	h.learn()
	w := write{l: l, q: &q, h: h, flags: in.Flags, back: back}
	n, err := w.as(c, data)
	return uint32(n), status(err)
}

// write writes at an offset, as the file's status flags of this moment say.
// whole is true if it is all that was asked for. s is where the request by is booked, nil if it is not.
func (h *handle) write(data []byte, off int64, flags uint32, back, whole bool, s *ledgerSlot, by *fuse.InHeader) (n int, err error) {
	if back {
		s.begin(by, inodeID{}, inodeID{})
		n, err = h.writeBack(data, off)
		reach(placeDone, by)
		return n, err
	}
	h.follow(flags)
	rwf, have := h.syncing(flags), h.flags.Load()
	if s != nil && have&unix.O_APPEND != 0 {
		n, err = h.append(s, by, data, rwf)
	} else {
		s.begin(by, inodeID{}, inodeID{})
		n, err = pwrite(h.fd, data, off, rwf)
	}
	if err == unix.EINVAL && h.refusedPart(off, int64(len(data)), whole) {
		fd, aerr := h.alias(true)
		if aerr != nil {
			return 0, aerr
		}
		if have&unix.O_APPEND != 0 {
			rwf |= unix.RWF_APPEND
		}
		n, err = pwrite(fd, data, off, rwf)
	}
	reach(placeDone, by)
	return n, err
}

// writeBack writes pages of a map at their place. The flags that we know of the description do not say whether a write to it appends:
// where a layer comes off it is the program's again, which may have set O_APPEND since it last wrote, before all pages are written.
func (h *handle) writeBack(data []byte, off int64) (n int, err error) {
	if !h.needsAlias() {
		if n, err = pwrite(h.fd, data, off, unix.RWF_NOAPPEND); err != unix.EINVAL { // O_DIRECT has come in the same way
			return n, err
		}
	}
	fd, err := h.alias(true)
	if err != nil {
		return 0, err
	}
	return pwrite(fd, data, off, 0)
}

// needsAlias: pages cannot be written back through the description itself.
func (h *handle) needsAlias() bool { return h.flags.Load()&unix.O_DIRECT != 0 || !neverAppends() }

// neverAppends: a write can say that it does not append, whatever its file's flags are (RWF_NOAPPEND, Linux 6.9).
var neverAppends = sync.OnceValue(func() bool {
	fd, err := unix.MemfdCreate("faultgraft-noappend", unix.MFD_CLOEXEC)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written that matters
	_, err = unix.Pwritev2(fd, [][]byte{{0}}, 0, unix.RWF_NOAPPEND)
	return err == nil
})

// syncing are the flags of pwritev2(2) RWF_DSYNC and RWF_SYNC, which arrive as flags that the file does not have.
func (h *handle) syncing(flags uint32) int {
	have := h.flags.Load()
	switch {
	case flags&unix.O_SYNC == unix.O_SYNC && have&unix.O_SYNC != unix.O_SYNC:
		return unix.RWF_SYNC
	case flags&unix.O_DSYNC != 0 && have&unix.O_DSYNC == 0:
		return unix.RWF_DSYNC
	}
	return 0
}

func pwrite(fd int, b []byte, off int64, rwf int) (n int, err error) {
	err = retry(func() error {
		if rwf == 0 {
			n, err = unix.Pwrite(fd, b, off)
		} else {
			n, err = unix.Pwritev2(fd, [][]byte{b}, off, rwf)
		}
		return err
	})
	return max(n, 0), err
}

// Lseek is asked for SEEK_DATA and SEEK_HOLE only; the kernel does the rest.
func (l *Layer) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := l.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if e := l.node(request{cancel: cancel, header: &in.InHeader, op: policy.OpLseek, offset: int64(in.Offset)}, h.node); e != 0 {
		return fuse.Status(e)
	}
	fd, err := h.alias(false) // not the description itself: its position may be somebody's
	if err != nil {
		return status(err)
	}
	at, err := unix.Seek(fd, int64(in.Offset), int(in.Whence))
	if err != nil {
		return status(err)
	}
	out.Offset = uint64(at)
	return fuse.OK
}

func (l *Layer) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := l.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	q := request{cancel: cancel, header: &in.InHeader, op: policy.OpFallocate, offset: int64(in.Offset), size: int64(in.Length)}
	if e := l.node(q, h.node); e != 0 {
		return fuse.Status(e)
	}
	l.ledger.slot(&in.InHeader).begin(&in.InHeader, inodeID{}, inodeID{})
	err := l.fallocate(&q, h, in.Mode)
	reach(placeDone, &in.InHeader)
	return status(err)
}

func (l *Layer) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, to := l.handles.get(in.FhIn), l.handles.get(in.FhOut)
	if from == nil || to == nil {
		return 0, fuse.EBADF
	}
	q := request{cancel: cancel, header: &in.InHeader, op: policy.OpCopyFileRange, offset: int64(in.OffIn), size: int64(in.Len)}
	if _, e := l.decide(q, func() []string { return append(l.nodes.paths(from.node), l.nodes.paths(to.node)...) }); e != 0 {
		return 0, fuse.Status(e)
	}
	source, err := from.file()
	if err != nil {
		return 0, status(err)
	}
	to.follow(to.flags.Load() &^ unix.O_APPEND) // which the kernel has looked for (generic_file_rw_checks in fs/read_write.c)
	l.ledger.slot(&in.InHeader).begin(&in.InHeader, inodeID{}, inodeID{})
	offIn, offOut := int64(in.OffIn), int64(in.OffOut)
	n, err := l.copyRange(&q, from, to, offOut, func(size int) (n int, err error) {
		err = l.creds.asWriter(&in.InHeader, func() error {
			n, err = unix.CopyFileRange(source, &offIn, to.fd, &offOut, size, int(in.Flags))
			return err
		})
		return n, err
	})
	reach(placeDone, &in.InHeader)
	if err != nil {
		return 0, status(err)
	}
	return uint32(n), fuse.OK
}
