package tracer

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Lender is another process that has new files open, for a swap of more files than this one may have open (RLIMIT_NOFILE): each of the
// target's is one already. It must keep them as they are until Swap returns. A file is borrowed for what has to be done with it and closed
// again, and a close can take its time on a file system that wants to hear of it (NFS): who has room duplicates instead.
type Lender struct {
	PID   int
	Pidfd int // stays the caller's
}

// NewLender takes hold of a process, which must live.
func NewLender(pid int) (*Lender, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d, which has files for a swap: %w", pid, err)
	}
	return &Lender{PID: pid, Pidfd: pidfd}, nil
}

// Close lets go of the process.
func (l *Lender) Close() { _ = unix.Close(l.Pidfd) }

// Take duplicates what the lender has open as number.
func (l *Lender) Take(number int) (int, error) {
	fd, err := unix.PidfdGetfd(l.Pidfd, number, 0)
	if err != nil {
		return -1, fmt.Errorf("descriptor %d of process %d, which has files for a swap: %w", number, l.PID, err)
	}
	return fd, nil
}

// file is one that goes into a process.
type file struct {
	fd     int
	lender *Lender // who has it open; nil: this process
}

// holder is the process that has it open, for kcmp.
func (f file) holder(self int) int {
	if f.lender != nil {
		return f.lender.PID
	}
	return self
}

// withNew calls do with a descriptor of the new file.
func (it *item) withNew(do func(fd int) error) error {
	if it.lender == nil {
		return do(it.repl)
	}
	if it.Kind != Descriptor {
		return errors.New("the new file is another process's")
	}
	fd, err := it.lender.Take(it.repl)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // the lender has it
	return do(fd)
}

// borrowedAtOnce is how many files are borrowed at a time, of a process that may have next to no descriptor left.
const borrowedAtOnce = 32

// atOnce is how many files go into one message.
func atOnce(slots []*slot) int {
	if slices.ContainsFunc(slots, func(s *slot) bool { return s.item.lender != nil }) {
		return borrowedAtOnce
	}
	return maxRights
}

// sendAll is send for files some of which are borrowed.
func (r *remote) sendAll(files []file) error {
	fds := make([]int, len(files))
	var borrowed []int
	defer func() {
		for _, fd := range borrowed { // they are in the queue
			_ = unix.Close(fd)
		}
	}()
	for i, f := range files {
		fds[i] = f.fd
		if f.lender == nil {
			continue
		}
		var err error
		if fds[i], err = f.lender.Take(f.fd); err != nil {
			return err
		}
		borrowed = append(borrowed, fds[i])
	}
	return r.send(fds)
}

// noRoom: this process, or the machine, has no descriptor left.
func noRoom(err error) bool { return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) }
