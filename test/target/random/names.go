package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Random names and descriptors.

// noPosixLocks: POSIX locks go with any close of the file in their process.
func (f *file) noPosixLocks(d *desc) {
	if d.flags&unix.O_PATH == 0 {
		clear(f.posix[:])
	}
}

// high is a number of its own for each slot.
func high(f *file, d, s int) int { return highNumbers + (f.number*maxDescs+d)*maxSlots + s }

// begin makes a description part of the model.
func (w *worker) begin(f *file, d *desc, fd int, of *os.File, flags int) {
	*d = desc{live: true, life: d.life + 1}
	for i := range d.slots {
		d.slots[i].fd = -1
	}
	d.slots[0] = slot{fd: fd, os: of, cloexec: flags&unix.O_CLOEXEC != 0}
	got, err := fcntl(fd, unix.F_GETFL, 0)
	keeps := unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK | unix.O_SYNC | unix.O_DIRECT | unix.O_NOATIME
	if of != nil {
		keeps &^= unix.O_NONBLOCK // package os sets it where the poller takes the file
	}
	if err != nil || (got^flags)&keeps != 0 && flags&unix.O_PATH == 0 {
		w.bad(err, "open with %#o: F_GETFL is %#o", flags, got)
	}
	d.flags = got
	var st unix.Stat_t
	w.ok(again(func() error { return unix.Fstat(fd, &st) }), "fstat")
	f.ino = st.Ino
}

func (w *worker) flags() int {
	flags := []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR}[w.r.IntN(4)]
	for _, f := range []struct{ of, flag int }{{4, unix.O_APPEND}, {5, unix.O_DIRECT}, {5, unix.O_NOATIME}, {10, unix.O_DSYNC}, {10, unix.O_SYNC}, {5, unix.O_NONBLOCK}, {2, unix.O_CLOEXEC}} {
		if w.one(f.of) {
			flags |= f.flag
		}
	}
	return flags
}

func openat(dir int, name string, flags int) (fd int, err error) {
	err = again(func() error { fd, err = unix.Openat(dir, name, flags, 0o600); return err })
	return fd, err
}

// create gives a file that is not there its first name and description, or only this.
func (w *worker) create(f *file) {
	flags := w.flags()
	f.size, f.linkable, f.name, f.name2, f.folder = 0, false, "", "", w.r.IntN(folders)
	clear(f.data[:])
	clear(f.posix[:])
	var fd int
	var err error
	if w.one(4) {
		flags = flags&^unix.O_ACCMODE | unix.O_RDWR
		excl := 0
		if w.one(2) {
			excl = unix.O_EXCL
		}
		w.note(f, "open O_TMPFILE %#o", flags|excl)
		fd, err = openat(w.p.folders[f.folder], ".", flags|unix.O_TMPFILE|excl)
		f.linkable = excl == 0
	} else {
		f.name = fmt.Sprintf("f%d-%d", f.number, w.r.IntN(1000))
		w.note(f, "create %s %#o", f.name, flags)
		fd, err = openat(w.p.folders[f.folder], f.name, flags|unix.O_CREAT|unix.O_EXCL)
	}
	w.ok(err, "create with %#o", flags)
	w.begin(f, &f.descs[0], fd, nil, flags)
	f.live = true
}

