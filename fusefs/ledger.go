package fusefs

import (
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A server that dies leaves requests that it has read and not answered. Whoever serves the layer on has the kernel send
// them again (FUSE_NOTIFY_RESEND), marked as such, and cannot see from a request how far the one that died had come with
// it. The ledger says so. It is memory that outlives the process, with a place for each reader: what a reader books is about
// the request that it is answering. Nothing is ever cleared there: a request whose answer was sent does not come again, and
// the numbers of requests are not used twice (fuse_get_unique in fs/fuse/dev.c).
//
// What is booked of a request, and what a server does that finds it there:
//   - nothing: it was not begun, or can be done twice without a difference (reads, attributes). It is done.
//   - that it was begun: it may have been done. What lies under the layer tells; resend_names.go and resend_write.go say how.
//   - its answer: that is sent.
//
// Besides, a request that makes an open file of the layer or counts look-ups books these, so that they are taken back when
// the answer is made anew or nobody waits for it any more; and what rules have drawn for it, so that no fault is drawn twice.
type ledger struct {
	slots []ledgerSlot // those of the memory; the first is the head
	head  *ledgerHead
	// requests is the memory that requests are read into (a memfd), with room for each slot; -1 for none.
	requests int
	// opened is when this process began to use the memory: what the one before it has done was done by then.
	opened time.Time

	mu   sync.Mutex
	free []uint16 // below the mark

	// What another process has left, until the kernel has sent all requests again.
	orphans  map[uint64]uint16 // by request
	taking   sync.Mutex        // one reader at a time reads a request and looks for it
	resuming atomic.Bool
	resent   atomic.Uint64 // requests that came again
}

// ledgerHead is at the place of the first slot.
type ledgerHead struct {
	mark uint64 // slots from here on were never used
}

// ledgerSlot is what is booked of one request. Its size is ledgerSlotBytes.
type ledgerSlot struct {
	unique   atomic.Uint64 // the request, without the mark of one that comes again; written after all that is true from the beginning
	phase    atomic.Uint32
	opcode   uint32
	began    int64   // when it was begun, ns since the epoch
	node     uint64  // the kernel's number of what it was sent to: where it is about a name, the directory
	newDir   uint64  // of the directory that a rename goes to
	object   inodeID // what it is about: the victim of an unlink, the source of a rename or link
	replaced inodeID // what a rename replaces or exchanges
	position int64   // see appending
	handle   uint64  // the open file that it made; 0 for none
	draws    uint32
	counted  uint32 // look-ups that it has counted
	length   uint32 // of the answer; 0: it is not kept
	_        uint32
	drawn    [maxDraws]draw
	answer   [answerBytes]byte
	nodes    [maxCounted]uint64 // of which they are
}

const (
	ledgerSlotBytes = 1024
	// answerBytes is the size of the longest answer that is kept, CREATE's.
	answerBytes = uint32(unsafe.Sizeof(fuse.OutHeader{}) + unsafe.Sizeof(fuse.CreateOut{}))
	// maxDraws is for how many rules that match a request it is booked what they have drawn.
	maxDraws = 6
	// maxCounted is how many look-ups of one request are booked: READDIRPLUS counts many.
	maxCounted = 59
)

// inodeID names an object below, as long as a node pins it.
type inodeID struct {
	major, minor uint32
	ino          uint64
}

func (k key) inode() inodeID { return inodeID{k.major, k.minor, k.ino} }

// The phases of a request.
const (
	phaseNone     uint32 = iota
	phaseBooked          // something is booked of it
	phaseBegun           // it may have been done
	phaseAnswered        // its answer is about to be sent, or was
)

// resentMark is FUSE_UNIQUE_RESEND of include/uapi/linux/fuse.h.
const resentMark = 1 << 63

func resent(h *fuse.InHeader) bool { return h.Unique&resentMark != 0 }

// openLedger uses memory, which is all zeros at first, as ledger.
func openLedger(memory []byte) *ledger {
	n := min(len(memory)/ledgerSlotBytes, 1<<16)
	l := &ledger{slots: unsafe.Slice((*ledgerSlot)(unsafe.Pointer(&memory[0])), n), opened: time.Now(), orphans: map[uint64]uint16{}, requests: -1}
	l.head = (*ledgerHead)(unsafe.Pointer(&memory[0]))
	l.head.mark = min(max(l.head.mark, 1), uint64(n))
	for i := l.head.mark - 1; i > 0; i-- {
		s := &l.slots[i]
		unique := s.unique.Load()
		if unique == 0 || s.phase.Load() == phaseNone {
			l.free = append(l.free, uint16(i))
			continue
		}
		if other, twice := l.orphans[unique]; twice { // cannot be: a slot is taken over, not copied
			l.free = append(l.free, other)
		}
		l.orphans[unique] = uint16(i)
	}
	return l
}

// take gives a reader a slot; 0 is none: there are more readers than slots.
func (l *ledger) take() uint16 {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if last := len(l.free) - 1; last >= 0 {
		i := l.free[last]
		l.free = l.free[:last]
		return i
	}
	if l.head.mark >= uint64(len(l.slots)) {
		return 0
	}
	l.head.mark++
	return uint16(l.head.mark - 1)
}

// give takes a slot back. What is booked in it is about a request that was answered.
func (l *ledger) give(i uint16) {
	if l == nil || i == 0 {
		return
	}
	l.slots[i].phase.Store(phaseNone) // whoever finds the memory may use it at once
	l.mu.Lock()
	l.free = append(l.free, i)
	l.mu.Unlock()
}

// slot is where a request is booked; nil if it is nowhere. Its number is in the header's padding, which the kernel
// leaves zero, so that it comes along with the header.
func (l *ledger) slot(h *fuse.InHeader) *ledgerSlot {
	if l == nil || h.Padding == 0 {
		return nil
	}
	return &l.slots[h.Padding]
}

// book makes sure that the slot is about the request.
func (s *ledgerSlot) book(h *fuse.InHeader) {
	unique := h.Unique &^ resentMark
	if s.unique.Load() == unique {
		return
	}
	// Until unique is written the slot is about the reader's last request, which was answered: whatever it says does not matter.
	s.phase.Store(phaseBooked)
	s.opcode, s.handle, s.position, s.draws, s.counted, s.length = h.Opcode, 0, 0, 0, 0, 0
	s.object, s.replaced = inodeID{}, inodeID{}
	s.node, s.newDir = h.NodeId, 0
	s.unique.Store(unique)
}

// begin books that the request is going to be done, object and replaced are what it is about. It reports whether a server
// that died had booked that, and may have done it: what that one saw counts then.
func (s *ledgerSlot) begin(h *fuse.InHeader, object, replaced inodeID) (again bool) {
	if s == nil {
		return false
	}
	s.book(h)
	again = s.phase.Load() == phaseBegun
	if !again {
		s.object, s.replaced = object, replaced
		s.phase.Store(phaseBegun)
	}
	reach(placeBegun, h)
	return again
}

// beginNow is begin for what can be told by the time at which it was done.
func (s *ledgerSlot) beginNow(h *fuse.InHeader) (again bool) {
	if s == nil {
		return false
	}
	s.book(h)
	if s.phase.Load() != phaseBegun {
		s.began = time.Now().UnixNano()
	}
	return s.begin(h, inodeID{}, inodeID{})
}

// beginMove is begin for a rename to another directory, or within one.
func (s *ledgerSlot) beginMove(h *fuse.InHeader, newDir uint64, object, replaced inodeID) (again bool) {
	if s == nil {
		return false
	}
	s.book(h)
	s.newDir = newDir
	return s.begin(h, object, replaced)
}

// begunBefore is what begin is going to report.
func (s *ledgerSlot) begunBefore(h *fuse.InHeader) bool {
	return s != nil && resent(h) && s.unique.Load() == h.Unique&^resentMark && s.phase.Load() == phaseBegun
}

// opens books the handle of the file that the request opens, before anybody can find it.
func (s *ledgerSlot) opens(h *fuse.InHeader, handle uint64) {
	if s == nil {
		return
	}
	s.book(h)
	s.handle = handle
}

// counts books that the request has counted a look-up.
func (s *ledgerSlot) counts(h *fuse.InHeader, node uint64) {
	if s == nil {
		return
	}
	s.book(h)
	if s.counted < maxCounted {
		s.nodes[s.counted] = node
		s.counted++
	}
}
