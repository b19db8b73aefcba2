package graft

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Subtype is what the layer's mounts show in mountinfo, as "fuse.faultgraft".
const Subtype = "faultgraft"

// fuseMount is a FUSE superblock and one mount of it.
type fuseMount struct {
	device int // /dev/fuse
	mount  int // fsmount(2)
	bottom int // another mount of it, for a layer over "/" (see root.go); -1 for none
}

// newFuseMount makes a detached FUSE mount by the new mount API (fsopen(2),
// Linux 5.2). The superblock is made on a thread of the initial user namespace,
// so that targets with a user namespace of their own work too.
func newFuseMount(source string, rootMode uint32, attrs int) (m fuseMount, err error) {
	m = fuseMount{device: -1, mount: -1, bottom: -1}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	m.device, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
			return m, fmt.Errorf("open /dev/fuse: %w: this kernel has no FUSE; load it with `modprobe fuse` or use a kernel with CONFIG_FUSE_FS", err)
		}
		return m, fmt.Errorf("open /dev/fuse: %w", err)
	}
	m.mount, err = fuseMountOf(m.device, source, rootMode, attrs)
	return m, err
}

// fuseMountOf makes a detached mount of the FUSE connection behind device: the first one makes the superblock,
// others are further mounts of it (fuse_get_tree, fs/fuse/inode.c, Linux 5.13).
func fuseMountOf(device int, source string, rootMode uint32, attrs int) (int, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.ENOSYS) {
			return -1, fmt.Errorf("fsopen fuse: %w: faultgraft needs Linux 5.6 or newer", err)
		}
		return -1, fmt.Errorf("fsopen fuse: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	for _, kv := range [][2]string{
		{"source", source}, {"subtype", Subtype}, {"fd", fmt.Sprint(device)},
		{"rootmode", fmt.Sprintf("%o", rootMode&unix.S_IFMT)}, {"user_id", "0"}, {"group_id", "0"},
	} {
		if err := fsconfig(fs, unix.FSCONFIG_SET_STRING, kv[0], kv[1]); err != nil {
			return -1, err
		}
	}
	for _, flag := range []string{"allow_other", "default_permissions"} {
		if err := fsconfig(fs, unix.FSCONFIG_SET_FLAG, flag, ""); err != nil {
			return -1, err
		}
	}
	if err := fsconfig(fs, unix.FSCONFIG_CMD_CREATE, "", ""); err != nil {
		return -1, err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return mount, nil
}

