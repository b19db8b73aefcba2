package tracer

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// settableFlags can be changed by F_SETFL (include/linux/fcntl.h, SETFL_MASK).
const settableFlags = unix.O_APPEND | unix.O_NONBLOCK | unix.O_DIRECT | unix.O_NOATIME

// openFlags must be the same from the start: F_SETFL does not change them.
const openFlags = unix.O_ACCMODE | unix.O_PATH | unix.O_SYNC

// manner is what an open file description has beside its file.
type manner struct {
	flags  int
	offset int64
	seek   error // why it has no offset
	owner  fOwnerEx
	signal int // of asynchronous I/O (F_SETSIG)
}

// fOwnerEx is struct f_owner_ex: who is told of asynchronous I/O.
type fOwnerEx struct{ kind, pid int32 }

// manner asks for that of a file of ours, the old or the new one of an item.
func (it *item) manner(fd int) (m manner, err error) {
	if m.flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil {
		return m, fmt.Errorf("flags: %w", err)
	}
	if it.noFlags {
		return m, nil
	}
	m.offset, m.seek = unix.Seek(fd, 0, unix.SEEK_CUR)
	if _, _, e := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), fGetOwnEx, uintptr(unsafe.Pointer(&m.owner))); e != 0 {
		return m, fmt.Errorf("owner of asynchronous I/O: %w", e)
	}
	if m.signal, err = unix.FcntlInt(uintptr(fd), fGetSig, 0); err != nil {
		return m, fmt.Errorf("signal of asynchronous I/O: %w", err)
	}
	return m, nil
}

// lookAtNew takes note of what the new description is like. That need not wait for the stop where nobody but us has it.
func (it *item) lookAtNew(fd int) (err error) {
	if it.Kind != Descriptor {
		return nil
	}
	if it.fresh, err = it.manner(fd); err != nil {
		return fmt.Errorf("the new file: %w", err)
	}
	return nil
}

// carryOver gives the new open file description what the old one has beside its
// file. Both are ours; all that use the old one are stopped.
func (it *item) carryOver(fd int) error {
	if it.Kind != Descriptor {
		return nil
	}
	old, err := it.manner(it.file)
	if err != nil {
		return fmt.Errorf("the old file: %w", err)
	}
	flags := it.fresh.flags
	if old.flags&openFlags != flags&openFlags {
		return fmt.Errorf("the new file was opened with flags %#o, the old one has %#o", flags, old.flags)
	}
	if it.noFlags {
		return nil
	}
	if old.flags&settableFlags != flags&settableFlags {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^settableFlags|old.flags&settableFlags); err != nil {
			return fmt.Errorf("set flags %#o of the new file: %w", old.flags&settableFlags, err)
		}
	}
	if err := it.carryOffset(&old, fd); err != nil {
		return err
	}
	return it.carryOwner(&old, fd)
}

func (it *item) carryOffset(old *manner, fd int) error {
	if errors.Is(old.seek, syscall.ESPIPE) {
		return nil
	}
	if old.seek != nil {
		return fmt.Errorf("offset of the old file: %w", old.seek)
	}
	err := it.fresh.seek
	if err == nil && it.fresh.offset != old.offset {
		if it.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := readOnce(fd); err != nil {
				return err
			}
		}
		_, err = unix.Seek(fd, old.offset, unix.SEEK_SET)
	}
	if err != nil {
		return fmt.Errorf("set offset %d of the new file: %w", old.offset, err)
	}
	return nil
}

// readOnce reads from a directory of ext4, which is put at another position then. A description
// of ext4 that has never been read from, and is set to the end, shows an empty directory
// after it was set back to the start: where it is in the tree it remembers from the first
// read on (ext4_dx_readdir in fs/ext4/dir.c: info->last_pos, info->curr_hash; Linux 6.18).
func readOnce(dir int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil {
		return fmt.Errorf("file system of the new directory: %w", err)
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		return nil
	}
	var b [512]byte                                                                        // more than one entry: names have 255 bytes
	if _, err := unix.Getdents(dir, b[:]); err != nil && !errors.Is(err, syscall.ENOENT) { // ENOENT: it was removed
		return fmt.Errorf("read the new directory: %w", err)
	}
	return nil
}

// fcntl commands that x/sys/unix does not name.
const (
	fSetSig   = 10
	fGetSig   = 11
	fSetOwnEx = 15
	fGetOwnEx = 16
)

// carryOwner copies owner and signal of asynchronous I/O (F_SETOWN, F_SETSIG).
func (it *item) carryOwner(old *manner, fd int) error {
	if old.owner != it.fresh.owner && (old.owner.pid != 0 || it.fresh.owner.pid != 0) {
		if _, _, e := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), fSetOwnEx, uintptr(unsafe.Pointer(&old.owner))); e != 0 && !errors.Is(e, syscall.ESRCH) { // ESRCH: the owner has ended
			return fmt.Errorf("set owner of asynchronous I/O to %d: %w", old.owner.pid, e)
		}
	}
	if old.signal != it.fresh.signal {
		if _, err := unix.FcntlInt(uintptr(fd), fSetSig, old.signal); err != nil {
			return fmt.Errorf("set signal of asynchronous I/O to %d: %w", old.signal, err)
		}
	}
	return nil
}
