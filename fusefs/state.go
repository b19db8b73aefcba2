package fusefs

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// State is what a layer needs to be served on by another process: memory that outlives the one that serves (memfds), and in it
// the numbers of that one's descriptors. It is written while requests are answered, so that it is true at any instruction at
// which the process may be killed. A State is for one layer.
type State struct {
	files [stateFiles]int // memfds
	head  *stateHead
	log   []byte // resent requests, see stateLedger
}

// The memfds of a State.
const (
	stateControl = iota // which of the tables is in force
	stateTable0         // what the layer knows; the other one is written by Restore
	stateTable1
	stateLedger   // what was done about requests that may be sent again
	stateRequests // the requests themselves
	stateFiles
)

const (
	stateMagic = 0x66617567726166 // "faugraf"
	// stateVersion is raised by who changes what a field means. That one has moved is seen by stateLayout.
	stateVersion = 2
	headBytes    = 4096
	// ledgerBytes is the room for what was done about requests.
	ledgerBytes = 16 << 20
	// requestBytes is room for a request for each slot of the ledger.
	requestBytes = ledgerBytes / ledgerSlotBytes * requestRoom
)

var stateSizes = [stateFiles]int64{headBytes, tableBytes, tableBytes, ledgerBytes, requestBytes}

// stateHead is the first memfd.
type stateHead struct {
	magic, version uint64
	layout         uint64           // stateLayout of who made it
	active         atomic.Uint64    // the table in force: 0 or 1
	owner          [2]atomic.Uint64 // process whose descriptors a table numbers
}

// NewState makes the memory for the state of one layer.
func NewState() (*State, error) {
	s := &State{}
	for i := range s.files {
		s.files[i] = -1
	}
	for i, size := range stateSizes {
		fd, err := unix.MemfdCreate("faultgraft-state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err == nil {
			s.files[i] = fd
			if err = unix.Ftruncate(fd, size); err == nil { // sparse: what was never written takes no memory
				_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
			}
		}
		if err != nil {
			s.closeFiles()
			return nil, fmt.Errorf("state of a fault layer: make shared memory: %w", err)
		}
	}
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, err
	}
	s.head.magic, s.head.version, s.head.layout = stateMagic, stateVersion, stateLayout()
	return s, nil
}

// OpenState is for another process: files are the descriptors of State.Files there, duplicated or inherited, in their order. The State owns them from a successful call on.
func OpenState(files []int) (*State, error) {
	if len(files) != stateFiles {
		return nil, fmt.Errorf("state of a fault layer: it has %d files, not %d", stateFiles, len(files))
	}
	s := &State{files: [stateFiles]int(files)}
	for i, size := range stateSizes {
		var st unix.Stat_t
		if err := unix.Fstat(s.files[i], &st); err != nil {
			return nil, fmt.Errorf("state of a fault layer: look at its file %d: %w", i, err)
		}
		if st.Size != size {
			return nil, fmt.Errorf("state of a fault layer: its file %d has %d bytes, not %d: it is of another version of faultgraft", i, st.Size, size)
		}
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	if err := s.head.check(); err != nil {
		_ = s.unmap()
		return nil, fmt.Errorf("state of a fault layer: %w", err)
	}
	return s, nil
}

// check refuses what this build cannot read: magic, version and layout stay where they are in all versions.
func (h *stateHead) check() error {
	switch {
	case h.magic != stateMagic:
		return errors.New("this is none")
	case h.version != stateVersion:
		return fmt.Errorf("it is of another version of faultgraft: its form is %d, this one knows %d", h.version, stateVersion)
	case h.layout != stateLayout():
		return fmt.Errorf("it is of another build of faultgraft, which has it laid out in another way (%x, not %x)", h.layout, stateLayout())
	case h.active.Load() > 1:
		return fmt.Errorf("table %d is in force, of 0 and 1", h.active.Load())
	}
	return nil
}

func (s *State) open() error {
	head, err := unix.Mmap(s.files[stateControl], 0, headBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("state of a fault layer: map it: %w", err)
	}
	s.head = (*stateHead)(unsafe.Pointer(&head[0]))
	s.log, err = unix.Mmap(s.files[stateLedger], 0, ledgerBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		_ = s.unmap()
		return fmt.Errorf("state of a fault layer: map it: %w", err)
	}
	return nil
}

// Files are the state's memfds, to be passed to another process.
func (s *State) Files() []int { return s.files[:] }

// Owner is the process (PID) whose descriptors the state numbers: the one that served the layer last, or, once Restore has
// returned there, the one that is going to. 0: no layer was made with it yet. Whoever takes the descriptors from a
// process that shares the owner's table asks this first: a server may be killed right after its Restore.
func (s *State) Owner() int { return int(s.head.owner[s.head.active.Load()].Load()) }

// begin gives the table for a layer that begins. It numbers descriptors of this process.
func (s *State) begin() (*stateTable, error) {
	at := s.head.active.Load()
	s.head.owner[at].Store(uint64(os.Getpid()))
	return s.newTable(int(at))
}

// next gives the table that is not in force, empty, for a layer that goes on in this process.
func (s *State) next() (*stateTable, error) { return s.newTable(int(1 - s.head.active.Load())) }

// turn puts the table that next gave in force. From here on the numbers of this process's descriptors count. The
// other table, which nobody needs any more, is emptied.
func (s *State) turn() error {
	old := s.head.active.Load()
	s.head.owner[1-old].Store(uint64(os.Getpid()))
	s.head.active.Store(1 - old)
	return punch(s.files[stateTable0+int(old)])
}

// discard empties the state of a layer that has ended.
func (s *State) discard() {
	if s == nil || s.head == nil {
		return
	}
	for _, fd := range []int{s.files[stateTable0], s.files[stateTable1], s.files[stateRequests]} {
		_ = punch(fd) // only gives memory back
	}
}

// ledger is the memory for what was done about requests. It outlives every Restore.
func (s *State) ledger() []byte { return s.log }

// Close gives the memory back in this process. The layer that uses it, if any, has ended.
func (s *State) Close() error {
	err := s.unmap()
	s.closeFiles()
	return err
}

func (s *State) unmap() error {
	var err error
	if s.head != nil {
		err = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(s.head)), headBytes))
		s.head = nil
	}
	if s.log != nil {
		err = errors.Join(err, unix.Munmap(s.log))
		s.log = nil
	}
	return err
}

func (s *State) closeFiles() {
	for i, fd := range s.files {
		if fd >= 0 {
			_ = unix.Close(fd) // a memfd: nothing to report
		}
		s.files[i] = -1
	}
}
