package graft

import (
	"errors"
	"fmt"
	"strings"

	"github.com/faultgraft/faultgraft/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/tracer"
)

// A layer over "/" cannot just lie on it: a process that runs starts its walks at
// the root directory that it has, below what lies there. pivot_root(2) is what
// changes the root and working directories of all processes, for those that are
// exactly at the root that it replaces (chroot_fs_refs, fs/fs_struct.c). It puts
// the old root below the new one in the tree of mounts, where who enters the
// namespace later would end up: setns(2) goes to whatever is on top
// (mntns_install, fs/namespace.c). So there are two mounts of the layer, one
// under the old root and one over it:
//
//	before   grafted
//	R        newcomers ("/" for who enters later)
//	         R
//	         layer     ("/" for all that were there)
//
// Names of what stays on R (programs that run, sockets) are what they were,
// because all three are at the same path. What is mounted on R stays there; both
// mounts of the layer get copies. An ungraft brings R back with all of it.

// rootCover is what it takes to lay a layer over the root of a namespace, and to take it off.
type rootCover struct {
	ns      *namespace
	procFD  int // this process's descriptors in procfs
	backing int // root directory of R
	top     int // of the mount for newcomers
	bottom  int // of the mount for what runs
	step    func(step string) error
}

// at is for tests; nil in an undo.
func (c rootCover) at(step string) error {
	if c.step == nil {
		return nil
	}
	return c.step(step)
}

// put lays the layer over R. On an error all is as it was.
func (c rootCover) put() (notes []string, err error) {
	below, err := c.mountsOn(c.backing)
	if err != nil {
		return nil, err
	}
	err = c.ns.do(func() (err error) {
		if err := moveOnto(c.top, c.backing); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, c.detach())
			}
		}()
		if err := c.at(StepTop); err != nil {
			return err
		}
		if err := moveOnto(c.bottom, c.top); err != nil {
			return err
		}
		if err := c.at(StepBottom); err != nil {
			return err
		}
		var other []string
		for _, on := range below {
			copied, err := c.copyMount(on)
			if err != nil {
				return fmt.Errorf("show what is mounted on /%s: %w", on.path, err)
			}
			if copied && !pseudoMount(on.fsType) {
				other = append(other, "/"+on.path)
			}
		}
		if len(other) > 0 {
			notes = append(notes, "not under the layer, because something else is mounted there: "+strings.Join(other, ", "))
		}
		if err := c.at(StepCopied); err != nil {
			return err
		}
		// Who enters until the pivot is over gets one of the two mounts.
		if err := c.pivot(c.bottom, c.bottom); err != nil {
			return fmt.Errorf("%w; EINVAL: its root file system is the kernel's first (rootfs), or lies on a mount that is shared: name a directory, a volume or a file below it", err)
		}
		return nil
	})
	return notes, err
}

// pseudoMount: what is there is no file system that faults could be wanted on.
func pseudoMount(fsType string) bool {
	switch fsType {
	case "proc", "sysfs", "cgroup", "cgroup2", "devtmpfs", "devpts", "mqueue", "bpf", "tracefs", "debugfs", "securityfs", "nsfs", "binfmt_misc", "configfs", "pstore":
		return true
	}
	return false
}

