package tracer

import (
	"slices"

	"golang.org/x/sys/unix"
)

// fillSlots adds the calls that put a file into each slot of the job's table,
// and sends the files. The table must be as it is when the batch runs: all that
// use it are stopped.
//
// There are two ways. Closing the slots and filling them in order costs no
// temporary descriptors, whose close can be slow: recvmsg(2) takes the lowest
// free numbers, so the free ones below are plugged first. Exchanging each by
// dup3(2) leaves no slot empty at any moment, and is right where the numbers
// are too sparse to plug.
func (j *job) fillSlots(b *batch, which pick, neverEmpty bool) error {
	if j.table == nil || len(j.table.slots) == 0 {
		return nil
	}
	now, err := j.openNumbers()
	if err != nil {
		if gone(err) {
			return errTargetGone
		}
		return err
	}
	used := newNumberSet(now)
	slices.SortFunc(j.table.slots, func(a, b *slot) int { return a.fd - b.fd })
	ordered, single := j.table.slots, []*slot(nil)
	if neverEmpty {
		ordered, single = nil, ordered
	} else {
		n := plugLimit(ordered, used)
		ordered, single = ordered[:n], ordered[n:]
	}
	if err := j.exchangeSlots(b, single, used, which); err != nil {
		return err
	}
	return j.refillSlots(b, ordered, used, which)
}

// plugLimit says for how many of the slots the free numbers below are few
// enough to be plugged.
func plugLimit(slots []*slot, used *numberSet) int {
	holes, next := 0, 0
	for i, s := range slots {
		for ; next < s.fd; next++ {
			if !used.has(next) {
				holes++
			}
		}
		if holes > 64+4*(i+1) {
			return i
		}
	}
	return len(slots)
}

// refillSlots closes slots and lets recvmsg fill them.
func (j *job) refillSlots(b *batch, slots []*slot, used *numberSet, which pick) error {
	if len(slots) == 0 {
		return nil
	}
	isSlot := map[int]bool{}
	for _, s := range slots {
		isSlot[s.fd] = true
	}
	var plugs []int
	for fd := range slots[len(slots)-1].fd {
		if !used.has(fd) && !isSlot[fd] {
			plugs = append(plugs, fd)
			b.add(unix.SYS_DUP3, uint64(j.r.theirs[0]), uint64(fd), unix.O_CLOEXEC)
		}
	}
	for part := range slices.Chunk(slots, atOnce(slots)) {
		var fds []int
		var files []file
		cloexec := 0
		for _, s := range part {
			fds = append(fds, s.fd)
			files = append(files, which(s.item))
			if s.cloexec {
				cloexec++
			}
		}
		closeRuns(b, fds)
		if err := j.r.sendAll(files); err != nil {
			return err
		}
		if cloexec == len(part) {
			b.receive(len(part), unix.MSG_CMSG_CLOEXEC, b.control(len(part)))
			continue
		}
		b.receive(len(part), 0, b.control(len(part)))
		for _, s := range part {
			if s.cloexec {
				b.add(unix.SYS_FCNTL, uint64(s.fd), unix.F_SETFD, unix.FD_CLOEXEC)
			}
		}
	}
	closeRuns(b, plugs)
	return nil
}

// exchangeSlots replaces slots by dup3 from temporary numbers, which are the
// lowest that are free.
func (j *job) exchangeSlots(b *batch, slots []*slot, used *numberSet, which pick) error {
	for part := range slices.Chunk(slots, atOnce(slots)) {
		var temps []int
		var files []file
		next := 0
		for _, s := range part {
			for used.has(next) {
				next++
			}
			temps = append(temps, next)
			files = append(files, which(s.item))
			next++
		}
		if err := j.r.sendAll(files); err != nil {
			return err
		}
		b.receive(len(part), unix.MSG_CMSG_CLOEXEC, b.control(len(part)))
		for i, s := range part {
			flags := uint64(0)
			if s.cloexec {
				flags = unix.O_CLOEXEC
			}
			b.add(unix.SYS_DUP3, uint64(temps[i]), uint64(s.fd), flags)
		}
		closeRuns(b, temps)
	}
	return nil
}

// closeRuns closes ascending numbers, with one close_range(2) for each run of
// neighbours. The numbers are free afterwards whatever a close returns.
func closeRuns(b *batch, fds []int) {
	for i := 0; i < len(fds); {
		k := i
		for k+1 < len(fds) && fds[k+1] == fds[k]+1 {
			k++
		}
		b.add(unix.SYS_CLOSE_RANGE, uint64(fds[i]), uint64(fds[k]), 0)
		i = k + 1
	}
}

// numberSet is a set of descriptor numbers.
type numberSet struct{ in []bool }

func newNumberSet(fds []int) *numberSet {
	s := &numberSet{}
	if len(fds) > 0 {
		s.in = make([]bool, slices.Max(fds)+1)
	}
	for _, fd := range fds {
		s.in[fd] = true
	}
	return s
}

func (s *numberSet) has(fd int) bool { return fd < len(s.in) && s.in[fd] }
