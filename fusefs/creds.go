package fusefs

import (
	"fmt"
	"log/slog"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// credentials makes single system calls on behalf of a caller, so that new
// objects belong to it. The kernel has checked the caller's permissions
// already (default_permissions), with what it may do beyond them; so the call
// keeps the capabilities that pass such checks, and loses CAP_FSETID, which
// would keep set-group-ID bits that the caller may not set.
type credentials struct {
	permitted [2]unix.CapUserData
	writing   [2]unix.CapUserData // those of asWriter
	groups    []int
}

// passing are the capabilities that a call on behalf of another user keeps.
const passing = 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_FOWNER | 1<<unix.CAP_MKNOD

// fileCaps are the capabilities that setfsuid(2) drops with the uid 0 and raises with it.
const fileCaps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_LINUX_IMMUTABLE | 1<<unix.CAP_MKNOD

func newCredentials() (*credentials, error) {
	c := &credentials{}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&head, &c.permitted[0]); err != nil {
		return nil, fmt.Errorf("read own capabilities: %w", err)
	}
	// What setfsuid(2) leaves (CAP_FS_MASK of include/uapi/linux/capability.h), without CAP_SYS_RESOURCE; the rest is for checks that come after the open.
	c.writing = c.permitted
	c.writing[0].Effective &^= fileCaps | 1<<unix.CAP_SYS_RESOURCE
	c.writing[0].Effective |= c.permitted[0].Permitted & (1 << unix.CAP_FSETID)
	g, err := unix.Getgroups()
	if err != nil {
		return nil, fmt.Errorf("read own groups: %w", err)
	}
	c.groups = g
	return c, nil
}

// as runs f, which makes one system call, with the caller's file system uid and
// gid; withGroups also with its supplementary groups, which matter only for
// the set-group-ID bit of new files.
func (c *credentials) as(h *fuse.InHeader, withGroups bool, f func() error) error {
	if h.Uid == 0 && h.Gid == 0 {
		return retry(f)
	}
	var groups []uint32
	if withGroups && h.Uid != 0 {
		groups = groupsOf(h.Pid)
	}
	runtime.LockOSThread() // credentials are per thread in the kernel
	defer runtime.UnlockOSThread()
	if groups != nil {
		if err := setgroups(groups); err != nil {
			return err
		}
		own := make([]uint32, len(c.groups))
		for i, g := range c.groups {
			own[i] = uint32(g)
		}
		defer func() {
			if setgroups(own) != nil { // ENOMEM is all that is left
				runtime.LockOSThread() // the caller's groups stay with this thread, where they grant nothing that root has not
			}
		}()
	}
	// setfsuid(2) and setfsgid(2) report no errors; for root they cannot fail.
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(h.Gid), 0, 0)
	defer func() { _, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, 0, 0, 0) }()
	if h.Uid != 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(h.Uid), 0, 0)
		// Back to 0 raises the file system capabilities again (capabilities(7)).
		defer func() { _, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, 0, 0, 0) }()
		if err := c.keep(); err != nil {
			return err
		}
	}
	return retry(f)
}

// dropResource takes CAP_SYS_RESOURCE from all threads of the process for good, as
// most containers have none: with it, what the layer writes for root would pass the
// quota of a project or of a file's owner. It was needed to raise limits.
func dropResource(l *slog.Logger) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now [2]unix.CapUserData
	if err := unix.Capget(&head, &now[0]); err != nil {
		l.Warn("read own capabilities", "err", err)
		return
	}
	if now[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		return
	}
	now[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&now[0])), 0)
	if e != 0 { // ENOTSUP in a program with cgo
		l.Warn("give CAP_SYS_RESOURCE up; quotas do not bind root", "err", e)
	}
}

// asWriter runs f, which changes what an open file holds, so that it takes no
// block that the caller may not take: not those reserved for root
// (ext4_has_free_clusters in fs/ext4/balloc.c asks for the fsuid), and none
// past a quota (ignore_hardlimit in fs/quota/dquot.c asks for
// CAP_SYS_RESOURCE). Set-ID bits are dropSetID's affair: CAP_FSETID stays.
func (c *credentials) asWriter(h *fuse.InHeader, f func() error) error {
	if h.Uid == 0 {
		return retry(f)
	}
	runtime.LockOSThread() // credentials are per thread in the kernel
	defer runtime.UnlockOSThread()
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(h.Uid), 0, 0)
	defer func() { _, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, 0, 0, 0) }() // see as
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	now := c.writing
	if err := unix.Capset(&head, &now[0]); err != nil {
		return err
	}
	return retry(f)
}

// keep raises what setfsuid dropped from the effective set and the call needs.
func (c *credentials) keep() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now [2]unix.CapUserData
	if err := unix.Capget(&head, &now[0]); err != nil {
		return err
	}
	now[0].Effective |= c.permitted[0].Permitted & passing
	return unix.Capset(&head, &now[0])
}

// setgroups sets the groups of this thread only, unlike the function of package syscall.
func setgroups(g []uint32) error {
	var p unsafe.Pointer
	if len(g) > 0 {
		p = unsafe.Pointer(&g[0])
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(g)), uintptr(p), 0); e != 0 {
		return e
	}
	return nil
}

// access checks the caller's rights on an object, with its ids and groups and
// without capabilities of ours.
func (c *credentials) access(h *fuse.InHeader, fd int, mask uint32) error {
	const faccessat2 = 439 // the same on every architecture; AT_EMPTY_PATH since Linux 5.8
	return c.plainly(h, func() error {
		empty := [1]byte{}
		_, _, e := unix.Syscall6(faccessat2, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])), uintptr(mask), unix.AT_EMPTY_PATH|unix.AT_EACCESS, 0, 0)
		if e != 0 {
			return e
		}
		return nil
	})
}

// plainly runs f, which makes one system call, with the caller's ids and groups
// and, unless it is root, without the capabilities that pass checks of files.
func (c *credentials) plainly(h *fuse.InHeader, f func() error) error {
	if h.Uid == 0 {
		return retry(f)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := setgroups(groupsOf(h.Pid)); err != nil {
		return err
	}
	own := make([]uint32, len(c.groups))
	for i, g := range c.groups {
		own[i] = uint32(g)
	}
	defer func() {
		if setgroups(own) != nil {
			runtime.LockOSThread() // see as
		}
	}()
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(h.Gid), 0, 0)
	defer func() { _, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, 0, 0, 0) }()
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(h.Uid), 0, 0)
	defer func() { _, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, 0, 0, 0) }()
	return retry(f)
}

// open opens an existing file with the caller's own rights only.
func (c *credentials) open(h *fuse.InHeader, dir int, name string, flags int) (int, error) {
	path, err := openPath(dir, name)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(path) }() // O_PATH
	var st unix.Stat_t
	if err := unix.Fstat(path, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1, unix.ESTALE // the kernel looks again, and follows a link or opens a FIFO by itself
	}
	mask := uint32(unix.R_OK)
	switch flags & unix.O_ACCMODE {
	case unix.O_WRONLY:
		mask = unix.W_OK
	case unix.O_RDWR:
		mask = unix.R_OK | unix.W_OK
	}
	if err := c.access(h, path, mask); err != nil {
		return -1, err
	}
	var fd int
	err = retry(func() error {
		fd, err = unix.Open(magic(path), flags&^unix.O_NOFOLLOW, 0)
		return err
	})
	return fd, err
}