// copyMount puts copies of what is mounted on R at one path onto both mounts of the layer.
func (c rootCover) copyMount(on mountOn) (bool, error) {
	from, err := openMountpoint(c.backing, on.path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil // another mount covers the way to it
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(from) }() // O_PATH
	id, err := mountID(from)
	if err != nil {
		return false, err
	}
	if id != on.id && !on.above[id] {
		return false, nil // likewise
	}
	for _, layer := range []int{c.top, c.bottom} {
		clone, err := unix.OpenTree(from, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
		if err != nil {
			return false, fmt.Errorf("open_tree: %w", err)
		}
		to, err := openMountpoint(layer, on.path)
		if err == nil {
			err = moveOnto(clone, to)
			_ = unix.Close(to) // O_PATH
		}
		_ = unix.Close(clone) // attached, or to go
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// off takes the layer off R, from whatever state an attempt was left in. dead: its server does not answer.
func (c rootCover) off(t Target, dev uint64, dead bool) (notes []string, err error) {
	if notes, err = c.carry(dead); err != nil {
		return notes, err
	}
	if err := c.at(StepCarried); err != nil {
		return notes, err
	}
	err = c.ns.do(func() error {
		for _, fd := range []int{c.bottom, c.top} {
			if err := c.moveRoots(fd); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return notes, err
	}
	// Without this the next step would leave them on a layer that is gone.
	if err := c.checkRoots(t, dev); err != nil {
		return notes, err
	}
	if err := c.at(StepRoots); err != nil {
		return notes, err
	}
	return notes, c.ns.do(c.detach)
}

// detach takes the layer's mounts off R, on which nobody has a root directory any more. umount(2) takes the topmost of those
// that lie on each other.
func (c rootCover) detach() error {
	// The copies of shared mounts are their peers: without this the originals would lose what is mounted on them (propagate_umount, fs/pnode.c).
	err := unix.MountSetattr(c.top, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
	if err != nil && !errors.Is(err, unix.EINVAL) { // not mounted
		return fmt.Errorf("mount_setattr MS_PRIVATE: %w", err)
	}
	for {
		err := detachMount(c.top, c.procFD)
		if errors.Is(err, unix.EINVAL) {
			return nil // the last one is off
		}
		if err != nil {
			return err
		}
	}
}

// checkRoots makes sure that no process has the root of the layer as its root directory.
func (c rootCover) checkRoots(t Target, dev uint64) error {
	pids, err := t.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // it has ended
		}
		var x unix.Statx_t
		err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &x)
		_ = unix.Close(fd) // O_PATH
		if err == nil && unix.Mkdev(x.Dev_major, x.Dev_minor) == dev && x.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
			return fmt.Errorf("the root directory of process %d is still the layer's", pid)
		}
	}
	return nil
}

// moveRoots gives all whose root is the root of a mount of the layer R instead.
func (c rootCover) moveRoots(layer int) error {
	// A mount that was taken off already, of a connection that has ended, may refuse: what follows tells.
	if c.chroot(layer) == nil {
		err := c.pivot(c.backing, c.backing)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	// R is not below it but the other way round (EBUSY: it lies right on R): there and back.
	if err := c.chroot(c.backing); err != nil {
		return err
	}
	err := c.pivot(layer, layer)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // it is not mounted any more, or its root is known to nobody; checkRoots makes sure
	}
	if err != nil {
		return err
	}
	if err := c.pivot(c.backing, c.backing); err != nil {
		return fmt.Errorf("give processes their root directory back: %v", err) // not one that says that nothing is mounted
	}
	return nil
}

// carry moves what was mounted on the layer meanwhile to R. What R has at the same path is what the layer's copy was made of.
func (c rootCover) carry(dead bool) (notes []string, err error) {
	for _, layer := range []int{c.bottom, c.top} {
		have, err := c.mountsOn(c.backing)
		if err != nil {
			return notes, err
		}
		on, err := c.mountsOn(layer)
		if err != nil && dead {
			notes = append(notes, fmt.Sprintf("what was mounted on the layer is lost: %v", err))
			continue
		}
		if err != nil {
			return notes, err
		}
		var made []mountOn
		for _, m := range on {
			if !hasPath(have, m.path) {
				made = append(made, m)
			}
		}
		if !dead {
			err := c.ns.do(func() error {
				notes = append(notes, carryMounts(layer, c.backing, made)...)
				return nil
			})
			if err != nil {
				return notes, err
			}
			continue
		}
		for _, m := range made {
			notes = append(notes, fmt.Sprintf("what was mounted on /%s is lost: the server of the layer is dead", m.path))
		}
	}
	return notes, nil
}

func hasPath(all []mountOn, path string) bool {
	for _, m := range all {
		if m.path == path {
			return true
		}
	}
	return false
}

// mountsOn lists what is mounted on the mount with its root at fd.
func (c rootCover) mountsOn(fd int) ([]mountOn, error) {
	mounts, id, err := c.seenFrom(fd)
	if err != nil {
		return nil, err
	}
	return mountsOn(mounts, id), nil
}

// seenFrom lists the mounts that are to be seen from the root directory at fd, and
// says which one that is. It leaves the thread of the namespace there, and reads
// what that sees in the procfs of here.
func (c rootCover) seenFrom(fd int) (mounts []*mountinfo.Info, id uint64, err error) {
	if id, err = mountID(fd); err != nil {
		return nil, 0, err
	}
	if err := c.ns.do(func() error { return c.chroot(fd) }); err != nil {
		return nil, 0, err
	}
	mounts, err = readMounts(c.ns.tid)
	return mounts, id, err
}

// chroot and pivot name directories by descriptors, as detachMount does: a path
// would be walked from the root of now, and ask the layer for permissions.
func (c rootCover) chroot(dir int) error {
	if err := unix.Fchdir(c.procFD); err != nil {
		return fmt.Errorf("fchdir: %w", err)
	}
	if err := unix.Chroot(fmt.Sprint(dir)); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return nil
}

func (c rootCover) pivot(root, old int) error {
	if err := unix.Fchdir(c.procFD); err != nil {
		return fmt.Errorf("fchdir: %w", err)
	}
	if err := unix.PivotRoot(fmt.Sprint(root), fmt.Sprint(old)); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	return nil
}

func (d *detachment) root() bool { return d.Layer.Info.Root() }

// enterRoot prepares to take a layer off "/". The thread of the namespace goes to R, from where all mounts are seen.
// When the server is dead, the kernel learns the attributes of the layer's root directory from the keeper, which stands in
// until the connection is aborted: without them chroot(2) could not check permissions on it afterwards.
func (d *detachment) enterRoot() error {
	if !d.root() {
		return nil
	}
	if d.Server == nil && !d.off {
		var x unix.Statx_t
		// An error: the connection was aborted by an earlier try, which asked too.
		_ = unix.Statx(d.Layer.Mount, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_MODE, &x)
	}
	if !d.off {
		if err := d.findCopies(); err != nil {
			return err
		}
	}
	return d.ns.do(func() error { return d.cover().chroot(d.Layer.Backing) })
}

func (d *detachment) cover() rootCover {
	return rootCover{ns: d.ns, procFD: d.procFD, backing: d.Layer.Backing, top: d.Layer.Mount, bottom: d.Layer.Bottom, step: d.Step}
}

// detachLayer takes the mounts of the layer off the target's tree.
func (d *detachment) detachLayer() error {
	if !d.root() {
		return d.detachCovered()
	}
	notes, err := d.cover().off(d.Target, d.Layer.Info.Dev, d.Server == nil)
	d.rep.Notes = append(d.rep.Notes, notes...)
	return err
}

// atRoot: a working or root directory that pivot_root moves, wherever the process may go.
func atRoot(o *tracer.Object, prefix string) bool {
	return (o.Kind == tracer.Cwd || o.Kind == tracer.Root) && o.Path == prefix && !o.Deleted
}
