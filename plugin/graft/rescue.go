package graft

import (
	"errors"
	"fmt"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// rescue finds the original of a file whose server is dead: the description that it
// stands for, the file that its path names below the layer, or what the server had
// open of it.
func (d *detachment) rescue(o *tracer.Description) tracer.Replacement {
	if d.visits(o.Kind, o.MountID) {
		return replacement(d.visited(o))
	}
	d.stores.note(o)
	if o.Kind == tracer.Descriptor && o.Flags&unix.O_PATH == 0 {
		if number, ok, err := d.description(o); err != nil || ok {
			return d.remnants.give(number, err)
		}
	}
	fd, err := d.byPath(o)
	if err == nil {
		return replacement(fd, nil)
	}
	number, ok, oerr := d.objectLike(o)
	if oerr != nil {
		return replacement(-1, oerr)
	}
	if ok {
		return replacement(d.reopenObject(number, o))
	}
	return replacement(-1, err)
}

// rescueAll is tracer.Options.ReplaceAll.
func (d *detachment) rescueAll(all []*tracer.Description) []tracer.Replacement {
	made := make([]tracer.Replacement, len(all))
	var own []*tracer.Replacement // beyond the room that there is for them
	for i, o := range all {
		d.Progress()
		made[i] = d.rescue(o)
		if m := &made[i]; o.Kind == tracer.Descriptor && m.Err == nil && m.Lender == nil && m.FD >= d.remnants.room {
			own = append(own, m)
		}
		if len(own) == keepAtOnce || i == len(all)-1 {
			d.remnants.keep(own)
			own = nil
		}
	}
	return made
}

func replacement(fd int, err error) tracer.Replacement { return tracer.Replacement{FD: fd, Err: err} }

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

// reopenObject opens an object, which is there as O_PATH, as a description was: also one that has no name any more.
func (d *detachment) reopenObject(number int, o *tracer.Description) (int, error) {
	lower, err := d.Remains.Lender.Take(number)
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
