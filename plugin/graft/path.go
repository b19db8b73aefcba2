package graft

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/faultgraft/faultgraft/mountinfo"
	"golang.org/x/sys/unix"
)

// place is a path of the target that a layer can go over.
type place struct {
	path    string // as the target sees it, cleaned
	backing int    // O_PATH descriptor of what is there now
	mode    uint32 // st_mode of it
	ino     uint64 // st_ino of it
	prefix  string // its path as this process's readlink of /proc/PID/fd shows it
	mount   mountinfo.Info
	mounts  []*mountinfo.Info // all of the target's
}

// pseudo names file systems that are windows into the kernel: a layer over them breaks more than it faults.
var pseudo = map[int64]string{
	unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.CGROUP2_SUPER_MAGIC: "cgroup2", unix.CGROUP_SUPER_MAGIC: "cgroup",
	unix.DEVPTS_SUPER_MAGIC: "devpts", unix.BPF_FS_MAGIC: "bpf", unix.TRACEFS_MAGIC: "tracefs", unix.DEBUGFS_MAGIC: "debugfs",
	unix.NSFS_MAGIC: "nsfs", unix.SECURITYFS_MAGIC: "securityfs",
}

// resolve finds p inside the target's root, without a way out of it (openat2(2),
// RESOLVE_IN_ROOT), before anything is mounted.
func resolve(t Target, p string) (*place, error) {
	if !path.IsAbs(p) {
		return nil, fmt.Errorf("%q is not an absolute path", p)
	}
	p = path.Clean(p)
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", t.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the root directory of process %d: %w", t.PID, err)
	}
	defer func() { _ = unix.Close(root) }()
	fd, err := openInRoot(root, p)
	if err != nil {
		return nil, fmt.Errorf("open it in the target: %w", err)
	}
	l := &place{path: p, backing: fd}
	if l.root() {
		err = l.checkRoot(t)
	}
	if err == nil {
		err = l.check(t, root)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func openInRoot(root int, p string) (int, error) {
	return unix.Openat2(root, p, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

func (l *place) check(t Target, root int) error {
	var st unix.Stat_t
	if err := unix.Fstat(l.backing, &st); err != nil {
		return err
	}
	l.mode, l.ino = st.Mode, st.Ino
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return fmt.Errorf("it is neither a directory nor a regular file (st_mode %#o)", st.Mode)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(l.backing, &fs); err != nil {
		return err
	}
	if name, bad := pseudo[fs.Type]; bad {
		return fmt.Errorf("it is on %s, a window into the kernel: faults on it would not be I/O faults", name)
	}
	var err error
	if l.prefix, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", l.backing)); err != nil {
		return err
	}
	if strings.HasSuffix(l.prefix, " (deleted)") && st.Nlink == 0 {
		return errors.New("it has been deleted")
	}
	rootPrefix, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root))
	if err != nil {
		return err
	}
	if err := l.findMount(t.PID); err != nil {
		return err
	}
	inside := "/" + strings.TrimPrefix(strings.TrimPrefix(l.prefix, rootPrefix), "/")
	if l.mount.FSType == layerType {
		if l.mount.Mountpoint == inside {
			return fmt.Errorf("graft %s lies there already; recover it first (faultgraft recover %s)", l.mount.Source, l.mount.Source)
		}
		return fmt.Errorf("it lies inside the layer of graft %s over %s; recover that first", l.mount.Source, l.mount.Mountpoint)
	}
	for _, m := range l.mounts {
		if m.FSType == layerType && m.Mountpoint == "/" {
			return fmt.Errorf("graft %s lies over /; recover that first (faultgraft recover %s)", m.Source, m.Source)
		}
		if m.FSType == layerType && strings.HasPrefix(m.Mountpoint, strings.TrimSuffix(inside, "/")+"/") {
			return fmt.Errorf("the layer of graft %s over %s lies inside it; recover that first", m.Source, m.Mountpoint)
		}
	}
	return nil
}

// root: the place is the target's root directory.
func (l *place) root() bool { return l.path == "/" }

// checkRoot refuses root directories that pivot_root(2) could not change, or not for this target alone.
func (l *place) checkRoot(t Target) error {
	if t.Tree {
		return errors.New("it shares its mount namespace with others, and a layer over / would be under all of them: name a directory, a volume or a file below it")
	}
	var x unix.Statx_t
	if err := unix.Statx(l.backing, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &x); err != nil {
		return fmt.Errorf("statx: %w", err)
	}
	if x.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return errors.New("its root directory is a directory somewhere in its file system (chroot), no file system of its own: name a directory, a volume or a file below it")
	}
	return nil
}

// layerType is how mountinfo names our mounts.
const layerType = "fuse." + Subtype

// findMount looks the place's mount up in the target's mountinfo.
func (l *place) findMount(pid int) error {
	id, err := mountID(l.backing)
	if err != nil {
		return err
	}
	if l.mounts, err = readMounts(pid); err != nil {
		return err
	}
	for _, m := range l.mounts {
		if uint64(m.ID) == id {
			l.mount = *m
			return nil
		}
	}
	return fmt.Errorf("%w (id %d, process %d)", errMountGone, id, pid)
}

var errMountGone = errors.New("its mount is not in the mount namespace")

// shared reports whether mounts made there would appear elsewhere too.
func (l *place) shared() bool { return strings.Contains(l.mount.Optional, "shared:") }

// mountRoot opens the root of the mount that the place is on: mount_setattr(2) takes nothing else.
func (l *place) mountRoot(pid int) (int, error) {
	// A layer over a volume's own mount point covers the way there, but not the descriptor.
	var x unix.Statx_t
	err := unix.Statx(l.backing, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &x)
	if err == nil && x.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 { // Linux 5.8
		return unix.FcntlInt(uintptr(l.backing), unix.F_DUPFD_CLOEXEC, 3)
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(root) }()
	fd, err := openInRoot(root, l.mount.Mountpoint)
	if err != nil {
		return -1, fmt.Errorf("open the mount point %s: %w", l.mount.Mountpoint, err)
	}
	id, err := mountID(fd)
	if err == nil && id != uint64(l.mount.ID) {
		err = fmt.Errorf("the mount point %s is covered by another mount, and its mount is shared: the layer would appear elsewhere", l.mount.Mountpoint)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (l *place) close() { _ = unix.Close(l.backing) }

// relative is what p (as readlink of /proc/PID/fd shows it) is called below the layer's root; false: not below.
func (l *place) relative(p string) (string, bool) { return relativeTo(l.prefix, p) }

func relativeTo(prefix, p string) (string, bool) {
	if p == prefix {
		return "", true
	}
	return strings.CutPrefix(p, strings.TrimSuffix(prefix, "/")+"/")
}
