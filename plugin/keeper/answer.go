package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/faultgraft/faultgraft/fusefs"
	"golang.org/x/sys/unix"
)

// Of the FUSE protocol, include/uapi/linux/fuse.h.
const (
	fuseGetattr    = 3
	fuseWrite      = 16
	fuseRelease    = 18
	fuseFlush      = 25
	fuseReleasedir = 29
	fuseIoctl      = 39

	fuseRoot       = 1 // node id of the root directory
	fuseWriteCache = 1 // flag of a write of pages, not of a program's

	fuseHead = 40 // bytes of struct fuse_in_header
)

// standIn stands in for the dead server of a layer until the connection is aborted. It
// lets closes go through, because a swapper has to close files of the layer
// before it may abort, and leaves all else unanswered, so that a target waits
// instead of seeing an error; but for
//   - attributes of the root directory: to take a layer off "/" they have to be known (graft, knowRoot);
//   - the swapper's question which handle an open file has;
//   - pages of maps that the kernel writes: after the abort they would be lost.
//
// It owns fd and backing, what lies under the layer, and ends with the connection (ENODEV).
type standIn struct {
	fd, backing int
	logger      *slog.Logger
	swapper     func(tid int) bool              // is this a thread of the swapper?
	description func(handle uint64) (int, bool) // duplicates what an open file stands for
}

func (s *standIn) run() {
	defer func() { _, _ = unix.Close(s.fd), unix.Close(s.backing) }()
	if os.Getenv("FAULTGRAFT_TEST_NO_RESEND") == "" {
		// Pages that the dead server had in its hands come once more; before Linux 6.9 (EINVAL) they do not.
		_, _ = unix.Write(s.fd, fusefs.ResendNotification())
	}
	// A read must have room for the largest request (fuse_dev_do_read, fs/fuse/dev.c), whose pages are there beforehand: while a request
	// is copied to a keeper that is killed it gets none any more, and the kernel answers the request with EIO (see wholeReaders in fusefs).
	buf, err := unix.Mmap(-1, 0, 1<<20+1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		s.logger.Error("stand in for the dead server", "err", err)
		return
	}
	defer func() { _ = unix.Munmap(buf) }()
	for {
		n, err := unix.Read(s.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue // ENOENT: the request was interrupted before it was read
		case err != nil:
			if !errors.Is(err, unix.ENODEV) {
				s.logger.Error("stand in for the dead server", "err", err)
			}
			return
		case n < fuseHead:
			continue
		}
		answer, ok := s.answer(buf[:n])
		if !ok {
			continue
		}
		head := binary.LittleEndian.AppendUint32(nil, uint32(16+len(answer))) // struct fuse_out_header: length, no error, the request's unique number
		head = binary.LittleEndian.AppendUint32(head, 0)
		head = append(head, buf[8:16]...)
		if _, err := unix.Write(s.fd, append(head, answer...)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			s.logger.Error("stand in for the dead server", "err", err)
		}
	}
}

// answer gives what follows the header of an answer; false: the request is not answered.
func (s *standIn) answer(request []byte) (answer []byte, ok bool) {
	in := request[fuseHead:]
	switch binary.LittleEndian.Uint32(request[4:]) {
	case fuseFlush, fuseRelease, fuseReleasedir:
		return nil, true
	case fuseGetattr:
		if binary.LittleEndian.Uint64(request[16:]) == fuseRoot {
			return s.rootAttributes()
		}
	case fuseIoctl: // struct fuse_ioctl_in
		if len(in) >= 32 && binary.LittleEndian.Uint32(in[12:]) == fusefs.IoctlHandle && s.swapper(int(binary.LittleEndian.Uint32(request[32:]))) {
			return append(make([]byte, 16), in[:8]...), true // struct fuse_ioctl_out: it has succeeded; and the handle
		}
	case fuseWrite: // struct fuse_write_in
		if len(in) >= 40 && binary.LittleEndian.Uint32(in[20:])&fuseWriteCache != 0 {
			return s.writePages(binary.LittleEndian.Uint64(in), int64(binary.LittleEndian.Uint64(in[8:])), in[40:])
		}
	}
	return nil, false
}

// writePages writes to the file below. What cannot be written stays with the kernel.
func (s *standIn) writePages(handle uint64, offset int64, data []byte) (answer []byte, ok bool) {
	description, ok := s.description(handle)
	if !ok {
		return nil, false
	}
	defer func() { _ = unix.Close(description) }() // a duplicate
	// Opened anew, because the description may be one for O_APPEND or O_DIRECT.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", description), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		var n int
		n, err = unix.Pwrite(fd, data, offset)
		if cerr := unix.Close(fd); err == nil {
			err = cerr
		}
		if err == nil && n < len(data) {
			err = unix.EIO
		}
	}
	if err != nil {
		s.logger.Error("write pages of a map in the dead server's stead", "offset", offset, "bytes", len(data), "err", err)
		return nil, false
	}
	return binary.LittleEndian.AppendUint64(nil, uint64(len(data))), true // struct fuse_write_out
}

// rootAttributes answers a GETATTR of the root directory (struct fuse_attr_out), for an hour; false: it cannot.
func (s *standIn) rootAttributes() ([]byte, bool) {
	var st unix.Stat_t
	if err := unix.Fstat(s.backing, &st); err != nil {
		return nil, false
	}
	b := make([]byte, 0, 104)
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
	u64(3600)
	u32(0, 0)
	u64(st.Ino, uint64(st.Size), uint64(st.Blocks), uint64(st.Atim.Sec), uint64(st.Mtim.Sec), uint64(st.Ctim.Sec))
	u32(uint32(st.Atim.Nsec), uint32(st.Mtim.Nsec), uint32(st.Ctim.Nsec), st.Mode, uint32(st.Nlink), st.Uid, st.Gid, uint32(st.Rdev), uint32(st.Blksize), 0)
	return b, true
}
