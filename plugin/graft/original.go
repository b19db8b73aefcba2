package graft

import (
	"fmt"
	"unsafe"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// originals finds what files of the layer stand for.
func (d *detachment) originals(all []*tracer.Description) []tracer.Replacement {
	made := make([]tracer.Replacement, len(all))
	var open []*tracer.Description
	var at []int
	for i, o := range all {
		d.Progress()
		if o.Kind == tracer.Descriptor && o.Flags&unix.O_PATH == 0 {
			open, at = append(open, o), append(at, i)
			continue
		}
		made[i].FD, made[i].Err = d.original(o)
	}
	for i, m := range descriptionsUnder(open, d.Server, d.HandleIoctl, d.Progress) {
		made[at[i]] = m
		if d.sample < 0 && m.Err == nil && open[i].Mode&unix.S_IFMT == unix.S_IFREG {
			d.sample, _ = unix.FcntlInt(uintptr(open[i].File), unix.F_DUPFD_CLOEXEC, 3) // without, closes take longer
		}
	}
	return made
}

// original is for what is no open file.
func (d *detachment) original(o *tracer.Description) (int, error) {
	if d.visits(o.Kind, o.MountID) {
		return d.visited(o)
	}
	if o.Kind == tracer.Map || o.Kind == tracer.Executable {
		return d.originalOfMap(o)
	}
	lower, err := d.backing(o)
	if err != nil || o.Kind != tracer.Descriptor {
		return lower, err
	}
	return reopenPath(lower, o)
}

// handleOf asks the layer under which handle it knows an open file.
func handleOf(fd int, request uint) (handle uint64, err error) {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&handle)))
	if e != 0 {
		return 0, fmt.Errorf("ask the layer for its handle: %w", e)
	}
	return handle, nil
}

// reopenPath gives an O_PATH descriptor the flags that fdinfo showed. It takes lower over.
func reopenPath(lower int, o *tracer.Description) (int, error) {
	flags := unix.O_PATH | unix.O_CLOEXEC | o.Flags&(unix.O_DIRECTORY|unix.O_NOFOLLOW)
	var fd int
	var err error
	switch {
	case o.Mode&unix.S_IFMT == unix.S_IFDIR:
		fd, err = unix.Openat(lower, ".", flags, 0)
	case flags&unix.O_NOFOLLOW != 0:
		return lower, nil // the server opened it so
	default:
		fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", lower), flags, 0)
	}
	_ = unix.Close(lower)
	if err != nil {
		return -1, fmt.Errorf("open what is under it: %w", err)
	}
	return fd, nil
}

func (d *detachment) backing(o *tracer.Description) (int, error) {
	rel, _ := relativeTo(d.Layer.Info.Prefix, o.Path)
	return d.Server.Backing(o.Ino, rel)
}

func (d *detachment) originalOfMap(o *tracer.Description) (int, error) {
	lower, err := d.backing(o)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(lower) }()
	flags := unix.O_RDONLY
	if o.Flags&unix.O_ACCMODE == unix.O_RDWR {
		flags = unix.O_RDWR
		if err := writeBack(o.File); err != nil { // most of it now, while nobody waits
			return -1, err
		}
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", lower), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the file under the map: %w", err)
	}
	return fd, nil
}

// writeBack brings dirty pages of a map to the server, without an fsync of the file under it.
func writeBack(fd int) error {
	err := unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	if err != nil {
		return fmt.Errorf("write dirty pages of the map back: %w", err)
	}
	return nil
}

// descriptionsUnder are those that open files of the layer stand for.
func descriptionsUnder(all []*tracer.Description, server Server, ioctl uint, progress func()) []tracer.Replacement {
	made := make([]tracer.Replacement, len(all))
	var at []int
	var handles []uint64
	for i, d := range all {
		progress()
		handle, err := handleOf(d.File, ioctl)
		if err != nil {
			made[i] = tracer.Replacement{FD: -1, Err: err}
			continue
		}
		at, handles = append(at, i), append(handles, handle)
	}
	for i, m := range server.Descriptions(handles) {
		made[at[i]] = m
	}
	return made
}
