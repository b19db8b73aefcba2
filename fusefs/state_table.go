package fusefs

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A table of a State is a memfd of slots that stay where they are. A slot is filled first and counts from the store of its
// commit word on, which is one instruction: so it is whole or not there, at whatever instruction the process is killed.
// What changes often is a word of its own in the slot. To replace a slot, another one with a later number is committed before
// the first is freed. What has to change together goes through the redo record of the table's head.
//
// Nothing is read from a table but by Restore.
type stateTable struct {
	unmap runtime.Cleanup // when nothing refers to it any more

	mem  []byte
	head *tableHead
	seq  atomic.Uint64

	mu   sync.Mutex
	free [len(slotSizes)][]unsafe.Pointer // slots that were freed
	open [len(slotSizes)]openChunk

	batch    []slotChange // see changing; guarded by nodeTable.mu
	batching bool
}

const (
	// tableBytes is the greatest size of a table: some 20 million objects. What is not written takes no memory.
	tableBytes = 8 << 30
	// chunkBytes are given to slots of one size at a time. The first chunk is the head.
	chunkBytes = 1 << 20
	chunks     = tableBytes / chunkBytes
	maxRedo    = 16
	initBytes  = 256
)

// slotSizes are multiples of a cache line.
var slotSizes = [...]int{64, 128, 320, 1024, 5120, 64 << 10, 512 << 10}

// tableHead is the first chunk of a table.
type tableHead struct {
	nextNode, lastHandle atomic.Uint64 // numbers that were given; numbers are not used again
	device               atomic.Int64  // descriptor of /dev/fuse
	ending               atomic.Bool   // see EndFlushes
	incomplete           atomic.Bool   // something could not be kept: there was no room

	initSize atomic.Uint64 // bytes of init; 0 before the handshake
	init     [initBytes]byte
	flags    uint64 // what was agreed on in the handshake

	redone atomic.Uint64 // entries of redo that have to be done
	redo   [maxRedo]redoEntry

	chunks atomic.Uint64 // that are in use, the head among them
	class  [chunks]uint8
	used   [chunks]atomic.Uint32 // bytes of each that were ever given out
}

type redoEntry struct{ at, commit uint64 }

// slot is the beginning of every slot.
type slot struct {
	commit atomic.Uint64 // slotKind and, from bit 8 on, a number that rises; 0: free
}

type slotKind uint8

const (
	slotNode slotKind = iota + 1
	slotName
	slotLast
	slotHandle
	slotOwner
	slotForgotten
	slotRule
	slotFault
)

type slotChange struct {
	s      *slot
	commit uint64
	size   int // of a slot that is freed
}

type openChunk struct{ at, end int }

// newTable empties a table of a state and maps it. It is unmapped when nothing refers to it any more.
func (s *State) newTable(which int) (*stateTable, error) {
	fd := s.files[stateTable0+which]
	if err := punch(fd); err != nil {
		return nil, fmt.Errorf("state of a fault layer: empty it: %w", err)
	}
	t, err := mapTable(fd, unix.MAP_SHARED, tableBytes)
	if err != nil {
		return nil, err
	}
	t.head.chunks.Store(1)
	t.head.device.Store(-1)
	return t, nil
}

// punch gives the memory of a memfd back: it is zeros then.
func punch(fd int) error {
	return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, max(tableBytes, requestBytes))
}

func mapTable(fd, how, size int) (*stateTable, error) {
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, how|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("state of a fault layer: map it: %w", err)
	}
	for _, advice := range []int{unix.MADV_DONTFORK, unix.MADV_DONTDUMP} { // a child has no use for it
		_ = unix.Madvise(mem, advice)
	}
	t := &stateTable{mem: mem, head: (*tableHead)(unsafe.Pointer(&mem[0]))}
	t.unmap = runtime.AddCleanup(t, func(mem []byte) { _ = unix.Munmap(mem) }, mem)
	return t, nil
}

// close unmaps a table that nothing refers to for sure.
func (t *stateTable) close() {
	t.unmap.Stop()
	_ = unix.Munmap(t.mem)
}

// take gives room for a slot of so many bytes, at most the greatest of slotSizes; nil if there is none left, which Restore will know.
func (t *stateTable) take(size int) unsafe.Pointer {
	if t == nil {
		return nil
	}
	class := 0
	for slotSizes[class] < size {
		class++
	}
	size = slotSizes[class]
	t.mu.Lock()
	defer t.mu.Unlock()
	if free := t.free[class]; len(free) > 0 {
		t.free[class] = free[:len(free)-1]
		return free[len(free)-1]
	}
	o := &t.open[class]
	if o.end-o.at < size {
		n := int(t.head.chunks.Load())
		if n >= chunks {
			t.head.incomplete.Store(true)
			return nil
		}
		t.head.class[n] = uint8(class)
		t.head.chunks.Store(uint64(n + 1))
		*o = openChunk{n * chunkBytes, (n + 1) * chunkBytes}
	}
	p := unsafe.Pointer(&t.mem[o.at])
	o.at += size
	chunk := (o.at - 1) / chunkBytes
	t.head.used[chunk].Store(uint32(o.at - chunk*chunkBytes))
	return p
}

