package fusefs

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Where the kernel cannot send requests again (FUSE_NOTIFY_RESEND is there since Linux 6.9), what a server had read and not
// answered is found in the memory that it read into. Such a request is treated as one that the kernel sent
// again: it gets the mark of one, which its answer does not have.

// interruptMark is FUSE_INT_REQ_BIT of fs/fuse/fuse_i.h: an answer with it is one to the interrupt of a request.
const interruptMark = 1

// unanswered asks the kernel whether it waits for the answer to a request, which does not change that: EAGAIN to
// a request's interrupt is refused for a request that it does not know (ENOENT), and else has an
// interrupt that there was sent again; there need not have been one (EINVAL; fuse_dev_do_write and queue_interrupt in fs/fuse/dev.c).
func unanswered(device int, unique uint64) (bool, error) {
	o := fuse.OutHeader{Length: uint32(headerSize), Status: -int32(unix.EAGAIN), Unique: unique | interruptMark}
	err := retry(func() error {
		_, err := unix.Write(device, unsafe.Slice((*byte)(unsafe.Pointer(&o)), headerSize))
		return err
	})
	switch {
	case err == nil, errors.Is(err, unix.EINVAL):
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, err
}

// eachUnanswered calls f for each slot in whose room is a request that the kernel waits for, with the request's header.
func (l *ledger) eachUnanswered(device int, f func(slot uint16, h *fuse.InHeader) error) error {
	for slot := uint16(1); uint64(slot) < l.head.mark; slot++ {
		h, ok := l.lastRead(slot)
		if !ok || !awaitsAnswer(&h) {
			continue
		}
		unique := h.Unique &^ resentMark // which a server may have put there that has followed another
		left, err := unanswered(device, unique)
		if err != nil {
			return fmt.Errorf("ask the kernel for request %d: %w", unique, err)
		}
		if !left {
			continue
		}
		if err := f(slot, &h); err != nil {
			return err
		}
	}
	return nil
}

// takeUp makes readers of what another server had read and not answered. They answer that first when they are
// activated. What else that one had booked was answered, or its caller is gone.
func (l *Layer) takeUp() ([]*reader, error) {
	b := l.ledger
	var all []*reader
	err := b.eachUnanswered(l.device.fd, func(slot uint16, h *fuse.InHeader) error {
		r, err := l.device.readerOf(slot)
		if err != nil {
			return err
		}
		r.left = int(h.Length)
		r.header().Unique |= resentMark
		r.begin(h.Unique) // its interrupt may be the first that is read
		all = append(all, r)
		return nil
	})
	switch {
	case errors.Is(err, unix.ENODEV): // the connection has ended: who reads will find so
		return all, nil
	case err != nil:
		for _, r := range all {
			r.drop()
		}
		return nil, err
	}
	for _, r := range all {
		b.own(r.slot)
	}
	b.resent.Add(uint64(len(all)))
	l.swept()
	for _, slot := range b.free {
		b.freeRequests(slot)
	}
	return all, nil
}

// awaitsAnswer tells which requests are to be answered at all, of those that a reader reads.
func awaitsAnswer(h *fuse.InHeader) bool {
	switch h.Opcode {
	case opForget, opBatchForget, opInterrupt, opInit:
		return false
	}
	return h.Length >= uint32(unsafe.Sizeof(*h)) && h.Length <= requestRoom-uint32(requestStart)
}

// own takes a slot for the request that is in its room.
func (l *ledger) own(slot uint16) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = slices.DeleteFunc(l.free, func(s uint16) bool { return s == slot })
	for unique, s := range l.orphans {
		if s == slot {
			delete(l.orphans, unique)
		}
	}
}

// answerAsked takes the mark off the answer to a request that the kernel has not marked.
func (d *device) answerAsked(answer []byte) {
	if !d.resends() {
		(*fuse.OutHeader)(unsafe.Pointer(&answer[0])).Unique &^= resentMark
	}
}

// resends tells whether the kernel sends requests again (FUSE_HAS_RESEND, Linux 6.9).
func (d *device) resends() bool {
	return d.init.Flags64()&fuse.CAP_HAS_RESEND != 0 && !d.layer.o.NoResend
}