// openAgain opens a file by one of its names, as package os does or by system calls.
func (w *worker) openAgain(f *file) {
	var d *desc
	for i := range f.descs {
		if !f.descs[i].live {
			d = &f.descs[i]
		}
	}
	if d == nil || f.name == "" {
		return
	}
	flags := w.flags()
	if w.one(8) {
		flags = unix.O_PATH | flags&unix.O_CLOEXEC
	}
	name, folder := f.name, f.folder
	if f.name2 != "" && w.one(2) {
		name, folder = f.name2, f.folder2
	}
	p, was := w.p, f.ino
	p.cwd.RLock()
	defer p.cwd.RUnlock()
	byPath := fmt.Sprintf("../d%d/%s", folder, name)
	if p.cwd.folder == folder && w.one(2) {
		byPath = name
	}
	how := w.r.IntN(3)
	w.note(f, "open %s, way %d, %#o", byPath, how, flags)
	switch {
	case how == 0 && flags&unix.O_PATH == 0:
		of, err := os.OpenFile(byPath, flags, 0)
		w.ok(err, "open %s with %#o", byPath, flags)
		w.begin(f, d, w.number(of), of, flags|unix.O_CLOEXEC)
	case how == 1:
		fd, err := openat(unix.AT_FDCWD, byPath, flags)
		w.ok(err, "open %s with %#o", byPath, flags)
		w.begin(f, d, fd, nil, flags)
	default:
		fd, err := openat(p.folders[folder], name, flags)
		w.ok(err, "open %s with %#o", name, flags)
		w.begin(f, d, fd, nil, flags)
	}
	if f.ino != was {
		w.bad(nil, "%s is inode %d, not %d", name, f.ino, was)
	}
}

// number is the descriptor of a file of package os; its Fd would take it from the poller.
func (w *worker) number(of *os.File) (n int) {
	c, err := of.SyscallConn()
	if err == nil {
		err = c.Control(func(fd uintptr) { n = int(fd) })
	}
	w.ok(err, "descriptor of %s", of.Name())
	return n
}

func (s *slot) close() error {
	if s.os != nil {
		return s.os.Close()
	}
	return unix.Close(s.fd)
}

func (w *worker) closeSlot(f *file, d *desc) {
	s, open := w.slot(d), 0
	for _, o := range d.slots {
		if o.fd >= 0 {
			open++
		}
	}
	w.note(f, "close %d, one of %d", s.fd, open)
	if open == 1 {
		w.dropLocks(d, s.fd)
	}
	w.ok(s.close(), "close %d", s.fd)
	f.noPosixLocks(d)
	s.fd, s.os = -1, nil
	d.live = open > 1
}

func (w *worker) dupSlot(f *file, d *desc) {
	from, i, cloexec := w.slot(d), w.r.IntN(maxSlots), w.one(2)
	to := &d.slots[i]
	if to == from {
		return
	}
	if to.fd >= 0 && to.fd < highNumbers {
		w.ok(to.close(), "close %d", to.fd)
		f.noPosixLocks(d)
		to.fd, to.os = -1, nil
	}
	var index int
	for index = range f.descs {
		if &f.descs[index] == d {
			break
		}
	}
	number, low := high(f, index, i), to.fd < 0 && w.one(2)
	w.note(f, "dup %d to %d or the lowest %v, close-on-exec %v", from.fd, number, low, cloexec)
	var err error
	if low {
		cmd := unix.F_DUPFD
		if cloexec {
			cmd = unix.F_DUPFD_CLOEXEC
		}
		number, err = fcntl(from.fd, cmd, 0)
	} else {
		flags := 0
		if cloexec {
			flags = unix.O_CLOEXEC
		}
		err = unix.Dup3(from.fd, number, flags)
		if to.fd >= 0 {
			f.noPosixLocks(d) // it was closed
		}
	}
	w.ok(err, "dup of %d", from.fd)
	*to = slot{fd: number, cloexec: cloexec}
}

func (w *worker) setCloexec(f *file, d *desc) {
	s := w.slot(d)
	w.note(f, "F_SETFD %d, close-on-exec %v", s.fd, !s.cloexec)
	s.cloexec = !s.cloexec
	arg := 0
	if s.cloexec {
		arg = unix.FD_CLOEXEC
	}
	_, err := fcntl(s.fd, unix.F_SETFD, arg)
	w.ok(err, "F_SETFD")
}

func (w *worker) rename(f *file) {
	if f.name == "" {
		return
	}
	to, folder := fmt.Sprintf("r%d-%d", f.number, w.r.IntN(100000)), w.r.IntN(folders)
	w.note(f, "rename %s to %s in %d", f.name, to, folder)
	w.ok(again(func() error { return unix.Renameat(w.p.folders[f.folder], f.name, w.p.folders[folder], to) }), "rename %s", f.name)
	f.folder, f.name = folder, to
}