// commit has a slot count from here on.
func (t *stateTable) commit(s *slot, k slotKind) {
	if t != nil {
		s.commit.Store(t.number(k))
	}
}

func (t *stateTable) number(k slotKind) uint64 { return t.seq.Add(1)<<8 | uint64(k) }

// drop frees a slot of so many bytes.
func (t *stateTable) drop(s *slot, size int) {
	if t == nil || uintptr(unsafe.Pointer(s))-uintptr(unsafe.Pointer(t.head)) >= tableBytes { // it is the process's own
		return
	}
	s.commit.Store(0)
	t.giveBack(s, size)
}

// giveBack has a slot used again that does not count any more.
func (t *stateTable) giveBack(s *slot, size int) {
	class := 0
	for slotSizes[class] < size {
		class++
	}
	t.mu.Lock()
	t.free[class] = append(t.free[class], unsafe.Pointer(s))
	t.mu.Unlock()
}

// changing begins changes of names that are made whole or not at all by the call of what it returns. The caller holds
// nodeTable.mu until then.
func (t *stateTable) changing() (done func()) {
	if t == nil {
		return func() {}
	}
	t.batching = true
	return t.changed
}

func (t *stateTable) changed() {
	t.batching = false
	t.book()
	for _, c := range t.batch {
		c.s.commit.Store(c.commit)
	}
	t.head.redone.Store(0)
	for _, c := range t.batch {
		if c.commit == 0 { // not before: others use it from here on
			t.giveBack(c.s, c.size)
		}
	}
	t.batch = t.batch[:0]
}

// book writes down what is going to be changed: from its last store on all of it counts.
func (t *stateTable) book() {
	if n := len(t.batch); n > 1 && n <= maxRedo {
		for i, c := range t.batch {
			t.head.redo[i] = redoEntry{uint64(uintptr(unsafe.Pointer(c.s)) - uintptr(unsafe.Pointer(t.head))), c.commit}
		}
		t.head.redone.Store(uint64(n))
	}
}

// commitName is commit for what may be part of changing. The caller holds nodeTable.mu, as for dropName.
func (t *stateTable) commitName(s *slot, k slotKind) {
	if t.batching {
		t.batch = append(t.batch, slotChange{s: s, commit: t.number(k)})
		return
	}
	t.commit(s, k)
}

func (t *stateTable) dropName(s *slot, size int) {
	if t.batching {
		t.batch = append(t.batch, slotChange{s: s, size: size})
		return
	}
	t.drop(s, size)
}

// numbers changes the head of a table, if there is one.
func (t *stateTable) numbers(f func(*tableHead)) {
	if t != nil {
		f(t.head)
	}
}

// handshake keeps an INIT request, and what was agreed on.
func (t *stateTable) handshake(request []byte, flags uint64) {
	if t == nil {
		return
	}
	t.head.flags = flags
	t.head.initSize.Store(uint64(copy(t.head.init[:], request)))
}

// redoAll does what was to be changed together when the process was killed.
func (t *stateTable) redoAll() error {
	n := t.head.redone.Load()
	if n > maxRedo {
		return fmt.Errorf("state of a fault layer: %d changes at once", n)
	}
	for _, e := range t.head.redo[:n] {
		if e.at%uint64(slotSizes[0]) != 0 || e.at < chunkBytes || e.at >= uint64(len(t.mem)) {
			return fmt.Errorf("state of a fault layer: a change at %#x", e.at)
		}
		(*slot)(unsafe.Pointer(&t.mem[e.at])).commit.Store(e.commit)
	}
	return nil
}

// each calls f for every slot that counts, with the size of its room.
func (t *stateTable) each(f func(k slotKind, seq uint64, s unsafe.Pointer, size int) error) error {
	n := t.head.chunks.Load()
	if n > uint64(len(t.mem)/chunkBytes) {
		return fmt.Errorf("state of a fault layer: %d chunks", n)
	}
	for i := 1; i < int(n); i++ {
		class, used := int(t.head.class[i]), int(t.head.used[i].Load())
		if class >= len(slotSizes) || used > chunkBytes {
			return fmt.Errorf("state of a fault layer: chunk %d is of kind %d and has %d bytes", i, class, used)
		}
		size := slotSizes[class]
		for at := 0; at+size <= used; at += size {
			p := unsafe.Pointer(&t.mem[i*chunkBytes+at])
			commit := (*slot)(p).commit.Load()
			if commit == 0 {
				continue
			}
			if err := f(slotKind(commit), commit>>8, p, size); err != nil {
				return err
			}
		}
	}
	return nil
}
