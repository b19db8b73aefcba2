package graft

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// DetachOptions say which layer to take off.
type DetachOptions struct {
	ID     string
	Target Target
	// Layer is what the keeper holds; its descriptors stay the caller's.
	Layer Layer
	// Server serves the layer; nil when it is dead.
	Server Server
	// Adopted are the originals; only needed when the server is dead.
	Adopted []AdoptedDescription
	// HandleIoctl is the ioctl(2) request by which the layer tells the handle of an open file.
	HandleIoctl uint
	// Remounted is told the mount that is in place after a rollback; the descriptor is not its to keep.
	Remounted func(mount int) error
	// Deadline bounds how long the target may be stopped; 0 means DefaultDeadline.
	Deadline time.Duration
	// Step is called before each step with its name; an error makes the ungraft roll back. For tests.
	Step func(step string) error
}

// StepUnmount comes before the layer is taken off, with the target stopped.
const StepUnmount = "unmount"

// Detach swaps every open object back from the layer to what lies under it and
// takes the layer off. On an error the layer is as it was, unless the error says
// otherwise. Rules must have been taken away before.
func Detach(ctx context.Context, o DetachOptions) (*Report, error) {
	d := &detachment{DetachOptions: o, rep: &Report{}, procFD: -1, clone: -1, groupFD: -1}
	if d.Deadline == 0 {
		d.Deadline = DefaultDeadline
	}
	if d.Step == nil {
		d.Step = func(string) error { return nil }
	}
	defer d.release()
	if err := d.run(ctx); err != nil {
		return nil, fmt.Errorf("ungraft %s from pid %d: %w", o.Layer.Info.Path, o.Target.PID, err)
	}
	return d.rep, nil
}

type detachment struct {
	DetachOptions
	ns      *namespace
	procFD  int
	clone   int // a second mount of the layer, to put it back
	groupFD int
	maps    []int // files of the layer that are mapped, to be written back
	used    map[uint64]bool
	rep     *Report
}

func (d *detachment) run(ctx context.Context) error {
	swap := tracer.Options{
		Processes: reachableProcesses, Match: d.match, Replace: d.original, Locks: d.locks,
		Step: d.Step, Deadline: d.Deadline,
		// Closing a file of the layer waits for the server; no slot is empty for that long.
		NeverEmpty: true,
	}
	if d.Server == nil {
		swap.Replace, swap.Locks = d.rescue, nil
		swap.Seized = func() error { return abortConnection(d.Layer.Info.Dev) }
		swap.MapsByPath = true
		swap.RestartErrnos = []syscall.Errno{unix.ECONNABORTED, unix.ENOTCONN}
	}
	if err := d.enter(); err != nil {
		return err
	}
	swap.Stopped, swap.Undo = d.takeOff, d.putBack
	r, err := tracer.Swap(ctx, swap)
	if err != nil {
		return err
	}
	d.rep.add(r)
	swap.Stopped, swap.Undo, swap.Seized = nil, nil, nil
	for range stragglerPasses {
		r, err := tracer.Swap(ctx, swap)
		if err != nil {
			return fmt.Errorf("%w; the layer is off, but some objects may still be on it", err)
		}
		d.rep.addStragglers(r)
		if len(r.Swapped) == 0 {
			break
		}
	}
	return nil
}

