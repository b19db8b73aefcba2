package fusefs

import (
	"math/rand/v2"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// write is one write to a file.
type write struct {
	l     *Layer
	q     *request
	h     *handle
	flags uint32 // the file's, and of this write
	back  bool   // pages written back
}

// as carries the write out as c, which may be nil, changes it, and gives what is answered.
func (w *write) as(c *change, data []byte) (n int, err error) {
	if c == nil {
		return w.put(data)
	}
	defer func() { w.l.record(c) }()
	switch c.event.Action {
	case ActionShort:
		n, err = w.put(data[:c.short(len(data))])
		c.event.Bytes = int64(n)
	case ActionCorrupt:
		data = copied(data) // what was read stays: another server may have to find it
		c.corrupt(data, w.q.offset)
		n, err = w.put(data)
	case ActionTorn:
		return w.tear(c, data)
	}
	return n, err
}

// copied gives a copy of data that lies on a page, as O_DIRECT needs it.
func copied(data []byte) []byte {
	b := make([]byte, len(data)+pageSize)
	b = b[-uintptr(unsafe.Pointer(&b[0]))%pageSize:]
	return b[:copy(b, data)]
}

// store writes data at the operation's place.
func (w *write) store(data []byte) (n int, err error) {
	if w.h.flags.Load()&unix.O_DIRECT != 0 || w.back && w.h.needsAlias() {
		if _, err := w.h.alias(true); err != nil { // opened by us, not by the caller
			return 0, err
		}
	}
	err = w.l.creds.asWriter(w.q.header, func() error {
		n, err = w.h.write(data, w.q.offset, w.flags, w.back, int64(len(data)) == w.q.size, w.l.ledger.slot(w.q.header), w.q.header)
		return err
	})
	return n, err
}

// tear writes a part of data and answers as if it had been all, or with the
// rule's error. The parts are those that the units of the file cut the data
// into; the file ends where the last part that was written does.
func (w *write) tear(c *change, data []byte) (int, error) {
	at := w.q.offset
	appends := !w.back && w.flags&unix.O_APPEND != 0
	if appends { // the kernel names the end that it knows of; it lets one writer in at a time
		var err error
		if at, err = w.end(); err != nil {
			return 0, err
		}
	}
	for _, p := range c.tornParts(at, int64(len(data))) {
		n, err := w.putAt(data[p.Offset-at:][:p.Size], p.Offset, appends)
		if err != nil {
			return 0, err
		}
		c.event.Bytes += int64(n)
		c.event.Places = append(c.event.Places, p)
	}
	if c.then != 0 {
		return 0, c.then
	}
	return len(data), nil
}

// end is the end of the file before anything of the write was done.
func (w *write) end() (int64, error) {
	s := w.l.ledger.slot(w.q.header)
	if s.begunBefore(w.q.header) {
		return s.position, nil
	}
	var st unix.Statx_t
	if err := statx(w.h.fd, &st); err != nil {
		return 0, err
	}
	if s != nil {
		s.book(w.q.header)
		s.position = int64(st.Size)
	}
	return int64(st.Size), nil
}

// putAt writes one part of a torn write. A part of an append that leaves a gap is no append any more.
func (w *write) putAt(data []byte, off int64, appends bool) (int, error) {
	part := *w
	q := *w.q
	q.offset, part.q = off, &q
	if appends {
		part.back = true // past the description, which would append
	}
	return part.put(data)
}

// tornParts draws which parts of a write reach the file: the units from the
// first on to some point, or any of them, but never all. A write within one unit is lost.
func (c *change) tornParts(at, size int64) []Place {
	unit := int64(c.rule.IO.Torn.Unit)
	first, last := at/unit, (at+size-1)/unit
	units := last - first + 1
	random := rand.New(c.src)
	cut := func(from, to int64) Place { // units, to excluded
		start, end := max(from*unit, at), min(to*unit, at+size)
		return Place{Offset: start, Size: end - start}
	}
	if c.rule.IO.Torn.Kind == policy.Prefix {
		if n := random.Int64N(units); n > 0 {
			return []Place{cut(first, first+n)}
		}
		return nil
	}
	spared := first + random.Int64N(units) // one that is lost in any case
	var parts []Place
	for u := first; u <= last; {
		from := u
		for u <= last && u != spared && random.Uint64()&1 == 1 {
			u++
		}
		if u > from {
			parts = append(parts, cut(from, u))
		}
		u++ // the one that is lost
	}
	return parts
}
