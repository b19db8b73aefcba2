package graft

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// What the kernel holds of files under a layer's place, beside descriptors and
// maps, stays where it is. This says what of it is meant.

// maybe says that nothing is known of an object but that its process may hold
// such a file.
func maybe(o *tracer.Object) bool { return o.Path != "" && !strings.HasPrefix(o.Path, "/") }

// heldBelow decides about what is not a descriptor, a directory or a map; known
// is false for these and for what tells as much as they do.
func (a *attachment) heldBelow(o *tracer.Object) (match, known bool) {
	switch {
	case o.Kind.HeldByKernel() && maybe(o):
		return true, true
	case o.Kind == tracer.RingFile:
		_, below := a.place.relative(o.Path)
		return below, true
	case o.Kind == tracer.LoopDevice, o.Kind == tracer.SwapFile:
		rel, below := a.place.relative(o.Path)
		return below && a.place.isHostFile(rel, o), true
	case o.Kind == tracer.Watch && o.Dev == 0: // a mark of fanotify on a mount
		return o.MountID == uint64(a.place.mount.ID), true
	case o.Kind == tracer.Watch: // locate has seen it, unless it is on a file system
		return len(a.mountsOf(o.Dev)) > 0, true
	}
	return false, false
}

// isHostFile says that a file which the machine holds is the one at rel: the path
// of another mount namespace can be the same.
func (l *place) isHostFile(rel string, o *tracer.Object) bool {
	var here, held unix.Stat_t
	if rel == "" {
		if unix.Fstat(l.backing, &here) != nil {
			return false
		}
	} else {
		fd, err := unix.Openat2(l.backing, rel, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
		})
		if err != nil { // it has been deleted
			return o.Deleted
		}
		err = unix.Fstat(fd, &here)
		_ = unix.Close(fd) // O_PATH
		if err != nil {
			return false
		}
	}
	if o.Kind == tracer.LoopDevice {
		if info, err := loopInfo(o.Index); err == nil {
			return info.Device == here.Dev && info.Inode == here.Ino
		}
	}
	// one that the path does not lead to from here is no file of this namespace
	err := unix.Stat(o.Path, &held)
	return err != nil || held.Dev == here.Dev && held.Ino == here.Ino
}

func loopInfo(number int) (*unix.LoopInfo64, error) {
	fd, err := unix.Open(fmt.Sprintf("/dev/loop%d", number), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }() // read only
	return unix.IoctlLoopGetStatus64(fd)
}

// mountsOf are the mounts at and below the place, by their paths relative to it,
// of the file system with that device.
func (a *attachment) mountsOf(dev uint64) (rels []string) {
	for _, m := range a.place.mounts {
		if unix.Mkdev(uint32(m.Major), uint32(m.Minor)) != dev {
			continue
		}
		if m.ID == a.place.mount.ID {
			rels = append(rels, "")
		} else if rel, below := relativeTo(a.place.path, m.Mountpoint); below && rel != "" {
			rels = append(rels, rel)
		}
	}
	return rels
}

// locate finds a watched inode by its file handle. Opening anything for real would
// be seen by the watch; O_PATH is not (open(2)). Where the file system can find
// nothing by handle (overlayfs), or has forgotten the name, the path is unknown.
func (a *attachment) locate(dev, ino uint64, handle *unix.FileHandle) (string, bool) {
	mounts := a.mountsOf(dev)
	if len(mounts) == 0 {
		return "", false
	}
	if a.place.mode&unix.S_IFMT != unix.S_IFDIR || ino == a.place.ino {
		return a.place.prefix, ino == a.place.ino
	}
	if handle == nil {
		return "", true
	}
	for _, rel := range mounts {
		link, err := a.openHandle(rel, *handle)
		if err != nil || link == "/" {
			continue
		}
		_, below := a.place.relative(link)
		return link, below
	}
	return "", true
}

// openHandle is the path of what a file handle names on the mount at rel.
func (a *attachment) openHandle(rel string, h unix.FileHandle) (link string, err error) {
	mount := a.place.backing
	if rel != "" {
		mount, err = unix.Openat2(a.place.backing, rel, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
		})
		if err != nil {
			return "", err
		}
		defer func() { _ = unix.Close(mount) }() // O_PATH
	}
	fd := -1
	err = a.ns.do(func() (err error) {
		// an O_PATH descriptor is no good as a mount_fd, but as the working directory it is
		if err := unix.Fchdir(mount); err != nil {
			return err
		}
		fd, err = unix.OpenByHandleAt(unix.AT_FDCWD, h, unix.O_PATH|unix.O_CLOEXEC)
		return err
	})
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }() // O_PATH
	link, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return strings.TrimSuffix(link, " (deleted)"), err
}

// explainKept says what a graft means to what works on.
func (a *attachment) explainKept() {
	for i, k := range a.rep.Kept {
		if k.Object.Kind != tracer.Watch {
			continue
		}
		reason := reasonWatchStays
		if k.Object.Path == "" {
			reason = "on this file system; whether it lies under the layer cannot be told. If so: " + reason
		}
		a.rep.Kept[i].Reason = reason
	}
}

const (
	reasonWatchStays = "it stays at the inode below the layer, and sees what the layer does there; a call that a rule fails does nothing there"
	reasonWatchEnds  = "it was set on the layer and ends with it: the program gets IN_UNMOUNT and IN_IGNORED"
	reasonStayed     = "it was there at the graft, and stayed below the layer; what took its place since would be on the layer still, which cannot be told"
)

// heldOnLayer is for an ungraft what heldBelow is for a graft.
func (d *detachment) heldOnLayer(o *tracer.Object) (match, known bool) {
	switch {
	case o.Kind == tracer.SwapFile: // FUSE has none
		return false, true
	case o.Kind.HeldByKernel() && maybe(o): // of the machine's processes the target's are the likely ones
		return d.near[o.PID], true
	case o.Kind == tracer.RingFile, o.Kind == tracer.LoopDevice:
		_, below := relativeTo(d.Layer.Info.Prefix, o.Path)
		return below, true
	}
	return false, false
}

// explainHeld says what an ungraft means to what is not swapped: watches end, and
// what the graft left below the layer is there still.
func (d *detachment) explainHeld() {
	var skipped, kept []tracer.ObjectReport
	for _, s := range d.rep.Skipped {
		if d.stayed(&s.Object) {
			s.Reason = reasonStayed
			kept = append(kept, s)
		} else {
			skipped = append(skipped, s)
		}
	}
	for _, k := range d.rep.Kept {
		if k.Object.Kind == tracer.Watch {
			k.Reason = reasonWatchEnds
			skipped = append(skipped, k)
		} else {
			kept = append(kept, k)
		}
	}
	d.rep.Skipped, d.rep.Kept = skipped, kept
}

// stayed says that the graft left the object below the layer. Of these the path is
// all that is known, and that is the same on the layer.
func (d *detachment) stayed(o *tracer.Object) bool {
	return slices.ContainsFunc(d.Left, func(b tracer.Object) bool {
		return b.PID == o.PID && b.Kind == o.Kind && b.FD == o.FD && b.Index == o.Index && b.Path == o.Path
	})
}

// LeftBelow lists what a graft left below the layer of which an ungraft can see no
// more than the path.
func LeftBelow(r *Report) (left []tracer.Object) {
	for _, s := range r.Skipped {
		if k := s.Object.Kind; k == tracer.RingFile || k == tracer.LoopDevice || k == tracer.InFlight && maybe(&s.Object) {
			left = append(left, s.Object)
		}
	}
	return left
}
