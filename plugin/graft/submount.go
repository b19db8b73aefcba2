package graft

import (
	"errors"
	"fmt"
	"path"

	"github.com/faultgraft/faultgraft/mountinfo"
	"golang.org/x/sys/unix"
)

// readMounts lists the mounts that a thread's root directory leads to.
func readMounts(tid int) ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.Of(tid)
	if err != nil {
		return nil, fmt.Errorf("read the mounts of process %d: %w", tid, err)
	}
	return mounts, nil
}

// mountOn is a mount on another.
type mountOn struct {
	id     uint64
	path   string // below the root of the other
	fsType string
	above  map[uint64]bool // what lies on all of it
}

// mountsOn gives what is mounted on that very mount, but for what covers all of it.
func mountsOn(mounts []*mountinfo.Info, id uint64) []mountOn {
	var at *mountinfo.Info
	for _, m := range mounts {
		if uint64(m.ID) == id {
			at = m
		}
	}
	if at == nil {
		return nil
	}
	var on []mountOn
	for _, m := range mounts {
		if rel, below := relativeTo(at.Mountpoint, m.Mountpoint); m.Parent == at.ID && below && rel != "" {
			on = append(on, mountOn{uint64(m.ID), rel, m.FSType, stackedOn(mounts, m)})
		}
	}
	return on
}

// stackedOn gives the mounts that cover one.
func stackedOn(mounts []*mountinfo.Info, lowest *mountinfo.Info) map[uint64]bool {
	above := map[uint64]bool{}
	top := lowest
	for i := 0; i < len(mounts); i++ {
		if m := mounts[i]; m.Parent == top.ID && m.Mountpoint == lowest.Mountpoint && m.ID != top.ID {
			above[uint64(m.ID)], top, i = true, m, -1
		}
	}
	return above
}

// carryMounts moves what was mounted on the layer to the same paths below it: the
// mounts that the target made meanwhile, which would go with the layer. It runs on
// a thread of the namespace. What cannot be moved is said in a note.
func carryMounts(layer, backing int, left []mountOn) (notes []string) {
	for progress := true; progress && len(left) > 0; {
		progress, notes = false, nil
		var again []mountOn
		for _, on := range left {
			// One may lie over the way to another: that one's turn comes again.
			if err := carryMount(layer, backing, on); err != nil {
				notes = append(notes, fmt.Sprintf("what is mounted on %s of the layer is lost: %v", on.path, err))
				again = append(again, on)
				continue
			}
			progress = true
		}
		left = again
	}
	return notes
}

// keepMounts saves what the target mounted on the layer, among the mounts that there are.
func (d *detachment) keepMounts(mounts []*mountinfo.Info, id uint64) error {
	if d.Server != nil {
		return d.ns.do(func() error {
			d.rep.Notes = append(d.rep.Notes, carryMounts(d.Layer.Mount, d.Layer.Backing, mountsOn(mounts, id))...)
			return nil
		})
	}
	// A look-up on a dead layer fails, and takes off what is mounted there.
	for _, on := range mountsOn(mounts, id) {
		d.rep.Notes = append(d.rep.Notes, fmt.Sprintf("what was mounted on %s is lost: the server of the layer is dead", path.Join(d.Layer.Info.Path, on.path)))
	}
	return nil
}

// carryMount moves all that is stacked at one place of the layer.
func carryMount(layer, backing int, on mountOn) error {
	to, err := openMountpoint(backing, on.path)
	if err != nil {
		return fmt.Errorf("open the place below: %w", err)
	}
	defer func() { _ = unix.Close(to) }() // O_PATH
	for aside := []int{}; ; {
		fd, err := openMountpoint(layer, on.path)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }() // O_PATH
		id, err := mountID(fd)
		if err != nil {
			return err
		}
		if id != on.id && !on.above[id] {
			return errors.New("another mount covers the way to it")
		}
		if id != on.id {
			// One that lies on others has to go before they can be opened, not to its place yet: look-ups on the layer
			// go on, and would meet it there. The layer's root is a place for directories; for a file there is none.
			if err := moveOnto(fd, layer); err != nil {
				return fmt.Errorf("it lies on another: %w", err)
			}
			aside = append(aside, fd)
			continue
		}
		if err := moveOnto(fd, to); err != nil {
			return err
		}
		for i := len(aside) - 1; i >= 0; i-- {
			if err := moveOnto(aside[i], to); err != nil {
				return err
			}
		}
		return nil
	}
}

// openMountpoint opens what lies at a path that mountinfo shows: no part of it is a symbolic link.
func openMountpoint(root int, rel string) (int, error) {
	return unix.Openat2(root, rel, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// MountsOnLayer gives the places, as a process sees them, at which something is
// mounted on the layer of a graft. The kernel takes off what is mounted on a name
// whose look-up fails, or on one below it (d_invalidate, fs/dcache.c).
func MountsOnLayer(mounts []*mountinfo.Info, graft string) []string {
	layers := map[int]bool{}
	for _, m := range mounts {
		if m.FSType == layerType && m.Source == graft {
			layers[m.ID] = true
		}
	}
	var places []string
	for _, m := range mounts {
		if layers[m.Parent] {
			places = append(places, path.Clean(m.Mountpoint))
		}
	}
	return places
}
