package graft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// rescue finds the original of a file whose server is dead: the description that it
// stands for, the file that its path names below the layer, or what the server had
// open of it.
func (d *detachment) rescue(o *tracer.Description) (int, error) {
	if d.visits(o.Kind, o.MountID) {
		return d.visited(o)
	}
	d.stores.note(o)
	if o.Kind == tracer.Descriptor && o.Flags&unix.O_PATH == 0 {
		if fd, ok := d.description(o); ok {
			return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		}
	}
	fd, err := d.byPath(o)
	if err == nil {
		return fd, nil
	}
	if object, ok := d.objectLike(o); ok {
		return reopenObject(object, o)
	}
	return -1, err
}

// byPath opens what the path of a file names below the layer, if that is the file.
func (d *detachment) byPath(o *tracer.Description) (int, error) {
	rel, below := relativeTo(d.Layer.Info.Prefix, o.Path)
	if !below || o.Deleted {
		return -1, errors.New("its server is dead and it has no path any more")
	}
	flags := o.Flags &^ (unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC)
	if o.Kind == tracer.Cwd || o.Kind == tracer.Root {
		flags = unix.O_PATH | unix.O_DIRECTORY
	}
	var fd int
	var err error
	if rel == "" {
		if flags&unix.O_PATH != 0 {
			return unix.FcntlInt(uintptr(d.Layer.Backing), unix.F_DUPFD_CLOEXEC, 3)
		}
		fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", d.Layer.Backing), flags|unix.O_CLOEXEC, 0)
	} else {
		// Mounts below are under the layer too.
		fd, err = openBelow(d.Layer.Backing, rel, flags, o.Mode, false)
	}
	if err != nil {
		return -1, fmt.Errorf("its server is dead; open the file under it by its path: %w", err)
	}
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil || s.Ino != o.Ino || s.Mode&unix.S_IFMT != o.Mode&unix.S_IFMT {
		_ = unix.Close(fd)
		return -1, errors.New("its server is dead and its path names another file")
	}
	return fd, nil
}

// description finds the description that a file of the layer stands for.
func (d *detachment) description(o *tracer.Description) (int, bool) {
	if d.used == nil {
		d.used = map[uint64]bool{}
	}
	if d.HandleIoctl != 0 {
		if handle, err := handleOf(o.File, d.HandleIoctl); err == nil {
			i := slices.IndexFunc(d.Adopted, func(a AdoptedDescription) bool { return a.Handle == handle })
			if i < 0 {
				return -1, false
			}
			d.used[handle] = true
			return d.Adopted[i].File, true
		}
	}
	return d.descriptionLike(o) // the connection is aborted, or nobody stands in for the server
}

// descriptionLike goes by inode number, mode and, where several file systems below the layer have the number, by what lies at its path.
func (d *detachment) descriptionLike(o *tracer.Description) (int, bool) {
	const mode = unix.O_ACCMODE | unix.O_APPEND | unix.O_DIRECTORY
	var like []AdoptedDescription
	devices := map[uint64]bool{}
	deviceOf := func(fd int) uint64 {
		var s unix.Stat_t
		if unix.Fstat(fd, &s) != nil || s.Ino != o.Ino {
			return 0
		}
		return s.Dev
	}
	for _, a := range d.Adopted {
		flags, err := unix.FcntlInt(uintptr(a.File), unix.F_GETFL, 0)
		if dev := deviceOf(a.File); err == nil && dev != 0 && !d.used[a.Handle] && flags&mode == o.Flags&mode {
			like, devices[dev] = append(like, a), true
		}
	}
	if len(devices) > 1 {
		there, err := d.byPath(o)
		if err != nil {
			return -1, false
		}
		dev := deviceOf(there)
		_ = unix.Close(there) // another one of the same file
		like = slices.DeleteFunc(like, func(a AdoptedDescription) bool { return deviceOf(a.File) != dev })
	}
	if len(like) == 0 {
		return -1, false
	}
	d.used[like[0].Handle] = true
	return like[0].File, true
}

// objectLike is what the server had open of the object, if it is known which: on another mount below may be one of that number.
func (d *detachment) objectLike(o *tracer.Description) (object int, ok bool) {
	var dev uint64
	for _, fd := range d.Objects {
		var s unix.Stat_t
		if unix.Fstat(fd, &s) != nil || s.Ino != o.Ino || s.Mode&unix.S_IFMT != o.Mode&unix.S_IFMT {
			continue
		}
		if ok && s.Dev != dev {
			return -1, false
		}
		object, dev, ok = fd, s.Dev, true
	}
	return object, ok
}

// reopenObject opens an object, which is there as O_PATH, as a description was: also one that has no name any more.
func reopenObject(object int, o *tracer.Description) (int, error) {
	lower, err := unix.FcntlInt(uintptr(object), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil || o.Kind == tracer.Cwd || o.Kind == tracer.Root {
		return lower, err
	}
	if o.Flags&unix.O_PATH != 0 {
		return reopenPath(lower, o)
	}
	defer func() { _ = unix.Close(lower) }() // O_PATH
	// O_TMPFILE, which has O_DIRECTORY in it, stays with a file that was made by it.
	flags := o.Flags &^ (unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_NOFOLLOW | unix.O_TMPFILE)
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", lower), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("its server is dead; open what that had of it: %w", err)
	}
	return fd, nil
}
