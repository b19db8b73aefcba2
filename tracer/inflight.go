package tracer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Descriptors that were sent over a unix socket (SCM_RIGHTS) and not received yet
// are references that only the queue holds. A peek of the queue gives us
// duplicates of them and leaves all as it is (unix_peek_fds, net/unix/af_unix.c):
// those of the first message that has any.

// The depth to which sockets are looked into that are in flight themselves; the
// kernel allows 4 (MAX_RECURSION_LEVEL, include/net/af_unix.h).
const maxNested = 4

const reasonInFlight = "it is in flight: sent over a unix socket and not received yet. Whoever receives it gets the file as it is now. Wait until it is received and try again"

// emptyQueue reports what is in the queue of a socket. A program that works takes
// descriptors out at once: before a refusal they get some time.
func (s *scanner) emptyQueue(h *heldSource, queued *int, live bool) ([]heldReport, error) {
	for {
		r := s.queuedFiles(h, *queued)
		if len(r) == 0 || !live || !s.o.RequireAll || s.patient <= 0 {
			return r, nil
		}
		time.Sleep(queuePoll)
		s.patient -= queuePoll
		text, err := fdInfoText(h.dir, h.fd, s.text)
		if err == nil {
			*queued, _, err = parseQueued(text)
		}
		if err != nil {
			if gone(err) {
				return nil, nil
			}
			return nil, err
		}
		if *queued == 0 {
			return nil, nil
		}
	}
}

// For all queues together, and for each look at one.
const (
	queuePatience = 200 * time.Millisecond
	queuePoll     = 5 * time.Millisecond
)

// queuedFiles reports the descriptors in the queue of a socket that are part of
// the swap, and how many there are that cannot be told.
func (s *scanner) queuedFiles(h *heldSource, queued int) []heldReport {
	if s.o.MapsByPath { // a thread that receives into a map of a dead file system has the queue locked
		return s.untoldInFlight(h, queued, "their file system does not answer")
	}
	socket, err := h.g.get(h.fd)
	if err != nil {
		if gone(err) {
			return nil
		}
		return s.untoldInFlight(h, queued, err.Error())
	}
	defer func() { _ = unix.Close(socket) }() // a duplicate
	h.seen = 0
	return s.peekFiles(h, socket, queued, 1)
}

func (s *scanner) peekFiles(h *heldSource, socket, queued, depth int) (r []heldReport) {
	fds, err := peek(socket)
	defer closeFiles(fds, closeWait)
	if err != nil {
		if errors.Is(err, errQueueEmpty) { // received a moment ago
			return nil
		}
		return s.untoldInFlight(h, queued, err.Error())
	}
	for _, fd := range fds {
		o := h.object(InFlight)
		o.Index = h.seen
		h.seen++
		if err := identifyFile(&o, fd); err != nil {
			r = append(r, s.untoldInFlight(h, 1, err.Error())...)
			continue
		}
		switch {
		case strings.HasPrefix(o.Path, "/"):
			if s.o.Match(&o) {
				r = append(r, heldReport{ObjectReport: ObjectReport{Object: o, Reason: reasonInFlight}})
			}
		case strings.HasPrefix(o.Path, "socket:"):
			nested, err := queuedBehind(fd)
			switch {
			case err != nil:
				r = append(r, s.untoldInFlight(h, 1, err.Error())...)
			case nested > 0 && depth < maxNested:
				r = append(r, s.peekFiles(h, fd, nested, depth+1)...)
			case nested > 0:
				r = append(r, s.untoldInFlight(h, nested, "they are in the queues of sockets that are in flight themselves")...)
			}
		}
	}
	if left := queued - len(fds); left > 0 {
		r = append(r, s.untoldInFlight(h, left, "they are behind another message in the queue")...)
	}
	return r
}

// untoldInFlight reports descriptors of which only the number is known.
func (s *scanner) untoldInFlight(h *heldSource, n int, why string) []heldReport {
	o := h.object(InFlight)
	o.Path = h.link
	return s.untold(o, fmt.Sprintf("%d descriptors are in flight to this socket whose files cannot be told: %s. Wait until they are received and try again", n, why))
}

// queuedBehind reads how many descriptors are in the queue of a socket of ours.
func queuedBehind(fd int) (int, error) {
	dir, err := unix.Open("/proc/self/fdinfo", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(dir) }() // O_PATH
	var buf [1024]byte
	text, err := fdInfoText(dir, fd, buf[:])
	if err != nil {
		return 0, err
	}
	n, _, err := parseQueued(text)
	return n, err
}

var errQueueEmpty = errors.New("nothing is in the queue")

// scmPidfd is a control message with a descriptor of the sender, which the kernel
// adds where SO_PASSPIDFD is set (include/linux/socket.h, Linux 6.5).
const scmPidfd = 4

// peek duplicates the descriptors of the first message in the socket's queue that
// has any. On an error there may be some all the same.
func peek(socket int) (fds []int, err error) {
	// a peek moves the place of the next one, where the program asked for that
	switch off, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEEK_OFF); {
	case err != nil:
		return nil, fmt.Errorf("SO_PEEK_OFF of the socket: %w", err)
	case off >= 0:
		return nil, errors.New("its program peeks by itself (SO_PEEK_OFF)")
	}
	// A peek of a stream goes on over bytes without descriptors to the first that
	// have some, if there is room for them (unix_stream_read_generic). Nobody wants
	// the bytes: all of the vector is one piece of memory.
	var bytesOf [1 << 16]byte
	var iov [512]unix.Iovec
	for i := range iov {
		iov[i].Base = &bytesOf[0]
		iov[i].SetLen(len(bytesOf))
	}
	control := make([]byte, 1<<14)
	m := unix.Msghdr{Iov: &iov[0], Control: &control[0]}
	m.SetIovlen(len(iov))
	m.SetControllen(len(control))
	_, _, e := unix.Syscall(unix.SYS_RECVMSG, uintptr(socket), uintptr(unsafe.Pointer(&m)), unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	switch e {
	case 0:
	case syscall.EAGAIN:
		return nil, errQueueEmpty
	case syscall.EINVAL: // unix_stream_read_generic: not connected
		return nil, errors.New("they are in connections that were not accepted yet")
	default:
		return nil, fmt.Errorf("peek at the queue: %w", e)
	}
	// messages before a truncated one are whole
	messages, perr := unix.ParseSocketControlMessage(control[:m.Controllen])
	for _, c := range messages {
		if c.Header.Level != unix.SOL_SOCKET || c.Header.Type != unix.SCM_RIGHTS && c.Header.Type != scmPidfd {
			continue
		}
		for d := c.Data; len(d) >= 4; d = d[4:] {
			n := int(int32(binary.NativeEndian.Uint32(d)))
			switch {
			case c.Header.Type == unix.SCM_RIGHTS:
				fds = append(fds, n)
			case n >= 0:
				_ = unix.Close(n) // a pidfd
			}
		}
	}
	if perr != nil {
		return fds, fmt.Errorf("control messages in the queue: %w", perr)
	}
	return fds, nil
}

// closeWait is how long the closes of other programs' files are waited for, which may have nothing to do with the swap.
const closeWait = 20 * time.Millisecond

// closeFiles closes duplicates, of which the last close is not ours to judge, and waits for no longer than that. Each close is told
// to a file system that wants to hear of it (flush in struct file_operations), and one that does not answer takes for ever.
func closeFiles(fds []int, patience time.Duration) {
	if len(fds) == 0 {
		return
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	select {
	case <-closed:
	case <-time.After(patience):
	}
}
