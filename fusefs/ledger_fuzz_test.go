package fusefs

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fuzzedRoom is how much of a slot's room for requests the fuzzers fill.
const fuzzedRoom = 256

// deadState is the state of a server that has died, in which memory is its ledger's and rooms what it had read, one request after another.
func deadState(t testing.TB, memory, rooms []byte) *State {
	t.Helper()
	s := newState(t)
	copy(s.ledger(), memory)
	slot := int64(1)
	for b := range slices.Chunk(rooms, fuzzedRoom) {
		if _, err := unix.Pwrite(s.files[stateRequests], b, slot*requestRoom+int64(requestStart)); err != nil {
			t.Fatal(err)
		}
		slot++
	}
	return s
}

// deadLedgers are what servers book that die at each point, and what the requests were.
func deadLedgers(add func(memory, rooms []byte)) {
	for op := range uint32(56) {
		memory := make([]byte, 4*ledgerSlotBytes)
		l := openLedger(memory)
		var rooms []byte
		for unique := uint64(2); unique <= 6; unique += 2 {
			h := &fuse.InHeader{Opcode: op, Unique: unique, NodeId: 7, Padding: l.take()}
			s := l.slot(h)
			switch unique {
			case 2:
				s.beginMove(h, 7, inodeID{ino: 1}, inodeID{})
			case 4:
				s.beginNow(h)
				s.opens(h, 1)
				s.counts(h, 2)
				s.drew(h, draw{rule: 1})
				r := &reader{in: bytesOf(h), out: make([]byte, outBytes)}
				r.settle(s, r.reply(fuse.OK, unsafe.Sizeof(fuse.EntryOut{})))
			}
			body := message(op, 7, unique, append(make([]byte, 8*(unique%5)), "name\x00other\x00"...))
			rooms = append(rooms, append(body, make([]byte, fuzzedRoom-len(body))...)...)
		}
		add(memory, rooms)
	}
	add(bytes.Repeat([]byte{0xff}, 3*ledgerSlotBytes), bytes.Repeat([]byte{0xff}, 3*fuzzedRoom))
	// Answers that are longer, shorter and worse than they say.
	for _, c := range []struct {
		length, says uint32
		status       int32
	}{
		{0, 0, 0}, {15, 15, 0}, {16, 16, 0}, {16, 16, -5}, {16, 16, 5}, {16, 16, -512}, {16, 17, 0}, {17, 17, 0}, {17, 17, -5}, {17, 16, 0}, {144, 144, 0},
		{answerBytes, answerBytes, 0}, {answerBytes + 1, answerBytes + 1, 0}, {1 << 31, 1 << 31, 0},
	} {
		memory := make([]byte, 4*ledgerSlotBytes)
		l := openLedger(memory)
		h := &fuse.InHeader{Opcode: opMkdir, Unique: 2, NodeId: 7, Padding: l.take()}
		s := l.slot(h)
		s.beginNow(h)
		s.phase.Store(phaseAnswered)
		s.length = c.length
		*(*fuse.OutHeader)(unsafe.Pointer(&s.answer[0])) = fuse.OutHeader{Length: c.says, Status: c.status}
		s.counted, s.draws = 1<<31, 1<<31
		add(memory, message(opMkdir, 7, 2, []byte("\x00\x00\x00\x00\x00\x00\x00\x00name\x00")))
	}
}

// kernelSide is the kernel's side of a device that is a socket pair: it takes what is written there.
type kernelSide struct {
	device, fd int
	done       sync.WaitGroup
	answers    [][]byte
}

func newKernelSide(t testing.TB) *kernelSide {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	k := &kernelSide{device: pair[0], fd: pair[1]}
	k.done.Go(func() {
		for b := make([]byte, 1<<20); ; {
			n, err := unix.Read(k.fd, b)
			if err == unix.EINTR {
				continue
			}
			if err != nil || n == 0 {
				return
			}
			k.answers = append(k.answers, bytes.Clone(b[:n]))
		}
	})
	return k
}

// close ends it, and checks what the kernel would (fuse_dev_do_write in fs/fuse/dev.c): all is about a request that it may wait for.
func (k *kernelSide) close(t testing.TB, asked map[uint64]bool) {
	t.Helper()
	_ = unix.Shutdown(k.device, unix.SHUT_WR)
	k.done.Wait()
	_, _ = unix.Close(k.fd), unix.Close(k.device)
	for _, a := range k.answers {
		checkAnswer(t, a, asked)
	}
}

func checkAnswer(t testing.TB, answer []byte, asked map[uint64]bool) {
	t.Helper()
	o := part[fuse.OutHeader](answer)
	switch {
	case o == nil || int(o.Length) != len(answer) || o.Status > 0 || o.Status <= -512 || o.Status != 0 && len(answer) != headerSize:
		t.Errorf("the kernel refuses the answer %x", answer)
	case o.Unique&resentMark == 0 && o.Status == -int32(unix.EAGAIN) && asked[o.Unique&^interruptMark]: // it asks for it
	case !asked[o.Unique&^resentMark]:
		t.Errorf("nobody has asked for the answer %x", answer)
	}
}

// askedIn are the numbers of requests in rooms.
func askedIn(rooms []byte) map[uint64]bool {
	all := map[uint64]bool{}
	for b := range slices.Chunk(rooms, fuzzedRoom) {
		if h := part[fuse.InHeader](append(bytes.Clone(b), make([]byte, 40)...)); h != nil {
			all[h.Unique&^resentMark], all[h.Unique&^resentMark&^interruptMark] = true, true
		}
	}
	return all
}

