package fusefs

import (
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

func TestLedgerSlot(t *testing.T) {
	if size := unsafe.Sizeof(ledgerSlot{}); size != ledgerSlotBytes {
		t.Errorf("a slot has %d bytes, not %d", size, ledgerSlotBytes)
	}
}

func ask(unique uint64, op uint32) *fuse.InHeader { return &fuse.InHeader{Unique: unique, Opcode: op} }

// With more readers than slots the others go without, and a slot that is given back is used again.
func TestLedgerIsFull(t *testing.T) {
	memory := make([]byte, 4*ledgerSlotBytes)
	l := openLedger(memory)
	var all []uint16
	for i := range 3 {
		n := l.take()
		if n == 0 {
			t.Fatalf("reader %d has no slot", i)
		}
		all = append(all, n)
	}
	n := l.take()
	if n != 0 {
		t.Errorf("a fourth reader has slot %d", n)
	}
	if s := l.slot(ask(2, opMkdir)); s != nil { // padding 0
		t.Error("a request without a slot has one")
	}
	h := ask(2, opMkdir)
	h.Padding = all[1]
	l.slot(h).beginNow(h)
	l.give(0)
	l.give(all[1])
	if next := openLedger(memory); len(next.orphans) != 0 || len(next.free) != 3 {
		t.Errorf("what a reader has booked that is no more: %v", next.orphans)
	}
	if n := l.take(); n != all[1] {
		t.Errorf("the slot that was given back is %d, the next one %d", all[1], n)
	}
}

// What a process has booked is found by the next one, as long as it may be sent again; what the reader books next takes its place.
func TestLedgerOutlives(t *testing.T) {
	memory := make([]byte, 8*ledgerSlotBytes)
	l := openLedger(memory)
	a, b := ask(2, opMkdir), ask(4, opUnlink)
	a.Padding, b.Padding = l.take(), l.take()
	if l.slot(a).beginNow(a) || l.slot(b).begin(b, inodeID{ino: 7}, inodeID{}) {
		t.Error("a request that is new was begun before")
	}
	c := ask(6, opRename)
	c.Padding = a.Padding // the reader's next request
	l.slot(c).begin(c, inodeID{ino: 8}, inodeID{ino: 9})

	next := openLedger(memory)
	if len(next.orphans) != 2 {
		t.Fatalf("%d requests are booked, not 2", len(next.orphans))
	}
	r := &reader{slot: next.take()}
	again := ask(4|resentMark, opUnlink)
	next.claim(r, again)
	again.Padding = r.slot
	s := next.slot(again)
	if !s.begunBefore(again) || s.object.ino != 7 {
		t.Errorf("what was booked is not found: %+v", s)
	}
	if !s.begin(again, inodeID{ino: 1}, inodeID{}) || s.object.ino != 7 {
		t.Error("begin does not say that it was begun, or books anew")
	}
	r = &reader{slot: next.take()}
	unknown := ask(2|resentMark, opMkdir)
	next.claim(r, unknown)
	unknown.Padding = r.slot
	if next.slot(unknown).begin(unknown, inodeID{}, inodeID{}) {
		t.Error("a request that nothing is booked of was begun")
	}
	if _, left := next.orphans[6]; !left || len(next.orphans) != 1 {
		t.Errorf("left are %v", next.orphans)
	}
}

// A request waits for what is left of a wait, whatever was done to the clock.
func TestDrawRest(t *testing.T) {
	start := time.Unix(1e9, 0)
	d := &draw{}
	if _, _, begun := d.rest(waitLatency, start); begun {
		t.Error("it has waited")
	}
	d.waits(waitLatency, start, 10*time.Second)
	for _, c := range []struct{ after, left time.Duration }{{0, 10 * time.Second}, {4 * time.Second, 6 * time.Second}, {time.Hour, 0}, {-time.Hour, 10 * time.Second}} {
		left, had, begun := d.rest(waitLatency, start.Add(c.after))
		if !begun || left != c.left || left+had != 10*time.Second {
			t.Errorf("after %v: %v left and %v had, not %v", c.after, left, had, c.left)
		}
	}
	if left, _, begun := d.rest(waitThrottle, start); !begun || left != 0 {
		t.Errorf("the wait before it is not over: %v", left)
	}
	if _, _, begun := (*draw)(nil).rest(waitLatency, start); begun {
		t.Error("what is not booked has waited")
	}
}

// BenchmarkLedger is what booking costs: a look-up, an append without its system calls, a name with the time.
func BenchmarkLedger(b *testing.B) {
	l := openLedger(make([]byte, 8*ledgerSlotBytes))
	r := &reader{slot: l.take()}
	r.in, r.out = make([]byte, 256), make([]byte, outBytes)
	run := func(name string, f func(s *ledgerSlot, h *fuse.InHeader)) {
		b.Run(name, func(b *testing.B) {
			h := r.header()
			h.Padding = r.slot
			answer := r.reply(fuse.OK, 128)
			for i := range b.N {
				h.Unique = uint64(i)*2 + 1<<32
				s := l.slot(h)
				f(s, h)
				r.settle(s, answer)
			}
		})
	}
	run("nothing", func(*ledgerSlot, *fuse.InHeader) {})
	run("lookup", func(s *ledgerSlot, h *fuse.InHeader) { s.counts(h, 5) })
	run("write", func(s *ledgerSlot, h *fuse.InHeader) { s.begin(h, inodeID{}, inodeID{}) })
	run("unlink", func(s *ledgerSlot, h *fuse.InHeader) { s.begin(h, inodeID{ino: 1}, inodeID{}) })
	run("mkdir", func(s *ledgerSlot, h *fuse.InHeader) { s.beginNow(h); s.counts(h, 5) })
	run("open", func(s *ledgerSlot, h *fuse.InHeader) { s.opens(h, 5) })
}
