package main

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// Random locks: POSIX locks of the process, locks of open descriptions, flock.
// A lock's kind is 0 (none), 1 (read), 2 (write).

var lockTypes = []int16{unix.F_UNLCK, unix.F_RDLCK, unix.F_WRLCK}

func conflicts(a, b byte) bool { return a != 0 && b != 0 && (a == 2 || b == 2) }

// inTheWay: somebody else than d has such a lock; without d, than the process.
func (f *file) inTheWay(d *desc, from, to int, kind byte) bool {
	for b := from; b < to; b++ {
		if d != nil && conflicts(kind, f.posix[b]) {
			return true
		}
		for i := range f.descs {
			if o := &f.descs[i]; o.live && o != d && conflicts(kind, o.ofd[b]) {
				return true
			}
		}
	}
	return false
}

// lockRange sets a POSIX lock, or one of the description.
func (w *worker) lockRange(f *file, d *desc, ofd bool) {
	from := w.r.IntN(blocks)
	to, kind, s := from+1+w.r.IntN(blocks-from), byte(w.r.IntN(3)), w.slot(d)
	if kind == 1 && !d.reads() || kind == 2 && !d.writes() {
		return
	}
	l := unix.Flock_t{Type: lockTypes[kind], Start: int64(from) * block, Len: int64(to-from) * block}
	w.note(f, "lock %d, of the description %v, kind %d blocks %d to %d", s.fd, ofd, kind, from, to)
	cmd, owner, held := unix.F_SETLK, (*desc)(nil), f.posix[from:to]
	if ofd {
		cmd, owner, held = unix.F_OFD_SETLK, d, d.ofd[from:to]
	}
	fails := f.inTheWay(owner, from, to, kind)
	err := again(func() error { return unix.FcntlFlock(uintptr(s.fd), cmd, &l) })
	if fails != is(err, unix.EAGAIN, unix.EACCES) || !fails && err != nil {
		w.bad(err, "lock of kind %d on blocks %d to %d, should fail: %v", kind, from, to, fails)
	}
	if !fails {
		copy(held, bytes.Repeat([]byte{kind}, to-from))
	}
}

func (w *worker) lockWhole(f *file, d *desc) {
	kind, s, fails := []int{unix.LOCK_UN, unix.LOCK_SH, unix.LOCK_EX}[w.r.IntN(3)], w.slot(d), false
	for i := range f.descs {
		o := &f.descs[i]
		fails = fails || o.live && o != d && o.flocked != 0 && kind != unix.LOCK_UN && (kind == unix.LOCK_EX || o.flocked == unix.LOCK_EX)
	}
	w.note(f, "flock %d %d", s.fd, kind)
	err := again(func() error { return unix.Flock(s.fd, kind|unix.LOCK_NB) })
	if fails != is(err, unix.EWOULDBLOCK) || !fails && err != nil {
		w.bad(err, "flock %d, should fail: %v", kind, fails)
	}
	// a lock that cannot be converted is lost (flock(2))
	if d.flocked = kind; fails || kind == unix.LOCK_UN {
		d.flocked = 0
	}
}

// dropLocks is done before the last close: a map or a child may have the description longer than we.
func (w *worker) dropLocks(d *desc, fd int) {
	if d.ofd != [blocks]byte{} {
		w.ok(unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}), "F_OFD_SETLK: unlock")
	}
	if d.flocked != 0 {
		w.ok(unix.Flock(fd, unix.LOCK_UN), "flock: unlock")
	}
	d.ofd, d.flocked = [blocks]byte{}, 0
}
