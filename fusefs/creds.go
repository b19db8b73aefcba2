package fusefs

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
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
	groups    []int
}

// passing are the capabilities that a call on behalf of another user keeps.
const passing = 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_FOWNER | 1<<unix.CAP_MKNOD

func newCredentials() (*credentials, error) {
	c := &credentials{}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&head, &c.permitted[0]); err != nil {
		return nil, fmt.Errorf("read own capabilities: %w", err)
	}
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

// groupsOf reads the supplementary groups of a thread from /proc. A thread that
// is gone has none.
func groupsOf(tid uint32) []uint32 {
	out := []uint32{}
	f, err := os.Open("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return out
	}
	defer func() { _ = f.Close() }() // read only
	s := bufio.NewScanner(f)
	for s.Scan() {
		rest, ok := strings.CutPrefix(s.Text(), "Groups:")
		if !ok {
			continue
		}
		for _, w := range strings.Fields(rest) {
			if g, err := strconv.ParseUint(w, 10, 32); err == nil {
				out = append(out, uint32(g))
			}
		}
		break
	}
	return out
}

// access checks the caller's rights on an object, with its ids and groups and
// without capabilities of ours.
func (c *credentials) access(h *fuse.InHeader, fd int, mask uint32) error {
	const faccessat2 = 439 // the same on every architecture; AT_EMPTY_PATH since Linux 5.8
	call := func() error {
		empty := [1]byte{}
		_, _, e := unix.Syscall6(faccessat2, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])), uintptr(mask), unix.AT_EMPTY_PATH|unix.AT_EACCESS, 0, 0)
		if e != 0 {
			return e
		}
		return nil
	}
	if h.Uid == 0 {
		return call()
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
	return call()
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
