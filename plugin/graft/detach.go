package graft

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// DetachOptions say which layer to take off.
type DetachOptions struct {
	ID     string
	Target Target
	// Layer is what the keeper holds; its descriptors stay the caller's. Without a mount (-1) the layer
	// is off already, and only what is left on it is swapped.
	Layer Layer
	// Server serves the layer; nil when it is dead.
	Server Server
	// Left is what the graft could not put onto the layer, by LeftBelow.
	Left []tracer.Object
	// Remains are what the dead server had open. Only needed when it is dead.
	Remains Remains
	// Locks are the POSIX locks that the dead server had below for processes.
	Locks []LeftLocks
	// HandleIoctl is the ioctl(2) request by which the layer tells the handle of an open file; 0: the server is dead, and nobody tells in its stead.
	HandleIoctl uint
	// Deadline bounds how long the target may be stopped; 0 means DefaultDeadline. There is no other limit: a layer has to come off.
	Deadline time.Duration
	// Hung, if set, ends this process, which does nothing else, when the target would stand still for good: see tracer.Options.
	Hung func(what string)
	// Step is called before each step with its name; an error makes the ungraft roll back. For tests.
	Step func(step string) error
	// Progress, if set, is called wherever the work comes on: see tracer.Options.
	Progress func()
}

// Detach swaps every open object back from the layer to what lies under it and
// takes the layer off. On an error the layer is as it was, unless the error says
// otherwise. Rules must have been taken away before.
func Detach(ctx context.Context, o DetachOptions) (*Report, error) {
	d := &detachment{DetachOptions: o, remnants: newRemnants(o.Remains), rep: &Report{}, procFD: -1, groupFD: -1, sample: -1, off: o.Layer.Mount < 0}
	if d.Deadline == 0 {
		d.Deadline = DefaultDeadline
	}
	if d.Step == nil {
		d.Step = func(string) error { return nil }
	}
	if d.Progress == nil {
		d.Progress = func() {}
	}
	defer d.release()
	if err := d.run(ctx); err != nil {
		return nil, fmt.Errorf("ungraft %s from pid %d: %w", o.Layer.Info.Path, o.Target.PID, d.remnants.whatFor(err))
	}
	return d.rep, nil
}

type detachment struct {
	DetachOptions
	ns      *namespace
	procFD  int
	groupFD int
	sample  int  // some file of the layer, -1 for none
	off     bool // it is not mounted any more
	// lockless: no POSIX lock is held through the layer; asked for each file, that would cost more than all the rest
	lockless bool
	locked   map[uint64]bool // inode numbers with POSIX locks
	remnants *remnants
	settling sync.Mutex // two settle at a time
	stores   stores
	copies   map[uint64]bool // mounts on a layer over "/" that are copies of others
	near     map[int]bool    // the target's processes
	rep      *Report
}

func (d *detachment) run(ctx context.Context) error {
	swap := tracer.Options{
		Match: d.match, Device: d.Layer.Info.Dev, ReplaceAll: d.originals, Locks: d.locks, OwnLocks: d.locks, Locked: d.hasLocks, Settle: d.settle,
		MayWait: d.mayWait, Stopped: d.quiesce, Exchanged: d.takeOff, Step: d.step, Progress: d.Progress, Deadline: d.Deadline, Hung: d.Hung, OwnProcess: d.Hung != nil,
		// Closing a file of the layer waits for the server; no slot is empty for that long.
		NeverEmpty: true,
		// The server writes to the originals of files that are appended to, and gives them the flags that the target has set.
		InUse: true,
		// What was started from the layer must not depend on it any longer.
		Executables: true,
		GuardLocks: func(phase tracer.LockPhase, files []tracer.LockedFile, back bool) error {
			return d.Server.GuardLocks(phase, guarded(files, d.Layer.Info.Dev), !back)
		},
	}
	if d.Server == nil {
		swap.ReplaceAll = d.rescueAll
		swap.RequireRoom = d.Remains.Lender != nil // what is left would be on a layer that nobody answers
		swap.Locks, swap.OwnLocks, swap.Locked = d.leftLocks, nil, nil
		swap.GuardLocks, swap.LocksElsewhere, swap.LockLost = d.passLeftLocks, true, d.lockLost
		swap.Together = true // once the connection is aborted, nobody must run who has files of it
		swap.Seized = func() error {
			d.stores.look()
			return d.Layer.abort()
		}
		swap.MapsByPath = true
		// EIO: what a read gets whose page could not be read because of the abort (filemap_read in mm/filemap.c). There are no rules any more that could fail it.
		swap.RestartErrnos = []syscall.Errno{unix.ECONNABORTED, unix.ENOTCONN, unix.EIO}
	}
	if err := d.enter(); err != nil {
		return err
	}
	if err := d.askLocks(); err != nil {
		return err
	}
	near, err := d.Target.Processes()
	if err != nil {
		return err
	}
	d.near = map[int]bool{}
	for _, pid := range near {
		d.near[pid] = true
	}
	r, err := swapEverywhere(ctx, d.Target, swap)
	if err != nil {
		return partly(err, r)
	}
	d.rep.add(r)
	if err := d.checkOff(); err != nil {
		return err
	}
	swap.Stopped, swap.Seized, swap.Exchanged = nil, nil, nil
	for range stragglerPasses {
		r, err := swapEverywhere(ctx, d.Target, swap)
		if err != nil {
			return fmt.Errorf("%w; the layer is off, but some objects may still be on it", err)
		}
		d.rep.addStragglers(r)
		// of what is open on a mount that was taken off, other paths are shown
		d.rep.heldNow(r, tracer.InFlight)
		if len(r.Swapped) == 0 {
			break
		}
	}
	d.explainHeld()
	return nil
}

