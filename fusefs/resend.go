package fusefs

import (
	"slices"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// places are points of a request's way at which a server may be killed, for tests.
type place string

const (
	placeRead     place = "read"     // it was read, nothing is booked
	placeBegun    place = "begun"    // it is booked as begun and not done
	placeDone     place = "done"     // it is done below and nothing of it is recorded
	placeRecorded place = "recorded" // nodes and handles are recorded, its answer is not
	placeAnswered place = "answered" // its answer is booked and not sent
	placeSent     place = "sent"
	placeAsked    place = "asked" // the kernel was asked to send requests again, and none was read
)

// reached, when set, is told which places requests come to. Tests kill the server there.
var reached func(place, *fuse.InHeader)

func reach(p place, h *fuse.InHeader) {
	if reached != nil {
		reached(p, h)
	}
}

// claim looks for what is booked of a request that was read and comes again. Its slot becomes the reader's. The caller
// holds taking.
func (l *ledger) claim(r *reader, h *fuse.InHeader) {
	if !resent(h) {
		return
	}
	l.resent.Add(1)
	i, booked := l.orphans[h.Unique&^resentMark]
	if !booked {
		return
	}
	delete(l.orphans, h.Unique&^resentMark)
	l.give(r.slot)
	r.slot = i
}

// complete reports whether all requests have been sent again, which come before all that are new.
// FORGET and INTERRUPT are not among them: they overtake others (fuse_dev_do_read in fs/fuse/dev.c).
func complete(h *fuse.InHeader) bool {
	return !resent(h) && h.Opcode != opForget && h.Opcode != opBatchForget && h.Opcode != opInterrupt
}

// nextResent is readDevice while requests come again.
func (d *device) nextResent(r *reader) (int, syscall.Errno) {
	l := d.layer.ledger
	l.taking.Lock()
	defer l.taking.Unlock()
	n, e := r.readDevice()
	if e != 0 || n < int(unsafe.Sizeof(fuse.InHeader{})) {
		return n, e
	}
	if l.resuming.Load() {
		h := r.header()
		l.claim(r, h)
		if complete(h) {
			d.layer.swept()
			l.resuming.Store(false)
		}
	}
	return n, e
}

// sweep ends what was booked of requests that did not come again. Those whose answer may have been sent were answered. Of the
// others the caller is gone: it was killed while nobody served, which takes a request that nobody has read away
// (request_wait_answer in fs/fuse/dev.c). The kernel never heard of what was made for it.
func (l *Layer) sweep() {
	b := l.ledger
	for unique, i := range b.orphans {
		s := &b.slots[i]
		if s.phase.Load() < phaseAnswered {
			l.takeBack(s)()
		}
		delete(b.orphans, unique)
		b.give(i)
	}
}

// swept is called when all requests have come again.
func (l *Layer) swept() {
	l.sweep()
	if n := l.ledger.resent.Load(); n > 0 && l.o.Resent != nil {
		l.o.Resent(n)
	}
}

// takeBack undoes what a request has made that was not answered: the open file at once, the look-ups by the function that
// is returned, which is called when they have been counted anew.
func (l *Layer) takeBack(s *ledgerSlot) func() {
	if h := l.handles.remove(s.handle); s.handle != 0 && h != nil {
		l.leaveMode(h)
		h.close()
	}
	s.handle = 0
	if s.counted == 0 {
		return func() {}
	}
	nodes := slices.Clone(s.nodes[:min(s.counted, maxCounted)])
	s.counted = 0 // a server that dies here leaves look-ups that nobody forgets: better than to forget them twice
	return func() {
		for _, id := range nodes {
			l.Forget(id, 1)
		}
	}
}

// answer answers a request, by what is booked of it if it comes again.
func (r *reader) answer(n int) []byte {
	h, l := r.header(), r.d.layer
	h.Padding = r.slot
	s := l.ledger.slot(h)
	reach(placeRead, h)
	if s == nil {
		return r.guarded(n)
	}
	if resent(h) && s.unique.Load() == h.Unique&^resentMark {
		return r.answerAgain(n, s)
	}
	return r.settle(s, r.guarded(n))
}

// answerAgain answers a request that another server had booked.
func (r *reader) answerAgain(n int, s *ledgerSlot) []byte {
	h := r.header()
	if s.phase.Load() == phaseAnswered {
		if b := s.kept(r.out, h); b != nil {
			return b
		}
		s.phase.Store(phaseBooked)
	}
	forget := r.d.layer.takeBack(s)
	b := r.guarded(n)
	forget()
	return r.settle(s, b)
}

// kept puts the answer that is booked into b, as one to the request; nil: it is not kept, or the kernel would refuse it
// (fuse_dev_do_write in fs/fuse/dev.c).
func (s *ledgerSlot) kept(b []byte, h *fuse.InHeader) []byte {
	if s.length < uint32(headerSize) || s.length > answerBytes {
		return nil
	}
	b = b[:copy(b, s.answer[:s.length])]
	o := (*fuse.OutHeader)(unsafe.Pointer(&b[0]))
	if int(o.Length) != len(b) || o.Status > 0 || o.Status <= -512 || o.Status != 0 && len(b) != headerSize {
		return nil
	}
	o.Unique = h.Unique
	return b
}

// settle books the answer to a request of which something is booked.
func (r *reader) settle(s *ledgerSlot, b []byte) []byte {
	h := r.header()
	reach(placeRecorded, h)
	if b == nil || s.unique.Load() != h.Unique&^resentMark {
		return b
	}
	if s.phase.Load() == phaseBegun && len(b) <= int(answerBytes) {
		copy(s.answer[:], b)
		s.length = uint32(len(b))
	}
	s.phase.Store(phaseAnswered)
	reach(placeAnswered, h)
	return b
}

// awaitResent prepares for requests that come again. It is called before the first is read, and before the kernel is asked
// to send them.
func (l *Layer) awaitResent() {
	if l.ledger != nil {
		l.ledger.resuming.Store(true)
	}
}

// keep is the ledger's part of a layer whose state is kept; nil without.
func keep(s *State) *ledger {
	if s == nil {
		return nil
	}
	l := openLedger(s.ledger())
	l.requests = s.files[stateRequests]
	return l
}

// Resent is how many requests the kernel has sent again since this process serves the layer.
func (l *Layer) Resent() uint64 {
	if l.ledger == nil {
		return 0
	}
	return l.ledger.resent.Load()
}
