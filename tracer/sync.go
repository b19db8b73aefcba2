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

// carryOver gives the new open file description what the old one has beside its
// file. Both are ours; all that use the old one are stopped.
func (it *item) carryOver() error {
	if it.Kind != Descriptor {
		return nil
	}
	old, err := unix.FcntlInt(uintptr(it.file), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("flags of the old file: %w", err)
	}
	flags, err := unix.FcntlInt(uintptr(it.repl), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("flags of the new file: %w", err)
	}
	if old&openFlags != flags&openFlags {
		return fmt.Errorf("the new file was opened with flags %#o, the old one has %#o", flags, old)
	}
	if it.noFlags {
		return nil
	}
	if old&settableFlags != flags&settableFlags {
		if _, err := unix.FcntlInt(uintptr(it.repl), unix.F_SETFL, flags&^settableFlags|old&settableFlags); err != nil {
			return fmt.Errorf("set flags %#o of the new file: %w", old&settableFlags, err)
		}
	}
	if err := it.carryOffset(); err != nil {
		return err
	}
	return it.carryOwner()
}

func (it *item) carryOffset() error {
	at, err := unix.Seek(it.file, 0, unix.SEEK_CUR)
	if errors.Is(err, syscall.ESPIPE) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("offset of the old file: %w", err)
	}
	now, err := unix.Seek(it.repl, 0, unix.SEEK_CUR)
	if err == nil && now != at {
		if it.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := readOnce(it.repl); err != nil {
				return err
			}
		}
		_, err = unix.Seek(it.repl, at, unix.SEEK_SET)
	}
	if err != nil {
		return fmt.Errorf("set offset %d of the new file: %w", at, err)
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
func (it *item) carryOwner() error {
	var old, now struct{ kind, pid int32 }
	for _, g := range []struct {
		fd int
		to *struct{ kind, pid int32 }
	}{{it.file, &old}, {it.repl, &now}} {
		if _, _, e := unix.Syscall(unix.SYS_FCNTL, uintptr(g.fd), fGetOwnEx, uintptr(unsafe.Pointer(g.to))); e != 0 {
			return fmt.Errorf("owner of asynchronous I/O: %w", e)
		}
	}
	if old != now && (old.pid != 0 || now.pid != 0) {
		if _, _, e := unix.Syscall(unix.SYS_FCNTL, uintptr(it.repl), fSetOwnEx, uintptr(unsafe.Pointer(&old))); e != 0 && !errors.Is(e, syscall.ESRCH) { // ESRCH: the owner has ended
			return fmt.Errorf("set owner of asynchronous I/O to %d: %w", old.pid, e)
		}
	}
	sig, err := unix.FcntlInt(uintptr(it.file), fGetSig, 0)
	if err != nil {
		return fmt.Errorf("signal of asynchronous I/O: %w", err)
	}
	if now, err := unix.FcntlInt(uintptr(it.repl), fGetSig, 0); err != nil || now != sig {
		if _, err := unix.FcntlInt(uintptr(it.repl), fSetSig, sig); err != nil {
			return fmt.Errorf("set signal of asynchronous I/O to %d: %w", sig, err)
		}
	}
	return nil
}