func (d *detachment) enter() (err error) {
	if d.procFD, err = openProcFD(); err != nil {
		return err
	}
	if d.ns, err = enterNamespace(d.Target.namespaceFile()); err != nil {
		return err
	}
	if !d.off {
		// They are read again in the stop, and what cannot be done then is better known before.
		if _, err := readMounts(d.ns.tid); err != nil {
			return fmt.Errorf("nothing was stopped, and the layer stays: %w", err)
		}
	}
	if err := d.enterRoot(); err != nil {
		return err
	}
	if d.Layer.PeerGroup >= 0 {
		l, err := resolveMountRoot(d.ns.tid, d.Layer.Backing)
		if errors.Is(err, errMountGone) {
			// Taken off with the layer on it, or without: there is no mount left to give back to its group.
			d.rep.Notes = append(d.rep.Notes, d.Layer.Info.Path+": the mount that lay under the layer was taken off meanwhile")
			l, err = -1, nil
		}
		if err != nil {
			return err
		}
		d.groupFD = l
	}
	return nil
}

// match picks what is open on the layer, in whatever process it is by now.
func (d *detachment) match(o *tracer.Object) bool {
	if match, known := d.heldOnLayer(o); known {
		return match
	}
	if d.root() && !d.off && d.Server != nil && atRoot(o, d.Layer.Info.Prefix) {
		return false // pivot_root moves it
	}
	return o.Dev == d.Layer.Info.Dev || d.visits(o.Kind, o.MountID)
}

// askLocks learns which files have POSIX locks: whoever has such a file open is
// stopped together with the holder.
func (d *detachment) askLocks() error {
	d.locked = map[uint64]bool{}
	if d.Server == nil {
		return nil
	}
	inodes, err := d.Server.LockedFiles()
	if err != nil {
		return fmt.Errorf("ask the layer for its locks: %w", err)
	}
	for _, ino := range inodes {
		d.locked[ino] = true
	}
	return nil
}

// step asks for the locks again when the next processes are stopped.
func (d *detachment) step(name string) error {
	if err := d.Step(name); err != nil || name != tracer.StepStopped || d.lockless {
		return err
	}
	return d.askLocks()
}

func (d *detachment) hasLocks(o *tracer.Object) bool { return d.locked[o.Ino] }

func (d *detachment) locks(o *tracer.Object) []tracer.Lock {
	if d.lockless || !d.locked[o.Ino] {
		return nil
	}
	locks, err := d.Server.PosixLocks(o.PID, o.TID, o.Ino)
	if err != nil {
		d.rep.Notes = append(d.rep.Notes, fmt.Sprintf("%s: its POSIX locks are lost: %v", o, err))
	}
	return locks
}

// mayWait: see tracer.Options. The server is asked for locks and for what was stored in maps, and for nothing else.
func (d *detachment) mayWait(o *tracer.Description) bool {
	if o == nil {
		return !d.lockless
	}
	return o.Kind == tracer.Map && o.Flags&unix.O_ACCMODE == unix.O_RDWR
}

// settle brings what was written to a map since to the server: now nobody can
// dirty a page any more.
func (d *detachment) settle(o *tracer.Description, fd int) error {
	if o.Kind != tracer.Map || o.Flags&unix.O_ACCMODE != unix.O_RDWR {
		return nil
	}
	d.settling.Lock()
	defer d.settling.Unlock()
	if d.Server == nil {
		if err := d.stores.save(o, fd); err != nil {
			d.rep.Notes = append(d.rep.Notes, fmt.Sprintf("%s: not all that was stored in its map may be in the file: %v", o.Path, err))
		}
		return nil
	}
	return writeBack(o.File)
}

// quiesce runs when the first processes are stopped and nothing is exchanged yet.
func (d *detachment) quiesce() error {
	if d.Server == nil {
		return nil
	}
	return d.endFlushes()
}

// endFlushes spares the target a round trip for each file that it closes in the
// exchange. The kernel learns of it by the close of a file of our own.
func (d *detachment) endFlushes() error {
	if d.sample < 0 {
		return nil
	}
	var err error
	if d.lockless, err = d.Server.EndFlushes(); err != nil {
		return err
	}
	_ = unix.Close(d.sample) // ENOSYS stays with the kernel
	d.sample = -1
	return nil
}

// takeOff takes the mount off when all is exchanged: a working directory on a
// mount that is not there any more has no path for getcwd(2). Until then a failure
// leaves the layer where it is.
func (d *detachment) takeOff() error {
	if d.off {
		return nil
	}
	if err := d.Step(StepUnmount); err != nil {
		return err
	}
	err := d.detachLayer()
	if errors.Is(err, unix.EINVAL) {
		err = nil // it is not mounted any more: an earlier ungraft came this far, or the target took it off
	}
	if err == nil {
		err = d.Step(StepOff)
	}
	if err == nil && d.groupFD >= 0 {
		err = d.ns.do(func() error { return (&peerGroup{clone: d.Layer.PeerGroup}).rejoin(d.groupFD) })
	}
	if err == nil {
		err = d.Step(StepRejoined)
	}
	d.off = err == nil
	return err
}

func (d *detachment) release() {
	if d.ns != nil {
		d.ns.close()
	}
	for _, fd := range []int{d.procFD, d.groupFD, d.sample} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// resolveMountRoot opens the root of the mount that backing is on, as a thread of
// the namespace sees it; -1: that mount has not left its group.
func resolveMountRoot(tid, backing int) (int, error) {
	l := &place{backing: backing}
	if err := l.findMount(tid); err != nil {
		return -1, err
	}
	if l.shared() {
		return -1, nil // it is in its group again: an earlier ungraft came this far, and MOVE_MOUNT_SET_GROUP takes private mounts only
	}
	return l.mountRoot(tid)
}
