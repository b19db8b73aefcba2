package keeper

import (
	"encoding/binary"
	"errors"
	"log/slog"

	"golang.org/x/sys/unix"
)

// Operations of the FUSE protocol, include/uapi/linux/fuse.h.
const (
	fuseGetattr    = 3
	fuseRelease    = 18
	fuseFlush      = 25
	fuseReleasedir = 29
)

// fuseRoot is the node id of the root directory.
const fuseRoot = 1

// answerCloses stands in for a dead server until the connection is aborted: it
// lets closes go through, because a swapper has to close files of the layer
// before it may abort, and leaves all else unanswered, so that a target waits
// instead of seeing an error. Attributes of the root directory are answered too:
// to take a layer off "/" they have to be known (graft, knowRoot). It owns fd and
// backing, what lies under the layer, and ends with the connection (ENODEV).
func answerCloses(fd, backing int, logger *slog.Logger) {
	defer func() { _, _ = unix.Close(fd), unix.Close(backing) }()
	write := func(answer []byte) {
		if _, err := unix.Write(fd, answer); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			logger.Error("stand in for the dead server", "err", err)
		}
	}
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
			write(out[:])
		case fuseGetattr:
			if binary.LittleEndian.Uint64(buf[16:]) == fuseRoot {
				if answer := rootAttributes(backing, buf[8:16]); answer != nil {
					write(answer)
				}
			}
		}
	}
}

// rootAttributes answers a GETATTR of the root directory (struct fuse_attr_out), for an hour; nil: it cannot.
func rootAttributes(backing int, unique []byte) []byte {
	var s unix.Stat_t
	if err := unix.Fstat(backing, &s); err != nil {
		return nil
	}
	b := make([]byte, 0, 120)
	u32 := func(all ...uint32) {
		for _, v := range all {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
	}
	u64 := func(all ...uint64) {
		for _, v := range all {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	u32(120, 0) // length, no error
	b = append(b, unique...)
	u64(3600)
	u32(0, 0)
	u64(s.Ino, uint64(s.Size), uint64(s.Blocks), uint64(s.Atim.Sec), uint64(s.Mtim.Sec), uint64(s.Ctim.Sec))
	u32(uint32(s.Atim.Nsec), uint32(s.Mtim.Nsec), uint32(s.Ctim.Nsec), s.Mode, uint32(s.Nlink), s.Uid, s.Gid, uint32(s.Rdev), uint32(s.Blksize), 0)
	return b
}
