package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

func (l *Layer) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := l.nodes.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	h, err, ok := l.adopt(in.Pid, n, in.Flags, true)
	if err != nil {
		return status(err)
	}
	if !ok {
		if e := l.node(request{cancel: cancel, header: &in.InHeader, op: policy.OpOpendir}, n); e != 0 {
			return fuse.Status(e)
		}
		h = &handle{node: n, dir: true}
		err := retry(func() (err error) {
			h.fd, err = unix.Open(magic(n.fd), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|int(in.Flags)&unix.O_NOATIME, 0)
			return err
		})
		if err != nil {
			return status(err)
		}
		l.handles.add(h, l.ledger.slot(&in.InHeader), &in.InHeader)
	}
	l.handles.kept.handle(h)
	out.Fh = h.id
	return fuse.OK
}

func (l *Layer) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return l.readDir(cancel, in, func(h *handle, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

func (l *Layer) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return l.readDir(cancel, in, func(h *handle, e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		// Node 0 tells the kernel to look the name up by itself when it needs it.
		if e.Name != "." && e.Name != ".." && !l.crowded() {
			if st := l.found(&in.InHeader, h.node, e.Name, entry); !st.Ok() {
				*entry = fuse.EntryOut{}
			}
		}
		return true
	})
}

// readDir answers with entries from a position on. Positions are those of the
// file system below (d_off), so that one taken on the layer is good below it
// and the other way round.
func (l *Layer) readDir(cancel <-chan struct{}, in *fuse.ReadIn, add func(*handle, fuse.DirEntry) bool) fuse.Status {
	h := l.handles.get(in.Fh)
	if h == nil || !h.dir {
		return fuse.EBADF
	}
	q := request{cancel: cancel, header: &in.InHeader, op: policy.OpReaddir, offset: int64(in.Offset), size: int64(in.Size)}
	if e := l.node(q, h.node); e != 0 {
		return fuse.Status(e)
	}
	// One reader at a time, as for any directory: the description has one position. Other operations do not wait here.
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.synced || h.next != in.Offset || in.Offset == 0 {
		h.pending, h.synced = nil, false
		if _, err := unix.Seek(h.fd, int64(in.Offset), unix.SEEK_SET); err != nil {
			return status(err)
		}
		h.next, h.synced = in.Offset, true
	}
	for added := 0; ; added++ {
		if len(h.pending) == 0 {
			if err := h.more(); err != nil {
				h.synced = false
				if added > 0 { // what is there is answered first
					return fuse.OK
				}
				return status(err)
			}
			if len(h.pending) == 0 {
				return fuse.OK
			}
		}
		e := h.pending[0]
		if !add(h, e) {
			return fuse.OK
		}
		h.pending, h.next = h.pending[1:], e.Off
	}
}

// direntBytes is how much of a directory is read at a time.
const direntBytes = 32 << 10

// more reads entries from the description. At the end there are none.
func (h *handle) more() error {
	buf := make([]byte, direntBytes)
	var n int
	err := retry(func() (err error) {
		n, err = unix.Getdents(h.fd, buf)
		return err
	})
	if err != nil {
		return err
	}
	h.pending = h.pending[:0]
	for b := buf[:n]; len(b) > 0; {
		var e fuse.DirEntry
		b = b[e.Parse(b):]
		h.pending = append(h.pending, e)
	}
	return nil
}
