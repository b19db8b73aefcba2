package keeper

import (
	"errors"
	"maps"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"golang.org/x/sys/unix"
)

// remains are what the dead server of a layer had open, in this process. Whoever takes the layer off without a server needs them.
type remains struct {
	objects []int          // O_PATH, see fusefs.Left
	files   map[uint64]int // descriptions by the handle of the layer's file
	owners  []lockOwner
	// unanswered is for who stands in for the server, see standIn.
	unanswered *fusefs.Unanswered
	faults     []FaultCount // what it has counted, to the last one
}

// lockOwner is a process for which the server had POSIX locks. They are OFD locks of file.
type lockOwner struct {
	PID  int    `json:"pid"`
	Ino  uint64 `json:"ino"`
	file int
}

// takeRemains takes the remains of a graft's layer from the holder, unless they were taken. Where there is no holder any more, there are none.
func (k *keeper) takeRemains(h *held) {
	h.taking.Lock() // who takes the layer off, and who sees to the dead server, may come at once
	defer h.taking.Unlock()
	k.mu.Lock()
	taken, here := h.remains != nil, maps.Clone(h.adopted)
	k.mu.Unlock()
	if taken {
		return
	}
	r, err := k.remainsOf(h.ID, here)
	if err != nil {
		k.o.Logger.Warn("what the dead server had open is not all there: what has no path any more, and locks, may be lost", "graft", h.ID, "err", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	h.remains = r
	if r.faults != nil {
		h.faults = r.faults
	}
}

// remainsOf takes all but the descriptions that are here, by handle: of many open files there may not be room for both.
func (k *keeper) remainsOf(id string, here map[uint64]int) (*remains, error) {
	r := &remains{files: map[uint64]int{}}
	e, there, err := k.left()
	l := e.layer(id)
	if err != nil || !there || l == nil {
		return r, err
	}
	t := newTaker(e)
	defer t.close()
	st, err := t.state(*l)
	if err != nil {
		return r, err
	}
	defer func() { _ = st.Close() }() // of this process
	takeOne := func(number int) (int, error) {
		fds, err := t.take(st.Owner(), number)
		if err != nil {
			return -1, err
		}
		return fds[0], nil
	}
	var errs []error
	if r.unanswered, err = st.Unanswered(takeOne); err != nil {
		errs = append(errs, err)
	}
	left, err := st.Left()
	if err != nil {
		return r, errors.Join(append(errs, err)...)
	}
	r.faults = faultCounts(left.Faults)
	failed := false
	take := func(number int) (int, bool) {
		fd, err := takeOne(number)
		if err != nil && !failed { // one tells as much as thousands
			failed, errs = true, append(errs, err)
		}
		return fd, err == nil
	}
	for _, f := range left.Files {
		if _, is := here[f.Handle]; is {
			continue
		}
		if fd, ok := take(f.FD); ok {
			r.files[f.Handle] = fd
		}
	}
	for _, o := range left.Owners {
		if fd, ok := take(o.FD); ok {
			r.owners = append(r.owners, lockOwner{PID: o.PID, Ino: o.Ino, file: fd})
		}
	}
	// Last, should there be no room for all: most have a path.
	for _, n := range left.Objects {
		if fd, ok := take(n); ok {
			r.objects = append(r.objects, fd)
		}
	}
	return r, errors.Join(errs...)
}

func (r *remains) close() {
	if r == nil {
		return
	}
	r.unanswered.Close()
	wire.CloseAll(r.objects)
	for _, fd := range r.files {
		_ = unix.Close(fd) // the target has it again
	}
	for _, o := range r.owners {
		_ = unix.Close(o.file) // the process has its locks again
	}
}

// descriptions are the originals, and what the dead server had open of files that were opened later. The caller holds k.mu.
func (h *held) descriptions() map[uint64]int {
	if h.remains == nil {
		return h.adopted
	}
	all := maps.Clone(h.remains.files)
	maps.Copy(all, h.adopted)
	return all
}

// description is the one of descriptions that a file of the layer stands for. The caller holds k.mu.
func (h *held) description(handle uint64) (fd int, ok bool) {
	if fd, ok = h.adopted[handle]; !ok && h.remains != nil {
		fd, ok = h.remains.files[handle]
	}
	return fd, ok
}
