package tracer

import (
	"errors"
	"fmt"
	"slices"

	"github.com/faultgraft/faultgraft/mountinfo"
	"golang.org/x/sys/unix"
)

// localLocks are file systems whose POSIX locks are all in this kernel, so that to
// test for one asks no server (none of them has file_operations.lock).
var localLocks = map[string]bool{
	"ext2": true, "ext3": true, "ext4": true, "xfs": true, "btrfs": true, "f2fs": true, "bcachefs": true, "tmpfs": true, "ramfs": true,
	"overlay": true, "vfat": true, "exfat": true, "ntfs3": true, "squashfs": true, "erofs": true, "iso9660": true,
}

// unlocked reports that nobody has a POSIX lock on an item's file. One system call
// tells where reading fdinfo takes four: F_OFD_GETLK (fcntl(2)) shows any lock
// that another owner has.
func (s *scanner) unlocked(pid int, it *item) bool {
	if !localLocks[s.fileSystem(pid, it.MountID)] {
		return false
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
	err := unix.FcntlFlock(uintptr(it.file), unix.F_OFD_GETLK, &l)
	return err == nil && l.Type == unix.F_UNLCK
}

// fileSystem returns the type of the file system that a mount shows, "" for one
// that process pid does not see.
func (s *scanner) fileSystem(pid int, mount uint64) string {
	if t, ok := s.types[mount]; ok {
		return t
	}
	s.types[mount] = ""
	all, err := mountinfo.Of(pid)
	if err != nil {
		return "" // the slower way does without
	}
	for _, m := range all {
		s.types[uint64(m.ID)] = m.FSType
	}
	return s.types[mount]
}

// collectLocks finds the POSIX locks that the exchange of descriptors drops.
func (x *transaction) collectLocks(j *job) error {
	if j.table == nil {
		return nil
	}
	dir, err := openFdInfo(j.table.tid)
	if err != nil {
		if gone(err) {
			return nil
		}
		return fmt.Errorf("fdinfo of process %d (%s): %w", j.p.pid, j.p.comm, err)
	}
	defer func() { _ = unix.Close(dir) }() // O_PATH
	type file struct{ dev, ino uint64 }
	taken := map[file]map[Lock]bool{} // false: seen, but no slot yet through which it can be taken
	add := func(s *slot, locks []Lock) {
		f := file{s.obj.Dev, s.obj.Ino}
		for _, l := range locks {
			if taken[f] == nil {
				taken[f] = map[Lock]bool{}
			}
			if !taken[f][l] {
				if taken[f][l] = lockable(s, l); taken[f][l] {
					j.locks = append(j.locks, heldLock{fd: s.fd, obj: &s.obj, Lock: l})
				}
			}
		}
	}
	for _, s := range j.table.slots {
		if s.obj.Flags&unix.O_PATH != 0 || s.obj.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if x.o.Locks != nil {
			add(s, x.o.Locks(&s.obj))
		} else if !x.s.unlocked(j.p.pid, s.item) {
			locks, err := readLocks(dir, s.fd)
			if err != nil && !gone(err) {
				return fmt.Errorf("locks at %s: %w", &s.obj, err)
			}
			add(s, locks)
		}
	}
	if x.o.GuardLocks != nil {
		j.guard = x.guardLocks
	}
	j.leaveOwn = func() error { return x.ownLocks(j) }
	if x.o.LocksElsewhere {
		j.lost = x.o.LockLost
	}
	j.findReaders()
	for f, locks := range taken {
		for l, ok := range locks {
			if !ok && j.lost != nil {
				j.lost(&Object{PID: j.p.pid, TID: j.t.tid, Kind: Descriptor, FD: -1, Ino: f.ino}, l, errors.New("none of the descriptors to be swapped has the access to take it again"))
				continue
			}
			if !ok {
				return fmt.Errorf("process %d (%s) would lose a POSIX lock (from %d, %d bytes) at inode %d: none of the descriptors to be swapped has the access to take it again",
					j.p.pid, j.p.comm, l.Start, l.Len, f.ino)
			}
		}
	}
	return nil
}

// ownLocks leaves those of the job's locks that belong to its descriptor table. Who tells of locks in our stead
// (Options.Locks) knows the process that has them, which may have several tables. Then each asks for a lock by itself:
// that shows the file server which owner it is, so that OwnLocks can tell of its locks alone.
func (x *transaction) ownLocks(j *job) error {
	several := slices.ContainsFunc(x.jobs, func(o *job) bool { return o != j && o.p == j.p && o.table != nil })
	if x.o.OwnLocks == nil || !several {
		return nil
	}
	b := j.r.batch()
	b.add(unix.SYS_FCNTL, uint64(j.locks[0].fd), unix.F_GETLK, b.bytes(Lock{Type: unix.F_WRLCK}.flock()))
	if err := b.run(); err != nil {
		return fmt.Errorf("have process %d (%s), whose threads have descriptor tables of their own, ask for its POSIX locks: %w", j.p.pid, j.p.comm, err)
	}
	own := map[*Object][]Lock{}
	for _, l := range j.locks {
		if _, ok := own[l.obj]; !ok {
			o := *l.obj
			o.TID = j.t.tid
			own[l.obj] = x.o.OwnLocks(&o)
		}
	}
	j.locks = slices.DeleteFunc(j.locks, func(l heldLock) bool { return !slices.Contains(own[l.obj], l.Lock) })
	return nil
}

// lockable reports that a lock can be taken through a slot: read locks need
// read access, write locks write access (fcntl(2)).
func lockable(s *slot, l Lock) bool {
	mode := s.obj.Flags & unix.O_ACCMODE
	if l.Type == unix.F_WRLCK {
		return mode == unix.O_WRONLY || mode == unix.O_RDWR
	}
	return mode == unix.O_RDONLY || mode == unix.O_RDWR
}
