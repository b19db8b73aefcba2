package keeper

import (
	"encoding/binary"
	"errors"
	"log/slog"

	"golang.org/x/sys/unix"
)

// Operations of the FUSE protocol, include/uapi/linux/fuse.h.
const (
	fuseRelease    = 18
	fuseFlush      = 25
	fuseReleasedir = 29
)

// answerCloses stands in for a dead server until the connection is aborted: it
// lets closes go through, because a swapper has to close files of the layer
// before it may abort, and leaves all else unanswered, so that a target waits
// instead of seeing an error. It owns fd and ends with the connection (ENODEV).
func answerCloses(fd int, logger *slog.Logger) {
	defer func() { _ = unix.Close(fd) }()
	// A read must have room for the largest request (fuse_dev_do_read, fs/fuse/dev.c).
	buf := make([]byte, 1<<20+1<<16)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue // ENOENT: the request was interrupted before it was read
		case err != nil:
			if !errors.Is(err, unix.ENODEV) {
				logger.Error("stand in for the dead server", "err", err)
			}
			return
		case n < 40:
			continue
		}
		switch binary.LittleEndian.Uint32(buf[4:]) {
		case fuseFlush, fuseRelease, fuseReleasedir:
			var out [16]byte // fuse_out_header: length, no error, the request's unique number
			binary.LittleEndian.PutUint32(out[0:], 16)
			copy(out[8:], buf[8:16])
			if _, err := unix.Write(fd, out[:]); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
				logger.Error("stand in for the dead server", "err", err)
			}
		}
	}
}
