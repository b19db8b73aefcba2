package main

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Random reads, writes and sizes of files. A descriptor of package os goes through it,
// and so through the runtime's poller, the others are used by system calls.

// again repeats what a signal may interrupt before it has done anything, as package os does.
func again(do func() error) error {
	for {
		if err := do(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (s *slot) read(b []byte, at int64, positioned bool) (n int, err error) {
	switch {
	case s.os != nil && positioned:
		n, err = s.os.ReadAt(b, at)
	case s.os != nil:
		n, err = s.os.Read(b)
	case positioned:
		err = again(func() error { n, err = unix.Pread(s.fd, b, at); return err })
	default:
		err = again(func() error { n, err = unix.Read(s.fd, b); return err })
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (s *slot) write(b []byte, at int64, positioned, appends bool) (n int, err error) {
	switch {
	case s.os != nil && positioned && !appends: // package os refuses the others
		n, err = s.os.WriteAt(b, at)
	case s.os != nil && !positioned:
		n, err = s.os.Write(b)
	case positioned:
		err = again(func() error { n, err = unix.Pwrite(s.fd, b, at); return err })
	default:
		err = again(func() error { n, err = unix.Write(s.fd, b); return err })
	}
	return n, err
}

func (s *slot) seek(to int64, whence int) (int64, error) {
	if s.os != nil {
		return s.os.Seek(to, whence)
	}
	return unix.Seek(s.fd, to, whence)
}

func (w *worker) moveTo(d *desc, s *slot, at int64) {
	if got, err := s.seek(at, io.SeekStart); got != at || err != nil {
		w.bad(err, "lseek to %d: %d", at, got)
	}
	d.off = at
}

func (w *worker) read(f *file, d *desc, positioned bool) {
	s, at, n := w.slot(d), int64(w.r.IntN(maxSize)), 1+w.r.IntN(9000)
	if d.flags&unix.O_DIRECT != 0 {
		at, n = at&^(page-1), page*(1+w.r.IntN(3))
	}
	w.note(f, "read %d, positioned %v: at %d, offset %d, size %d", s.fd, positioned, at, d.off, n)
	if !positioned {
		if d.flags&unix.O_DIRECT != 0 && d.off%page != 0 {
			w.moveTo(d, s, at)
		}
		at = d.off
	}
	got, err := s.read(w.aligned[:n], at, positioned)
	if want := f.expect(at, n); got != want || err != nil {
		w.bad(err, "read of %d bytes at %d of %d: %d", n, at, f.size, got)
	}
	w.same(f, w.aligned[:got], at, "read")
	if !positioned {
		d.off += int64(got)
	}
}

func (w *worker) write(f *file, d *desc, positioned bool) {
	s, at, n, appends := w.slot(d), int64(w.r.IntN(maxSize)), 1+w.r.IntN(9000), d.flags&unix.O_APPEND != 0
	if d.flags&unix.O_DIRECT != 0 {
		at, n = at&^(page-1), page*(1+w.r.IntN(3))
		if appends && f.size%page != 0 {
			return
		}
	}
	w.note(f, "write %d, positioned %v: at %d, offset %d, size %d", s.fd, positioned, at, d.off, n)
	if !positioned && (d.off >= maxSize || d.flags&unix.O_DIRECT != 0 && d.off%page != 0) {
		w.moveTo(d, s, at)
	}
	to := d.off
	switch {
	case appends:
		to = f.size
	case positioned:
		to = at
	}
	if n = int(min(int64(n), maxSize-to)); n == 0 {
		return
	}
	b := w.aligned[:n]
	f.newBytes(b, to)
	got, err := s.write(b, at, positioned, appends)
	if got != n || err != nil {
		w.bad(err, "write of %d bytes at %d of %d: %d", n, to, f.size, got)
	}
	f.written(b, to)
	if positioned {
		return
	}
	d.off = to + int64(n)
	// The kernel adds to the size that it knows of. While a layer moves files for a new rule a
	// file has two inodes, of which one may not know of a change through the other.
	if appends {
		w.moveTo(d, s, d.off)
	}
}

func (w *worker) seek(f *file, d *desc) {
	s, whence, to := w.slot(d), w.r.IntN(3), int64(w.r.IntN(maxSize))
	by := to
	switch whence {
	case io.SeekCurrent:
		by -= d.off
	case io.SeekEnd:
		by -= f.size
	}
	w.note(f, "lseek %d to %d, whence %d", s.fd, to, whence)
	if got, err := s.seek(by, whence); got != to || err != nil {
		w.bad(err, "lseek(%d, %d) to %d: %d", by, whence, to, got)
	}
	d.off = to
}

// resize does not cut pages that are mapped: there is SIGBUS.
func (w *worker) resize(f *file, d *desc) {
	to := int64(w.r.IntN(maxSize))
	for i := range f.maps {
		m := &f.maps[i]
		for j := range m.n {
			if m.at != nil && m.pages[j].present {
				to = max(to, int64(m.first+j+1)*page) // to the end of a page
			}
		}
	}
	s := w.slot(d)
	w.note(f, "ftruncate %d from %d to %d", s.fd, f.size, to)
	var err error
	if s.os != nil {
		err = s.os.Truncate(to)
	} else {
		err = again(func() error { return unix.Ftruncate(s.fd, to) })
	}
	w.ok(err, "ftruncate to %d", to)
	if to < f.size {
		clear(f.data[to:f.size])
	}
	f.size = to
}

func (w *worker) sync(f *file, d *desc) {
	s := w.slot(d)
	w.note(f, "fdatasync %d", s.fd)
	w.ok(again(func() error { return unix.Fdatasync(s.fd) }), "fdatasync")
}

func fcntl(fd, cmd, arg int) (int, error) { return unix.FcntlInt(uintptr(fd), cmd, arg) }

// setFlags changes what F_SETFL can. O_DIRECT is not taken away: of a file that a layer
// passes through the kernel does not heed that (docs/layer.md).
func (w *worker) setFlags(f *file, d *desc) {
	const can = unix.O_APPEND | unix.O_NONBLOCK | unix.O_DIRECT | unix.O_NOATIME
	bits := []int{unix.O_APPEND, unix.O_NONBLOCK, unix.O_DIRECT, unix.O_NOATIME}
	s, bit := w.slot(d), bits[w.r.IntN(4)]
	if bit == unix.O_APPEND && (!w.p.changeAppend || d.ofOS()) { // package os remembers it
		return
	}
	to := d.flags ^ bit | d.flags&unix.O_DIRECT
	w.note(f, "F_SETFL %d %#o", s.fd, to&can)
	_, err := fcntl(s.fd, unix.F_SETFL, to&can)
	w.ok(err, "F_SETFL")
	d.flags = to
}

// ofOS: one of the descriptors is of package os.
func (d *desc) ofOS() bool {
	for _, s := range d.slots {
		if s.fd >= 0 && s.os != nil {
			return true
		}
	}
	return false
}

func (w *worker) setOwner(f *file, d *desc) {
	s := w.slot(d)
	w.note(f, "F_SETOWN, F_SETSIG %d", s.fd)
	d.owner, d.sig = 0, []int{0, int(unix.SIGURG), int(unix.SIGWINCH)}[w.r.IntN(3)]
	if w.one(2) {
		d.owner = os.Getpid()
	}
	_, err := fcntl(s.fd, unix.F_SETOWN, d.owner)
	w.ok(err, "F_SETOWN")
	_, err = fcntl(s.fd, unix.F_SETSIG, d.sig)
	w.ok(err, "F_SETSIG")
}

// checkData compares an open description with the model.
func (w *worker) checkData(f *file, d *desc) {
	s := w.slot(d)
	w.note(f, "check %d", s.fd)
	get := func(what string, cmd, want int) {
		got, err := fcntl(s.fd, cmd, 0)
		if err != nil || got != want {
			w.bad(err, "descriptor %d: %s %d, not %d", s.fd, what, got, want)
		}
	}
	cloexec := 0
	if s.cloexec {
		cloexec = unix.FD_CLOEXEC
	}
	get("F_GETFD", unix.F_GETFD, cloexec)
	got, err := fcntl(s.fd, unix.F_GETFL, 0)
	if err != nil || (got^d.flags)&^(unix.O_CLOEXEC|unix.O_TMPFILE|unix.O_NOFOLLOW) != 0 { // those are of the open
		w.bad(err, "descriptor %d: F_GETFL %#o, not %#o", s.fd, got, d.flags)
	}
	var st unix.Stat_t
	w.ok(again(func() error { return unix.Fstat(s.fd, &st) }), "descriptor %d: fstat", s.fd)
	if st.Ino != f.ino || st.Size != f.size {
		w.bad(nil, "descriptor %d: inode %d of %d bytes, not %d of %d", s.fd, st.Ino, st.Size, f.ino, f.size)
	}
	if want := f.links(); int(st.Nlink) != want {
		w.bad(nil, "descriptor %d: %d links, not %d", s.fd, st.Nlink, want)
	}
	if d.flags&unix.O_PATH != 0 {
		if _, err := unix.Pread(s.fd, w.buf[:1], 0); !errors.Is(err, unix.EBADF) {
			w.bad(err, "descriptor %d: an O_PATH descriptor can be read", s.fd)
		}
		return
	}
	if off, err := s.seek(0, io.SeekCurrent); err != nil || off != d.off {
		w.bad(err, "descriptor %d: offset %d, not %d", s.fd, off, d.off)
	}
	get("owner", unix.F_GETOWN, d.owner)
	get("signal", unix.F_GETSIG, d.sig)
	if !d.reads() {
		return
	}
	n, err := s.read(w.aligned[:maxSize], 0, true)
	if err != nil || int64(n) != f.size {
		w.bad(err, "descriptor %d: %d bytes, not %d", s.fd, n, f.size)
	}
	w.same(f, w.aligned[:n], 0, "check")
}

func (f *file) links() (n int) {
	for _, name := range []string{f.name, f.name2} {
		if name != "" {
			n++
		}
	}
	return n
}