func (d *detachment) enter() (err error) {
	if d.procFD, err = openProcFD(); err != nil {
		return err
	}
	if d.ns, err = enterNamespace(d.Target.namespaceFile()); err != nil {
		return err
	}
	if d.Layer.PeerGroup >= 0 {
		l, err := resolveMountRoot(d.ns.tid, d.Layer.Backing)
		if err != nil {
			return err
		}
		d.groupFD = l
	}
	if d.Server == nil {
		return nil // nothing to put back: the layer is dead
	}
	return d.ns.do(func() error {
		d.clone, err = unix.OpenTree(d.Layer.Mount, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		if errors.Is(err, unix.EINVAL) {
			d.clone, err = -1, nil // it is not mounted any more; see takeOff
		}
		if err != nil {
			return fmt.Errorf("open_tree (to be able to put the layer back): %w", err)
		}
		return nil
	})
}

// match picks what is open on the layer, in whatever process it is by now.
func (d *detachment) match(o *tracer.Object) bool { return o.Dev == d.Layer.Info.Dev }

// original finds what a file of the layer stands for.
func (d *detachment) original(o *tracer.Description) (int, error) {
	if o.Kind == tracer.Map {
		return d.originalOfMap(o)
	}
	if o.Kind == tracer.Descriptor && o.Flags&unix.O_PATH == 0 {
		var handle uint64
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(o.File), uintptr(d.HandleIoctl), uintptr(unsafe.Pointer(&handle)))
		if e != 0 {
			return -1, fmt.Errorf("ask the layer for its handle: %w", e)
		}
		return d.Server.Description(handle)
	}
	lower, err := d.backing(o)
	if err != nil || o.Kind != tracer.Descriptor {
		return lower, err
	}
	return reopenPath(lower, o)
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
		dup, err := unix.FcntlInt(uintptr(o.File), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return -1, err
		}
		d.maps = append(d.maps, dup)
		if err := writeBack(dup); err != nil {
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

func (d *detachment) locks(o *tracer.Object) []tracer.Lock {
	if o.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	locks, err := d.Server.PosixLocks(o.PID, o.Ino)
	if err != nil {
		d.rep.Notes = append(d.rep.Notes, fmt.Sprintf("%s: its POSIX locks are lost: %v", o, err))
	}
	return locks
}

// takeOff runs with every target thread stopped: nothing can dirty a page or walk a path any more.
func (d *detachment) takeOff() error {
	if err := d.Step(StepUnmount); err != nil {
		return err
	}
	if d.Server != nil {
		for _, fd := range d.maps {
			if err := writeBack(fd); err != nil {
				return err
			}
		}
	}
	return d.ns.do(func() error {
		err := detachMount(d.Layer.Mount, d.procFD)
		if errors.Is(err, unix.EINVAL) {
			err = nil // it is not mounted any more: an earlier ungraft came this far, or the target took it off
		}
		if err != nil || d.groupFD < 0 {
			return err
		}
		return (&peerGroup{clone: d.Layer.PeerGroup}).rejoin(d.groupFD)
	})
}

func (d *detachment) putBack() error {
	if d.clone < 0 {
		return errors.New("the layer was taken off and cannot be put back")
	}
	return d.ns.do(func() error {
		if d.groupFD >= 0 {
			if err := (&peerGroup{clone: d.Layer.PeerGroup}).leave(d.groupFD); err != nil {
				return err
			}
		}
		if err := moveOnto(d.clone, d.Layer.Backing); err != nil {
			return err
		}
		if d.Remounted == nil {
			return nil
		}
		return d.Remounted(d.clone)
	})
}

// rescue finds the original of a file whose server is dead: an adopted one of the
// same inode and mode, or the file that its path names below the layer.
func (d *detachment) rescue(o *tracer.Description) (int, error) {
	rel, below := relativeTo(d.Layer.Info.Prefix, o.Path)
	if o.Kind == tracer.Descriptor && o.Flags&unix.O_PATH == 0 {
		if fd, ok := d.adoptedLike(o); ok {
			return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		}
	}
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
		fd, err = unix.Openat2(d.Layer.Backing, rel, &unix.OpenHow{
			Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
		})
	}
	if err != nil {
		return -1, fmt.Errorf("its server is dead; open the file under it by its path: %w", err)
	}
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil || s.Ino != o.Ino {
		_ = unix.Close(fd)
		return -1, errors.New("its server is dead and its path names another file")
	}
	return fd, nil
}

func (d *detachment) adoptedLike(o *tracer.Description) (int, bool) {
	const mode = unix.O_ACCMODE | unix.O_APPEND | unix.O_DIRECTORY
	if d.used == nil {
		d.used = map[uint64]bool{}
	}
	for _, a := range d.Adopted {
		var s unix.Stat_t
		flags, err := unix.FcntlInt(uintptr(a.File), unix.F_GETFL, 0)
		if err != nil || unix.Fstat(a.File, &s) != nil {
			continue
		}
		if !d.used[a.Handle] && s.Ino == o.Ino && flags&mode == o.Flags&mode {
			d.used[a.Handle] = true
			return a.File, true
		}
	}
	return -1, false
}

func (d *detachment) release() {
	if d.ns != nil {
		d.ns.close()
	}
	for _, fd := range append(d.maps, d.procFD, d.clone, d.groupFD) {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// resolveMountRoot opens the root of the mount that backing is on, as a thread of the namespace sees it.
func resolveMountRoot(tid, backing int) (int, error) {
	l := &place{backing: backing}
	if err := l.findMount(tid); err != nil {
		return -1, err
	}
	return l.mountRoot(tid)
}
