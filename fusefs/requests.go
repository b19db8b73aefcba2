package fusefs

import (
	"fmt"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Requests are read into memory that outlives the process, where the state of a layer is kept: the reader that has slot n of
// the ledger reads into the n-th part of it. So what a server had read when it died is there, whole: a thread that is
// killed within read(2) completes that call before it is gone. A kernel that cannot send requests again (before
// Linux 6.9) is then not needed for that: see takeUp in unanswered.go.

// requestRoom is what each slot has. Nothing of it takes memory that was never written.
const requestRoom = inBytes

// requestStart is where a request begins in the room of its slot: the payload of a write lies on a page.
const requestStart = pageSize - writeStart

// mapRequests gives the reader with a slot its room for requests: that of the state, else memory of its own.
func (l *ledger) mapRequests(slot uint16) ([]byte, error) {
	if l == nil || l.requests < 0 || slot == 0 {
		return mapBuffer(requestRoom)
	}
	b, err := unix.Mmap(l.requests, int64(slot)*requestRoom, requestRoom, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map memory for requests: %w", err)
	}
	return b, nil
}

// freeRequests gives the memory of a slot's room back.
func (l *ledger) freeRequests(slot uint16) {
	if l != nil && l.requests >= 0 && slot != 0 {
		_ = unix.Fallocate(l.requests, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(slot)*requestRoom, requestRoom) // only gives memory back
	}
}

// lastRead is the header of the request that was read last by the reader that had the slot; false if there was none.
func (l *ledger) lastRead(slot uint16) (h fuse.InHeader, ok bool) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(&h)), unsafe.Sizeof(h))
	n, err := unix.Pread(l.requests, b, int64(slot)*requestRoom+int64(requestStart))
	return h, err == nil && n == len(b) && h.Unique != 0
}
