package graft

import (
	"errors"
	"fmt"
	"strings"

	"github.com/faultgraft/faultgraft/mountinfo"
	"golang.org/x/sys/unix"
)

// A target that may mount can mount something over all of a layer. umount(2) takes the
// topmost of what lies at a place (handle_lookup_down, fs/namei.c, for LOOKUP_MOUNTPOINT): it would
// take that, and leave the layer. So what covers a layer is moved aside before, and back afterwards.

// coversOf lists what covers a mount, the lowest first.
func coversOf(mounts []*mountinfo.Info, id uint64) (lowest *mountinfo.Info, covers []*mountinfo.Info) {
	for _, m := range mounts {
		if uint64(m.ID) == id {
			lowest = m
		}
	}
	for top := lowest; top != nil; {
		var next *mountinfo.Info
		for _, m := range mounts {
			if m.Parent == top.ID && m.ID != top.ID && m.Mountpoint == top.Mountpoint {
				next = m
			}
		}
		if next != nil {
			covers = append(covers, next)
		}
		top = next
	}
	return lowest, covers
}

// uncover moves what covers the layer onto the root directory of the namespace, where for this moment
// only who enters the namespace would find it. putBack moves it to what lay under the layer.
func (d *detachment) uncover(mounts []*mountinfo.Info, id uint64) (putBack func() error, err error) {
	putBack = func() error { return nil }
	layer, covers := coversOf(mounts, id)
	if len(covers) == 0 {
		return putBack, nil
	}
	var aside []int // the topmost first
	to := func(onto int) (err error) {
		for i := len(aside) - 1; i >= 0; i-- {
			err = errors.Join(err, moveOnto(aside[i], onto))
			_ = unix.Close(aside[i]) // O_PATH
		}
		aside = nil
		return err
	}
	err = d.ns.do(func() error {
		root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the root directory of the namespace: %w", err)
		}
		defer func() { _ = unix.Close(root) }() // O_PATH
		for i := len(covers) - 1; i >= 0; i-- {
			fd, err := openMountpoint(root, strings.TrimPrefix(layer.Mountpoint, "/"))
			if err != nil {
				return err
			}
			at, err := mountID(fd)
			if err == nil && at != uint64(covers[i].ID) {
				err = errors.New("the mounts there change")
			}
			if err == nil {
				err = moveOnto(fd, root)
			}
			if err != nil {
				_ = unix.Close(fd) // O_PATH
				return err
			}
			aside = append(aside, fd)
		}
		return nil
	})
	if err != nil {
		top := covers[len(covers)-1]
		err = fmt.Errorf("%s (%s) is mounted over the layer, which cannot come off from under it: unmount that: %w", top.Source, top.FSType, err)
		return putBack, errors.Join(err, d.ns.do(func() error { return to(d.Layer.Mount) }))
	}
	return func() error {
		if err := d.ns.do(func() error { return to(d.Layer.Backing) }); err != nil {
			return fmt.Errorf("put back what was mounted over %s: %w", d.Layer.Info.Path, err)
		}
		return nil
	}, nil
}

// detachCovered takes a layer that is not over "/" off, and leaves what the target has mounted on it and over it.
func (d *detachment) detachCovered() error {
	mounts, err := readMounts(d.ns.tid)
	if err != nil {
		return err
	}
	id, err := mountID(d.Layer.Mount)
	if err != nil {
		return err
	}
	if err := d.keepMounts(mounts, id); err != nil {
		return err
	}
	putBack, err := d.uncover(mounts, id)
	if err != nil {
		return err
	}
	err = d.ns.do(func() error { return detachMount(d.Layer.Mount, d.procFD) })
	return errors.Join(err, putBack()) // with the layer still there it lies on that again
}

// checkOff makes sure that the layer is off: a process of the target that was not stopped may have
// mounted something over it in the very moment, which was taken off in its place.
func (d *detachment) checkOff() error {
	if d.root() || d.Layer.Mount < 0 {
		return nil
	}
	mounts, err := readMounts(d.ns.tid)
	if err != nil {
		return err
	}
	id, err := mountID(d.Layer.Mount)
	if err != nil {
		return err
	}
	if layer, _ := coversOf(mounts, id); layer != nil {
		d.off = false
		return errors.New("the target mounted something over the layer while it was taken off: it is still there; try again")
	}
	return nil
}
