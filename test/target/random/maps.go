package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Random memory maps: shared and private, changed, protected, locked, cut in pieces.

var protections = []int{unix.PROT_NONE, unix.PROT_READ, unix.PROT_READ | unix.PROT_WRITE}

const writable = unix.PROT_READ | unix.PROT_WRITE

func (w *worker) aMap(f *file) *mapping {
	from := w.r.IntN(maxMaps)
	for i := range maxMaps {
		if m := &f.maps[(from+i)%maxMaps]; m.at != nil {
			return m
		}
	}
	return nil
}

// protection draws one that the map can have.
func (w *worker) protection(m *mapping) int {
	if m.writable {
		return protections[w.r.IntN(3)]
	}
	return protections[w.r.IntN(2)]
}

func (w *worker) makeMap(f *file, d *desc) {
	var m *mapping
	for i := range f.maps {
		if f.maps[i].at == nil {
			m = &f.maps[i]
		}
	}
	have := int((f.size + page - 1) / page)
	if m == nil || have == 0 || !d.reads() {
		return
	}
	*m = mapping{private: w.one(2)}
	m.writable = m.private || d.writes()
	m.first = w.r.IntN(have)
	m.n = 1 + w.r.IntN(have-m.first)
	prot, flags, s := w.protection(m), unix.MAP_SHARED, w.slot(d)
	if m.private {
		flags = unix.MAP_PRIVATE
	}
	w.note(f, "map %d: private %v, protection %d, pages %d to %d", s.fd, m.private, prot, m.first, m.first+m.n)
	at, err := unix.MmapPtr(s.fd, int64(m.first)*page, nil, uintptr(m.n)*page, prot, flags)
	w.ok(err, "mmap")
	m.at = unsafe.Slice((*byte)(at), m.n*page)
	for i := range m.n {
		m.pages[i].present, m.pages[i].prot = true, prot
	}
}

// copyPage: the kernel copies private pages that are locked and may be written to, by
// either mlock or mprotect.
func (f *file) copyPage(m *mapping, i int) {
	p := &m.pages[i]
	if m.private && p.prot == writable && p.own == nil {
		p.own = append([]byte(nil), f.data[(m.first+i)*page:(m.first+i+1)*page]...)
	}
}

func (w *worker) changeMap(f *file, m *mapping) {
	from := w.r.IntN(m.n)
	to := from + 1 + w.r.IntN(m.n-from)
	locked, unreadable := false, false
	for i := from; i < to; i++ {
		if !m.pages[i].present {
			to = i
			break
		}
		locked, unreadable = locked || m.pages[i].locked, unreadable || m.pages[i].prot == unix.PROT_NONE
	}
	if from >= to {
		return
	}
	b, pages := m.at[from*page:to*page], m.pages[from:to]
	switch n := w.r.IntN(7); n {
	case 0:
		prot := w.protection(m)
		w.note(f, "mprotect %p pages %d to %d: %d", m.at, from, to, prot)
		w.ok(unix.Mprotect(b, prot), "mprotect")
		for i := range pages {
			pages[i].prot = prot
			if pages[i].locked {
				f.copyPage(m, from+i)
			}
		}
	case 1:
		if unreadable {
			return // mlock of what cannot be read fails after it has locked
		}
		lock := w.one(2)
		w.note(f, "mlock %p pages %d to %d: %v", m.at, from, to, lock)
		if lock {
			w.ok(unix.Mlock(b), "mlock")
		} else {
			w.ok(unix.Munlock(b), "munlock")
		}
		for i := range pages {
			if pages[i].locked = lock; lock {
				f.copyPage(m, from+i)
			}
		}
	case 2:
		a := []int{unix.MADV_NORMAL, unix.MADV_RANDOM, unix.MADV_SEQUENTIAL, unix.MADV_WILLNEED, unix.MADV_DONTDUMP, unix.MADV_DODUMP}[w.r.IntN(6)]
		w.note(f, "madvise %p pages %d to %d: %d", m.at, from, to, a)
		w.ok(unix.Madvise(b, a), "madvise(%d)", a)
	case 3:
		if locked {
			return // EINVAL
		}
		w.note(f, "MADV_DONTNEED %p pages %d to %d", m.at, from, to)
		w.ok(unix.Madvise(b, unix.MADV_DONTNEED), "MADV_DONTNEED")
		for i := range pages {
			pages[i].own = nil
		}
	case 4:
		w.note(f, "munmap %p pages %d to %d", m.at, from, to)
		w.ok(unix.MunmapPtr(unsafe.Pointer(&b[0]), uintptr(len(b))), "munmap")
		for i := range pages {
			pages[i].present = false
		}
		for i := range m.n {
			if m.pages[i].present {
				return
			}
		}
		m.at = nil
	case 5:
		w.note(f, "msync %p pages %d to %d", m.at, from, to)
		w.ok(again(func() error { return unix.Msync(b, unix.MS_SYNC) }), "msync")
	default:
		for i := from; i < to; i++ {
			w.writePage(f, m, i)
		}
	}
}

