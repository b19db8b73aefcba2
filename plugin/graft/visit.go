package graft

import (
	"errors"
	"fmt"

	"github.com/faultgraft/faultgraft/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/tracer"
)

// A working directory on a mount below "/" is not under the layer, but the way up
// from it is: with the layer comes a copy of that mount, and from the mount itself
// ".." leads past the layer. So working directories go to the copy and back.

// mountsBelow gives the ids of all mounts on one, and on those, but for what covers all of it.
func mountsBelow(mounts []*mountinfo.Info, id uint64) map[uint64]bool {
	below := map[uint64]bool{}
	for _, on := range mountsOn(mounts, id) {
		below[on.id] = true
	}
	for found := true; found; {
		found = false
		for _, m := range mounts {
			if below[uint64(m.Parent)] && !below[uint64(m.ID)] {
				below[uint64(m.ID)], found = true, true
			}
		}
	}
	return below
}

// below lists the mounts below the root directory at fd.
func (c rootCover) below(fd int) (map[uint64]bool, error) {
	mounts, id, err := c.seenFrom(fd)
	if err != nil {
		return nil, err
	}
	return mountsBelow(mounts, id), nil
}

// openVisited opens a directory by its path from root, over whatever is mounted on the way, and makes sure that it is the same.
func openVisited(root int, rel string, d *tracer.Description) (int, error) {
	fd, err := unix.Openat2(root, rel, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("open the same directory on another mount: %w", err)
	}
	var x unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &x)
	if err == nil && (x.Ino != d.Ino || unix.Mkdev(x.Dev_major, x.Dev_minor) != d.Dev) {
		err = errors.New("its path leads to another directory")
	}
	if err != nil {
		_ = unix.Close(fd) // O_PATH
		return -1, err
	}
	return fd, nil
}

// findVisited is called when the layer is there.
func (a *attachment) findVisited() (err error) {
	if a.place.root() {
		a.visited, err = a.cover().below(a.place.backing)
	}
	return err
}

// visits: a working directory that has to go to a copy.
func (a *attachment) visits(k tracer.Kind, mount uint64) bool {
	return k == tracer.Cwd && a.visited[mount]
}

// findCopies lists what is below the layer's mounts.
func (d *detachment) findCopies() error {
	d.copies = map[uint64]bool{}
	for _, layer := range []int{d.Layer.Mount, d.Layer.Bottom} {
		below, err := d.cover().below(layer)
		if err != nil && d.Server == nil {
			d.rep.Notes = append(d.rep.Notes, fmt.Sprintf("working directories on mounts below / may be left: %v", err))
			continue
		}
		if err != nil {
			return err
		}
		for id := range below {
			d.copies[id] = true
		}
	}
	return nil
}

// visits: a working directory that has to leave a copy.
func (d *detachment) visits(k tracer.Kind, mount uint64) bool {
	return k == tracer.Cwd && d.copies[mount] && !d.off
}

func (d *detachment) visited(o *tracer.Description) (int, error) {
	rel, below := relativeTo(d.Layer.Info.Prefix, o.Path)
	if !below || o.Deleted {
		return -1, errors.New("it has no path any more")
	}
	return openVisited(d.Layer.Backing, rel, o)
}
