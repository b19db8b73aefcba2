package fusefs

import (
	"bytes"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A write at an offset can be done twice. One that appends cannot, and what lies in the file does not tell whether it was
// done: others may append to it behind the layer, and programs write the same line many times. The description's own
// position tells. Nobody else uses it: the layer gives an offset with every read and write. An append goes by the
// position instead, which the kernel moves behind what was written, in the same system call (ksys_write in
// fs/read_write.c), and which is 0 before.

// adoptedMark, in ledgerSlot.position, says that the description's position may be somebody's: it is left as it is, and
// looked at together with what was written.
const adoptedMark = 1 << 62

// append writes to the end of the file.
func (h *handle) append(s *ledgerSlot, by *fuse.InHeader, data []byte, rwf int) (int, error) {
	s.book(by)
	if s.phase.Load() != phaseBegun {
		at, err := h.beforeAppend()
		if err != nil {
			return 0, err
		}
		s.position = at
	}
	if again := s.begin(by, inodeID{}, inodeID{}); again && s.position&adoptedMark == 0 {
		if _, err := unix.Seek(h.fd, 0, unix.SEEK_SET); err != nil {
			return 0, err
		}
	}
	return writeOn(h.fd, data, rwf)
}

// writeOn writes where the description's position is, which for an append is the end, and moves it.
func writeOn(fd int, b []byte, rwf int) (n int, err error) {
	err = retry(func() error {
		if rwf == 0 {
			n, err = unix.Write(fd, b)
		} else {
			n, err = unix.Pwritev2(fd, [][]byte{b}, -1, rwf)
		}
		return err
	})
	return max(n, 0), err
}

// doneBefore reports whether an append, or n bytes of it, was done that a server that died had begun.
func (w *write) doneBefore(data []byte) (n int, done bool) {
	s := w.l.ledger.slot(w.q.header)
	if w.back || !s.begunBefore(w.q.header) || w.h.flags.Load()&unix.O_APPEND == 0 {
		return 0, false
	}
	return w.h.appended(s.position, data)
}

// finish appends what is missing of an append that a server that died had begun: a fatal signal ends a write between two
// pages (generic_perform_write in mm/filemap.c), where a program would be told of a short write for no reason. The
// position stays behind what is there, so that yet another server finds that.
func (w *write) finish(data []byte, n int) int {
	if n == len(data) {
		return n
	}
	var more int
	err := w.l.creds.asWriter(w.q.header, func() (err error) {
		more, err = writeOn(w.h.fd, data[n:], w.h.syncing(w.flags))
		return err
	})
	if err != nil { // as for any write of which a part was done
		return n
	}
	return n + more
}

// beforeAppend is the description's position before an append.
func (h *handle) beforeAppend() (int64, error) {
	if !h.adopted {
		return unix.Seek(h.fd, 0, unix.SEEK_SET)
	}
	at, err := unix.Seek(h.fd, 0, unix.SEEK_CUR)
	return at | adoptedMark, err
}

// appended reports whether data, or n bytes of it, were appended since the description's position was was.
func (h *handle) appended(was int64, data []byte) (n int, done bool) {
	at, err := unix.Seek(h.fd, 0, unix.SEEK_CUR)
	if err != nil {
		return 0, false
	}
	if was&adoptedMark == 0 && at == 0 || was&adoptedMark != 0 && at == was&^adoptedMark {
		return 0, false
	}
	fd, err := h.alias(false)
	if err != nil {
		return len(data), true // it was written; how much, nobody can tell
	}
	have := make([]byte, min(int64(len(data)), at))
	if _, err := pread(fd, have, at-int64(len(have))); err != nil {
		return len(data), true
	}
	for n = len(have); n > 0; n-- { // the longest first: it is all of it but when the space was used up
		if have[len(have)-1] == data[n-1] && bytes.Equal(have[len(have)-n:], data[:n]) {
			return n, true
		}
	}
	if was&adoptedMark != 0 {
		return 0, false // somebody else has moved it
	}
	return len(data), true // and changed since
}