func (m fuseMount) close() {
	for _, fd := range []int{m.mount, m.device, m.bottom} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// fsconfig adds the kernel's own words to its errno: the file context of
// fsopen(2) can be read for messages.
func fsconfig(fs int, cmd uint, key, value string) error {
	var k, v *byte
	var err error
	if key != "" {
		if k, err = unix.BytePtrFromString(key); err != nil {
			return err
		}
	}
	if value != "" {
		if v, err = unix.BytePtrFromString(value); err != nil {
			return err
		}
	}
	_, _, e := unix.Syscall6(unix.SYS_FSCONFIG, uintptr(fs), uintptr(cmd), uintptr(unsafe.Pointer(k)), uintptr(unsafe.Pointer(v)), 0, 0)
	if e == 0 {
		return nil
	}
	words := make([]byte, 512)
	n, _ := unix.Read(fs, words) // no message is not an error
	return fmt.Errorf("fsconfig fuse %s=%s: %w %s", key, value, e, strings.TrimSpace(string(words[:max(n, 0)])))
}

// mountAttrs translates the flags of the mount behind fd into those of fsmount(2).
func mountAttrs(fd int) (int, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(fd, &s); err != nil {
		return 0, fmt.Errorf("fstatfs: %w", err)
	}
	attrs := 0
	for _, m := range [][2]int64{
		{unix.ST_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.ST_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.ST_NODEV, unix.MOUNT_ATTR_NODEV}, {unix.ST_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
		{unix.ST_NOATIME, unix.MOUNT_ATTR_NOATIME}, {unix.ST_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
	} {
		if s.Flags&m[0] != 0 {
			attrs |= int(m[1])
		}
	}
	return attrs, nil
}

// mountID is the id that mountinfo and fdinfo show for the mount behind fd.
func mountID(fd int) (uint64, error) {
	var x unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &x); err != nil {
		return 0, fmt.Errorf("statx: %w", err)
	}
	return x.Mnt_id, nil
}

// device is st_dev of the file behind fd; it never sends a request to a FUSE server.
func device(fd int) (uint64, error) {
	var x unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &x); err != nil {
		return 0, fmt.Errorf("statx: %w", err)
	}
	return unix.Mkdev(x.Dev_major, x.Dev_minor), nil
}

// moveOnto attaches the detached mount over the place behind the O_PATH
// descriptor onto. It runs on a thread of the namespace.
func moveOnto(mount, onto int) error {
	if err := unix.MoveMount(mount, "", onto, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// detachMount takes the mount behind the descriptor off the tree. umount2(2)
// has no descriptor form; the thread of the namespace reaches the host's procfs
// by a working directory of its own, since the container's may be missing or
// of another PID namespace.
func detachMount(mount, procFD int) error {
	if err := unix.Fchdir(procFD); err != nil {
		return fmt.Errorf("fchdir: %w", err)
	}
	err := unix.Unmount(fmt.Sprint(mount), unix.MNT_DETACH)
	if cerr := unix.Chdir("/"); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("umount: %w", err)
	}
	return nil
}

// openProcFD opens this process's descriptor directory for detachMount.
func openProcFD() (int, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/fd", os.Getpid()), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the descriptor directory in procfs: %w", err)
	}
	return fd, nil
}

// ConnectionEnded tells whether the kernel has ended the FUSE connection of a /dev/fuse, as it
// does with the last user of the file system (fuse_dev_poll, fs/fuse/dev.c).
func ConnectionEnded(fuse int) bool {
	p := []unix.PollFd{{Fd: int32(fuse)}}
	n, err := unix.Poll(p, 0)
	return fuse >= 0 && err == nil && n > 0 && p[0].Revents&unix.POLLERR != 0
}

// abort ends the connection of the layer, and of no other file system: the kernel gives the number
// by which it is found to the next one as soon as the layer is used by nobody.
func (l *Layer) abort() error {
	if ConnectionEnded(l.Device) {
		return nil
	}
	if l.Mount >= 0 {
		dev, err := device(l.Mount)
		if err != nil {
			return fmt.Errorf("the layer's mount: %w", err)
		}
		if dev != l.Info.Dev {
			return fmt.Errorf("descriptor %d is not the mount of the layer, which is device %d:%d, but of device %d:%d: nothing is aborted",
				l.Mount, unix.Major(l.Info.Dev), unix.Minor(l.Info.Dev), unix.Major(dev), unix.Minor(dev))
		}
	}
	return abortConnection(l.Info.Dev)
}

// openControl opens the FUSE control file system, which is mounted nowhere for it (fuse.rst, "Control filesystem").
func openControl() (int, error) {
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen fusectl: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := fsconfig(fs, unix.FSCONFIG_CMD_CREATE, "", ""); err != nil {
		return -1, err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount fusectl: %w", err)
	}
	return mount, nil
}

// abortConnection ends the FUSE connection of the superblock with that device
// number: its requests return ECONNABORTED.
func abortConnection(dev uint64) error {
	mount, err := openControl()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(mount) }()
	name := fmt.Sprintf("%d/abort", unix.Minor(dev))
	f, err := unix.Openat(mount, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // the connection has ended already
	}
	if err != nil {
		return fmt.Errorf("open fusectl %s: %w", name, err)
	}
	defer func() { _ = unix.Close(f) }()
	if _, err := unix.Write(f, []byte("1")); err != nil {
		return fmt.Errorf("write fusectl %s: %w", name, err)
	}
	return nil
}