// inFile are the bytes of a page of a map that are in the file.
func (f *file) inFile(m *mapping, i int) (start, end int64) {
	start = int64(m.first+i) * page
	return start, min(f.size, start+page)
}

func (w *worker) writePage(f *file, m *mapping, i int) {
	start, end := f.inFile(m, i)
	if m.pages[i].prot != writable || end <= start {
		return
	}
	a := start + w.r.Int64N(end-start)
	b := a + 1 + w.r.Int64N(end-a)
	w.note(f, "write to map %p page %d: %d to %d", m.at, i, a, b)
	news := w.buf[:b-a]
	f.newBytes(news, a)
	copy(m.at[a-int64(m.first)*page:], news)
	if !m.private {
		copy(f.data[a:], news)
		return
	}
	f.copyPage(m, i)
	copy(m.pages[i].own[a-start:], news)
}

// checkMap compares what is there, and how it may be used: the kernel answers
// EFAULT for what may not be read or written, and msync tells of locked pages.
func (w *worker) checkMap(f *file, m *mapping) {
	i := w.r.IntN(m.n)
	p := &m.pages[i]
	if !p.present {
		return
	}
	at := m.at[i*page : (i+1)*page]
	start, end := f.inFile(m, i)
	w.note(f, "check map %p page %d", m.at, i)
	err := unix.Msync(at, unix.MS_INVALIDATE|unix.MS_ASYNC)
	if p.locked != is(err, unix.EBUSY) || !p.locked && err != nil {
		w.bad(err, "map %p page %d: msync, locked should be %v", m.at, i, p.locked)
	}
	if end <= start {
		return
	}
	n, err := unix.Write(w.pipe[1], at[:1])
	if readable := p.prot != unix.PROT_NONE; readable && n != 1 || !readable && !is(err, unix.EFAULT) {
		w.bad(err, "map %p page %d of protection %d: a read gives %d", m.at, i, p.prot, n)
	}
	if n != 1 {
		return
	}
	b := w.buf[:1]
	if n, err := unix.Read(w.pipe[0], b); n != 1 {
		w.bad(err, "pipe")
	}
	if p.prot == unix.PROT_READ {
		if n, err := unix.Write(w.pipe[1], b); n != 1 {
			w.bad(err, "pipe")
		}
		if n, err := unix.Read(w.pipe[0], at); !is(err, unix.EFAULT) {
			w.bad(err, "map %p page %d may not be written, and was: %d", m.at, i, n)
		}
		if n, err := unix.Read(w.pipe[0], b); n != 1 && !is(err, unix.EAGAIN) { // a pipe may have dropped it
			w.bad(err, "pipe")
		}
	}
	want, what := f.data[start:], "as the file"
	if p.own != nil {
		want, what = p.own, "modified"
	}
	for o := range end - start {
		if at[o] != want[o] {
			w.bad(nil, "map %p page %d, private %v (%s): byte %d is %#x, not %#x", m.at, i, m.private, what, o, at[o], want[o])
		}
	}
}
