package graft

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// AttachOptions say what to graft where.
type AttachOptions struct {
	// ID is the graft's id; mountinfo shows it as the source of the layer.
	ID string
	// Target and Path say where.
	Target Target
	Path   string
	Keeper Keeper
	Server Server
	Limits
	// HandleIoctl is the ioctl(2) request by which the layer tells the handle of an open file.
	HandleIoctl uint
	// Close, if set, is asked to close copies of files that would keep the target waiting if they could not be closed.
	Close Closer
	// Hung, if set, ends this process, which does nothing else, when the target would stand still for good: see tracer.Options.
	Hung func(what string)
	// Step is called before each step with its name; an error makes the graft roll back. For tests.
	Step func(step string) error
	// Progress, if set, is called wherever the work comes on: see tracer.Options.
	Progress func()
}

// ErrLeft is what a graft fails with that could not be undone: the layer may be mounted and in
// use, and has to be served until it was taken off.
var ErrLeft = errors.New("objects of the target may be on the layer")

// stragglerPasses bounds how often the target is looked through again for
// objects that were opened by processes which were not stopped.
const stragglerPasses = 5

// Attach puts a layer over a path of the target and swaps the open objects
// under it onto the layer. On an error the target is as it was before, unless it is an ErrLeft.
func Attach(ctx context.Context, o AttachOptions) (rep *Report, err error) {
	a := &attachment{AttachOptions: o, rep: &Report{}}
	if a.Deadline == 0 {
		a.Deadline = DefaultDeadline
	}
	if a.Step == nil {
		a.Step = func(string) error { return nil }
	}
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; i >= 0; i-- {
			if err == nil {
				break
			}
			uerr := undo[i]()
			switch {
			case uerr != nil:
				uerr = fmt.Errorf("%w: %w", uerr, ErrLeft)
			case errors.Is(err, tracer.ErrPartly), errors.Is(err, tracer.ErrUnfinished):
				uerr = errors.New("these have been swapped back: nothing is changed")
			}
			err = errors.Join(err, uerr)
		}
		a.release()
		if err != nil {
			err = fmt.Errorf("graft %s on pid %d: %w", o.Path, o.Target.PID, err)
		}
	}()
	if err := a.prepare(ctx); err != nil {
		return nil, err
	}
	swap := tracer.Options{
		Processes: a.Target.Swappable, Match: a.match, Locate: a.locate, ReplaceAll: a.adopt,
		GuardLocks: func(phase tracer.LockPhase, files []tracer.LockedFile, back bool) error {
			return a.Server.GuardLocks(phase, guarded(files, a.dev), back)
		},
		Stopped: a.mountLayer, Undo: a.unmountLayer, Settle: a.settle, MayWait: a.mayWait, Step: a.Step, Progress: a.Progress,
		RequireAll: a.RequireAll, Deadline: a.Deadline, Budget: a.Budget, Hung: a.Hung, OwnProcess: a.Hung != nil,
	}
	r, err := tracer.Swap(ctx, swap)
	if err == nil || errors.Is(err, tracer.ErrPartly) || errors.Is(err, tracer.ErrUnfinished) {
		// From here on a failure has to swap back what is on the layer.
		undo = append(undo, func() error { return a.revert() })
	}
	if err != nil {
		return nil, err
	}
	a.rep.add(r)
	if err := a.findVisited(); err != nil {
		return nil, err
	}
	// Processes without an object were not stopped, and may have opened one until the layer lay there.
	swap.Stopped, swap.Undo = nil, nil
	for range stragglerPasses {
		r, err := tracer.Swap(ctx, swap)
		if err != nil {
			return nil, err
		}
		a.rep.addStragglers(r)
		a.rep.heldNow(r, tracer.InFlight, tracer.RingFile, tracer.Watch, tracer.LoopDevice, tracer.SwapFile)
		if len(r.Swapped) == 0 {
			break
		}
	}
	a.explainKept()
	if err := a.Step(StepHandOver); err != nil {
		return nil, err
	}
	if err := a.handOver(); err != nil {
		return nil, err
	}
	if err := a.Step(StepHanded); err != nil {
		return nil, err
	}
	return a.rep, nil
}

type attachment struct {
	AttachOptions
	place   *place
	ns      *namespace
	fuse    fuseMount
	procFD  int
	dev     uint64
	quick   map[uint64]bool // mounts of file systems that are this kernel's alone
	visited map[uint64]bool // mounts below "/", of which the layer has copies by now
	group   *peerGroup
	groupFD int // root of the mount that left its group
	adopter
	rep *Report
}