func (w *worker) link(f *file) {
	to, folder := fmt.Sprintf("l%d-%d", f.number, w.r.IntN(100000)), w.r.IntN(folders)
	if f.name != "" && f.name2 == "" {
		w.note(f, "link %s to %s in %d", f.name, to, folder)
		w.ok(again(func() error { return unix.Linkat(w.p.folders[f.folder], f.name, w.p.folders[folder], to, 0) }), "link %s", f.name)
		f.name2, f.folder2 = to, folder
		return
	}
	d := w.desc(f, nil)
	if f.name != "" || !f.linkable || d == nil {
		return
	}
	path := fmt.Sprint("/proc/self/fd/", w.slot(d).fd)
	w.note(f, "link %s to %s in %d", path, to, folder)
	err := again(func() error { return unix.Linkat(unix.AT_FDCWD, path, w.p.folders[folder], to, unix.AT_SYMLINK_FOLLOW) })
	if errors.Is(err, unix.ENOENT) && w.p.descriptionLocks {
		return // A file that was open before a graft cannot get its first name through the layer, see link_file in random_names.h.
	}
	w.ok(err, "link %s", path)
	f.name, f.folder, f.linkable = to, folder, false // when it has lost this name it cannot have another one
}

func (w *worker) unlink(f *file) {
	if f.name == "" {
		return
	}
	w.note(f, "unlink %s", f.name)
	w.ok(again(func() error { return unix.Unlinkat(w.p.folders[f.folder], f.name, 0) }), "unlink %s", f.name)
	f.name, f.folder, f.name2 = f.name2, f.folder2, ""
}

// checkName: what is found by name is the file.
func (w *worker) checkName(f *file) {
	if f.name == "" {
		return
	}
	w.note(f, "check %s", f.name)
	var st unix.Stat_t
	err := again(func() error { return unix.Fstatat(w.p.folders[f.folder], f.name, &st, 0) })
	if err != nil || st.Ino != f.ino || st.Size != f.size {
		w.bad(err, "%s: inode %d of %d bytes, not %d of %d", f.name, st.Ino, st.Size, f.ino, f.size)
	}
}

// pass sends a descriptor to ourselves and takes it out at once. It is a description
// that nothing else refers to: one that a swap finds in flight stays on the old file.
func (w *worker) pass(f *file) {
	if f.name == "" {
		return
	}
	at := int64(w.r.IntN(maxSize))
	w.note(f, "pass a descriptor of %s", f.name)
	fd, err := openat(w.p.folders[f.folder], f.name, unix.O_RDONLY|unix.O_CLOEXEC)
	w.ok(err, "open %s", f.name)
	_, err = unix.Seek(fd, at, 0)
	w.ok(err, "lseek")
	var ends [2]*net.UnixConn
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	w.ok(err, "socketpair")
	for i, s := range pair {
		of := os.NewFile(uintptr(s), "socket")
		c, err := net.FileConn(of)
		w.ok(errors.Join(err, of.Close()), "socketpair")
		ends[i] = c.(*net.UnixConn)
		defer func() { _ = c.Close() }() // all was read
	}
	_, _, err = ends[0].WriteMsgUnix([]byte{1}, unix.UnixRights(fd), nil)
	w.ok(errors.Join(err, unix.Close(fd)), "sendmsg")
	control := make([]byte, 64)
	_, n, _, _, err := ends[1].ReadMsgUnix(w.buf[:1], control)
	w.ok(err, "recvmsg")
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		w.bad(err, "recvmsg: %d control messages", len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		w.bad(err, "recvmsg: %d descriptors", len(fds))
	}
	got := slot{fd: fds[0]}
	off, err := got.seek(0, 1)
	if err != nil || off != at {
		w.bad(err, "a descriptor that was passed: offset %d, not %d", off, at)
	}
	b := w.buf[:100]
	size, err := got.read(b, 0, false)
	if err != nil || size != f.expect(at, len(b)) {
		w.bad(err, "a descriptor that was passed: %d bytes at %d of %d", size, at, f.size)
	}
	w.same(f, b[:size], at, "a descriptor that was passed")
	w.ok(got.close(), "close")
	clear(f.posix[:]) // the close
}
