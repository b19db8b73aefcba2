package fusefs

import (
	"io"
	"log/slog"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FuzzStandIn has requests of any form answered that a dead server had booked. An answer is one to the request, and as long as it says.
func FuzzStandIn(f *testing.F) {
	for op := range uint32(56) {
		h := fuse.InHeader{Opcode: op, Unique: 4, NodeId: 7}
		for _, more := range []string{"", "name\x00other\x00", "\x01\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x01\x00\x00\x00name\x00value\x00", string(make([]byte, 200))} {
			f.Add(append(bytesOf(&h), more...), uint8(phaseBegun), uint16(0), true)
			f.Add(append(bytesOf(&h), more...), uint8(phaseAnswered), uint16(headerSize+int(unsafe.Sizeof(fuse.EntryOut{}))), false)
		}
	}
	f.Fuzz(func(t *testing.T, request []byte, phase uint8, length uint16, long bool) {
		if len(request) < int(unsafe.Sizeof(fuse.InHeader{})) {
			return
		}
		dir, err := unix.Open(t.TempDir(), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		h := part[fuse.InHeader](request)
		booked := &ledgerSlot{opcode: h.Opcode, node: 7, newDir: 7, length: uint32(length), object: inodeID{ino: uint64(length)}}
		booked.phase.Store(uint32(phase))
		s := &StandIn{
			Backing: dir, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Swapper: func(int) bool { return true },
			Description: func(uint64) (int, bool) {
				fd, err := unix.MemfdCreate("description", unix.MFD_CLOEXEC)
				return fd, err == nil
			},
			Unanswered: &Unanswered{
				booked: map[uint64]*ledgerSlot{h.Unique &^ resentMark: booked}, nodes: map[uint64]*node{7: {id: 7, fd: dir}},
				rooms: &ledger{requests: -1}, ended: time.Now(), setxattrLong: long,
			},
		}
		defer s.Unanswered.Close() // dir too
		answer, ask := s.answer(request)
		if ask {
			answer = s.ask(request)
		}
		if answer == nil {
			return
		}
		if o := part[fuse.OutHeader](answer); o == nil || o.Unique != h.Unique || phase != uint8(phaseAnswered) && int(o.Length) != len(answer) {
			t.Errorf("the answer to request %d: %x", h.Unique, answer)
		}
	})
}