// FuzzDeadLedger has any memory for the ledger of a dead server, and for the requests that it had read: whoever follows or stands in reads
// nothing beyond it, uses each slot once, and answers as the kernel takes it.
func FuzzDeadLedger(f *testing.F) {
	deadLedgers(func(memory, rooms []byte) { f.Add(memory, rooms, true); f.Add(memory, rooms, false) })
	f.Fuzz(func(t *testing.T, memory, rooms []byte, long bool) {
		if len(memory) > 64*ledgerSlotBytes || len(rooms) > 64*fuzzedRoom {
			t.Skip()
		}
		s := deadState(t, memory, rooms)
		l := openLedger(bytes.Clone(s.ledger()[:1024*ledgerSlotBytes]))
		seen := map[uint16]bool{0: true}
		for _, slot := range slices.Concat(l.free, slices.Collect(valuesOf(l.orphans))) {
			if seen[slot] || uint64(slot) >= l.head.mark {
				t.Errorf("slot %d of %d is there twice, or was never used", slot, l.head.mark)
			}
			seen[slot] = true
		}
		if uint64(len(seen)) != l.head.mark || l.head.mark > uint64(len(l.slots)) {
			t.Errorf("%d slots are used, of %d", len(seen), l.head.mark)
		}

		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "name"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		table, err := s.begin()
		if err != nil {
			t.Fatal(err)
		}
		defer table.close()
		table.node(&node{id: 7, fd: 3})
		if long {
			table.numbers(func(h *tableHead) { h.flags = fuse.CAP_SETXATTR_EXT })
		}
		left, err := s.Unanswered(func(int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3) })
		if err != nil {
			t.Fatal(err)
		}
		k := newKernelSide(t)
		standIn := &StandIn{
			Device: k.device, Backing: fd, Unanswered: left, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Swapper: func(int) bool { return true },
			Description: func(uint64) (int, bool) {
				fd, err := unix.MemfdCreate("description", unix.MFD_CLOEXEC)
				return fd, err == nil
			},
		}
		for b := range slices.Chunk(rooms, fuzzedRoom) { // by the kernel
			standIn.serve(b, &standIn.again)
		}
		standIn.takeUp()
		standIn.again.Wait()
		left.Close()
		k.close(t, askedIn(rooms))
		_ = unix.Close(fd)
	})
}

func valuesOf[K comparable, V any](m map[K]V) func(func(V) bool) {
	return func(yield func(V) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// FuzzFollow is FuzzDeadLedger for a server that follows, with requests that the kernel sends again, and with those that it finds where
// they were read to.
func FuzzFollow(f *testing.F) {
	deadLedgers(func(memory, rooms []byte) { f.Add(memory, rooms) })
	f.Fuzz(func(t *testing.T, memory, rooms []byte) {
		// As in FuzzRequest: names that would leave the directory.
		if len(memory) > 64*ledgerSlotBytes || len(rooms) > 64*fuzzedRoom || bytes.ContainsAny(rooms, "/") || bytes.Contains(rooms, []byte("..")) {
			t.Skip()
		}
		r := overSocket(t)
		d := r.d
		d.layer.ledger = keep(deadState(t, memory, rooms))
		k := newKernelSide(t)
		was := d.fd
		d.fd = k.device
		asked := askedIn(rooms)
		left, err := d.layer.takeUp() // this one first: the other takes slots
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range left {
			serveAgain(t, r, r.left, asked)
			r.free()
		}
		d.layer.ledger = keep(deadState(t, memory, rooms))
		r.slot = d.layer.ledger.take()
		for b := range slices.Chunk(rooms, fuzzedRoom) {
			b = bytes.Clone(b)
			if h := part[fuse.InHeader](b); h != nil && awaitsAnswer(h) {
				h.Length, h.Unique = uint32(len(b)), h.Unique|resentMark
				n := r.put(b)
				d.layer.ledger.claim(r, r.header())
				serveAgain(t, r, n, asked)
			}
		}
		d.layer.sweep()
		if n := len(d.layer.ledger.orphans); n > 0 {
			t.Errorf("%d requests are waited for", n)
		}
		k.close(t, asked)
		d.fd, d.layer.ledger, r.slot = was, nil, 0 // the state goes before the layer
	})
}

// serveAgain answers a request, unless its kind is one that waits.
func serveAgain(t testing.TB, r *reader, n int, asked map[uint64]bool) {
	t.Helper()
	if r.header().Opcode == opSetlkw {
		return
	}
	if a := r.answer(n); a != nil {
		checkAnswer(t, a, asked)
	}
}

// FuzzDraw: whatever a dead server has booked of a wait, nobody waits longer than that one was to.
func FuzzDraw(f *testing.F) {
	f.Add(int64(0), int64(time.Second), uint32(waitLatency))
	f.Add(int64(1<<62), int64(1<<62), uint32(waitThrottle))
	f.Add(int64(-1), int64(-1), uint32(9))
	f.Fuzz(func(t *testing.T, since, length int64, kind uint32) {
		d := &draw{since: since, length: length, kind: kind}
		for _, k := range []uint32{waitThrottle, waitLatency} {
			left, had, begun := d.rest(k, time.Unix(1e9, 0))
			if begun && (left > max(time.Duration(length), 0) || left+had > max(time.Duration(length), 0)) {
				t.Errorf("%v left and %v had of %v", left, had, time.Duration(length))
			}
		}
	})
}