// prepare does all that can be done while the target runs and nothing of it can see.
func (a *attachment) prepare(ctx context.Context) (err error) {
	a.fuse, a.procFD, a.groupFD = fuseMount{-1, -1, -1}, -1, -1
	start := time.Now()
	if err := a.Step(StepResolve); err != nil {
		return err
	}
	if a.place, err = resolve(a.Target, a.Path); err != nil {
		return err
	}
	if a.procFD, err = openProcFD(); err != nil {
		return err
	}
	if a.ns, err = enterNamespace(a.Target.namespaceFile()); err != nil {
		return err
	}
	if !a.Target.Alive() {
		return errors.New("the process has ended")
	}
	if err := a.checkCloses(); err != nil {
		return err
	}
	if a.place.shared() && !a.Target.Tree {
		if a.groupFD, err = a.place.mountRoot(a.Target.PID); err != nil {
			return err
		}
	}
	if err := a.Step(StepLayer); err != nil {
		return err
	}
	attrs, err := mountAttrs(a.place.backing)
	if err != nil {
		return err
	}
	if a.fuse, err = newFuseMount(a.ID, a.place.mode, attrs); err != nil {
		return err
	}
	if a.place.root() {
		if a.fuse.bottom, err = fuseMountOf(a.fuse.device, a.ID, a.place.mode, attrs); err != nil {
			return err
		}
	}
	a.adopter = newAdopter(a.Server, a.Keeper, a.fuse.mount, a.Progress)
	if a.dev, err = device(a.fuse.mount); err != nil {
		return err
	}
	if err := a.Step(StepServe); err != nil {
		return err
	}
	peer := -1
	if a.groupFD >= 0 {
		// The clone is made here, so that the keeper has it before the group is left.
		if err := a.ns.do(func() (err error) { a.group, err = clonePeerGroup(a.groupFD); return err }); err != nil {
			return err
		}
		peer = a.group.clone
	}
	err = a.Keeper.Serve(ctx, Layer{
		Device: a.fuse.device, Mount: a.fuse.mount, Backing: a.place.backing, Bottom: a.fuse.bottom, PeerGroup: peer,
		Info: LayerInfo{Path: a.place.path, Prefix: a.place.prefix, Dev: a.dev},
	})
	if err != nil {
		return fmt.Errorf("start the layer: %w", err)
	}
	if err := a.Step(StepServed); err != nil {
		return err
	}
	// A swapper that holds /dev/fuse and files of the mount could not be killed.
	_ = unix.Close(a.fuse.device)
	a.fuse.device = -1
	a.rep.Prepare += time.Since(start)
	return nil
}

// mountLayer makes the layer live: when move_mount returns, every new path walk goes through it.
func (a *attachment) mountLayer() error {
	if err := a.Step(StepMount); err != nil {
		return err
	}
	if a.group != nil {
		if err := a.ns.do(func() error { return a.group.leave(a.groupFD) }); err != nil {
			return err
		}
	}
	err := a.Step(StepLeft)
	if err == nil {
		err = a.attachMount()
	}
	if err == nil {
		if err = a.Step(StepMounted); err != nil {
			return errors.Join(err, a.unmountLayer())
		}
	}
	if err != nil && a.group != nil {
		err = errors.Join(err, a.ns.do(func() error { return a.group.rejoin(a.groupFD) }))
	}
	return err
}

func (a *attachment) attachMount() error {
	if !a.place.root() {
		return a.ns.do(func() error { return moveOnto(a.fuse.mount, a.place.backing) })
	}
	notes, err := a.cover().put()
	a.rep.Notes = append(a.rep.Notes, notes...)
	return err
}

func (a *attachment) cover() rootCover {
	return rootCover{ns: a.ns, procFD: a.procFD, backing: a.place.backing, top: a.fuse.mount, bottom: a.fuse.bottom, step: a.Step}
}

func (a *attachment) unmountLayer() error {
	var err error
	if a.place.root() {
		c := a.cover()
		c.step = nil // those of an ungraft
		_, err = c.off(a.Target, a.dev, false)
	}
	return a.ns.do(func() error {
		if !a.place.root() {
			err = detachMount(a.fuse.mount, a.procFD)
		}
		if a.group != nil {
			err = errors.Join(err, a.group.rejoin(a.groupFD))
		}
		return err
	})
}

// revert undoes a completed swap, after a later step failed.
func (a *attachment) revert() error {
	ctx, cancel := context.WithTimeout(context.Background(), 4*a.Deadline)
	defer cancel()
	group := -1
	if a.group != nil {
		group = a.group.clone
	}
	_, err := Detach(ctx, DetachOptions{
		ID: a.ID, Target: a.Target, Server: a.Server, HandleIoctl: a.HandleIoctl, Deadline: a.Deadline, Hung: a.Hung, Progress: a.Progress,
		Layer: Layer{
			Device: -1, Mount: a.fuse.mount, Backing: a.place.backing, Bottom: a.fuse.bottom, PeerGroup: group,
			Info: LayerInfo{Path: a.place.path, Prefix: a.place.prefix, Dev: a.dev},
		},
	})
	return err
}

func (a *attachment) release() {
	if a.ns != nil {
		a.ns.close()
	}
	a.fuse.close()
	if a.place != nil {
		a.place.close()
	}
	if a.group != nil {
		a.group.close()
	}
	for _, fd := range []int{a.procFD, a.groupFD} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	a.close()
}
