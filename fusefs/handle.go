package fusefs

import (
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// handle is one open file of the layer.
type handle struct {
	id      uint64
	fd      int // the description that the file stands for; -1 for one to read that is not needed yet, see file
	node    *node
	dir     bool
	adopted bool
	ofd     bool          // the description held OFD locks when it was adopted
	mode    mode          // set before the file is answered
	exact   bool          // see needsLayer
	stopped bool          // its opener stands still until a move is over
	flags   atomic.Uint32 // the description's status flags (F_GETFL)
	learned sync.Once     // see learn
	known   bool          // another process has learned the flags
	kept    atomic.Pointer[handleSlot]

	cut atomic.Int64 // where a transfer by O_DIRECT goes on, see cutShort

	ofdOwner, posixOwner atomic.Uint64 // lock owners whose kind is known, see ofdLock; 0 is none

	mu      sync.Mutex
	plain   [2]int          // descriptors of the same file without O_APPEND and O_DIRECT, to read and to write; 0 until needed
	pending []fuse.DirEntry // directory entries that were read and did not fit into the answer
	next    uint64          // the position after the last entry that was answered
	synced  bool            // next and pending are valid
}

// newHandle is a handle of fd, which is -1 as long as there is none, for a file that is opened with flags.
func newHandle(fd int, flags uint32) *handle {
	h := &handle{fd: fd}
	h.flags.Store(flags &^ dropped)
	return h
}

// mutable are the status flags that fcntl(F_SETFL) can change after open and that change what a write does.
const mutable = unix.O_APPEND | unix.O_DIRECT | unix.O_NOATIME

type handleTable struct {
	mu   sync.RWMutex
	m    map[uint64]*handle
	last uint64
	kept *stateTable
}

func (t *handleTable) init(kept *stateTable) {
	t.m = map[uint64]*handle{}
	t.kept = kept
}

// add enters a handle. The request that made it has it booked, if it is booked anywhere.
func (t *handleTable) add(h *handle, s *ledgerSlot, by *fuse.InHeader) {
	t.mu.Lock()
	t.last++
	h.id = t.last
	t.kept.numbers(func(d *tableHead) { d.lastHandle.Store(t.last) })
	s.opens(by, h.id)
	t.m[h.id] = h
	t.mu.Unlock()
}

func (t *handleTable) get(id uint64) *handle {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[id]
}

func (t *handleTable) remove(id uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.m[id]
	delete(t.m, id)
	if h != nil {
		t.kept.dropHandle(h)
	}
	return h
}

func (t *handleTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, h := range t.m {
		h.close()
		delete(t.m, id)
	}
}

// file is the description that the file stands for.
func (h *handle) file() (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd >= 0 {
		return h.fd, nil
	}
	fd, err := reopen(h.node, h.flags.Load())
	if err != nil {
		return -1, err
	}
	h.fd = fd
	h.keep(func(s *handleSlot) { s.fd.Store(int32(fd)) })
	return fd, nil
}

// close gives the descriptors back. What a close could report was reported by FLUSH.
func (h *handle) close() {
	h.mu.Lock() // nobody has it: for the race detector, which does not see that the kernel orders open and close
	defer h.mu.Unlock()
	if h.fd >= 0 {
		_ = unix.Close(h.fd)
	}
	for _, fd := range h.plain {
		if fd != 0 {
			_ = unix.Close(fd)
		}
	}
}

// learn reads the status flags of an adopted description once it is the layer's
// alone: between its adoption and the exchange the target may have changed them.
func (h *handle) learn() {
	if !h.adopted || h.known {
		return
	}
	h.learned.Do(func() {
		if is, err := unix.FcntlInt(uintptr(h.fd), unix.F_GETFL, 0); err == nil {
			h.setFlags(h.flags.Load()&^mutable | uint32(is)&mutable)
			h.keep(func(s *handleSlot) { s.learned.Store(true) })
		}
	})
}

// follow gives the description the status flags that the target has set on its file since it was opened.
func (h *handle) follow(flags uint32) {
	have := h.flags.Load()
	if (have^flags)&mutable == 0 {
		return
	}
	want := have&^mutable | flags&mutable
	_, err := unix.FcntlInt(uintptr(h.fd), unix.F_SETFL, int(want))
	if err == unix.EINVAL && want&^have&unix.O_DIRECT != 0 { // below there is none, which fcntl(2) on the layer did not see
		want &^= unix.O_DIRECT
		_, err = unix.FcntlInt(uintptr(h.fd), unix.F_SETFL, int(want))
	}
	if err == nil {
		h.setFlags(want)
	}
}

func (h *handle) setFlags(flags uint32) {
	h.flags.Store(flags)
	h.keep(func(s *handleSlot) { s.flags.Store(flags) })
}

// alias is a descriptor of the same file that takes any offset and length: page
// write-back may come through an O_APPEND or O_DIRECT file, and so may parts of
// what a program asked for.
func (h *handle) alias(write bool) (int, error) {
	i, mode := 0, unix.O_RDONLY
	if write {
		i, mode = 1, unix.O_WRONLY
	}
	h.mu.Lock()
	fd := h.plain[i]
	h.mu.Unlock()
	if fd != 0 {
		return fd, nil
	}
	fd, err := unix.Open(magic(h.node.fd), mode|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.plain[i] != 0 {
		_ = unix.Close(fd) // another request was faster
	} else {
		h.plain[i] = fd
	}
	return h.plain[i], nil
}
