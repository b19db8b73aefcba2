package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/faultgraft/faultgraft/fusefs"
	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// SwapperOptions say how the swapper process is started.
type SwapperOptions struct {
	// Progress is the descriptor of what the keeper learns from how far the swap has come.
	Progress int
	// Keeper and Server are descriptors of the connections with them; Server is -1 when the server is dead.
	Keeper, Server int
}

// RunSwapper is the swapper process: one graft, ungraft or move of open files, and it is gone.
func RunSwapper(o SwapperOptions) error {
	raiseDescriptorLimit()
	// It lives for milliseconds: no garbage collection while a target stands still.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(512 << 20)
	// Calls that are made past Go's runtime keep its processor while they hang (see tracer's kcmp): two for those, one for who ends this process then.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 3))
	at, err := openProgress(o.Progress)
	if err != nil {
		return fmt.Errorf("swapper: %w", err)
	}
	conn, err := wire.FromDescriptor(o.Keeper)
	if err != nil {
		return fmt.Errorf("swapper: %w", err)
	}
	// At the end of this, not of the process: that waits for closes of ours, which a file system may never answer.
	defer func() { _ = conn.Close() }()
	k := keeperLink{conn: conn, at: at}
	var server graft.Server
	if o.Server >= 0 {
		c, err := wire.FromDescriptor(o.Server)
		if err != nil {
			return fmt.Errorf("swapper: %w", err)
		}
		defer func() { _ = c.Close() }()
		server = serverLink{conn: c, at: at}
	}
	var j job
	fds, err := k.call(callJob, nil, &j)
	if err != nil {
		return fmt.Errorf("swapper: %w", err)
	}
	var res result
	switch {
	case j.Detach:
		res.Report, err = detach(j, k, server, fds)
	case len(j.Reswap) > 0:
		res.Report, err = reswap(j, k, server, fds)
	default:
		res.Report, err = graft.Attach(context.Background(), graft.AttachOptions{
			ID: j.Graft, Target: j.Target, Path: j.Path, Keeper: k, Server: server, HandleIoctl: fusefs.IoctlHandle,
			Limits: j.Limits, Close: closeElsewhere, Step: j.step(k), Progress: at.on, Hung: endHung,
		})
	}
	if err != nil {
		res.Error, res.Left = err.Error(), errors.Is(err, graft.ErrLeft)
	}
	if _, err := k.call(callResult, res, nil); err != nil {
		return fmt.Errorf("swapper: %w", err)
	}
	return nil
}

// exitHung is how a swapper ends that hangs while the target stands still.
const exitHung = 7

// endHung ends it: the kernel lets the threads of the target go then, and they go on with what they have. A swapper may die at any
// moment, so its keeper does what it does then.
func endHung(what string) {
	fmt.Fprintln(os.Stderr, what)
	os.Exit(exitHung)
}

// step is called by the swap before each of its steps. A swapper whose keeper has
// died goes no further: its server has another one take the layer off.
func (j job) step(k keeperLink) func(string) error {
	at := graftSwap
	switch {
	case j.Detach:
		at = ungraftSwap
	case len(j.Reswap) > 0:
		at = moveSwap
	}
	return func(step string) error {
		k.at.on()
		if err := at.Err(step); err != nil {
			return err
		}
		switch step {
		case graft.StepOff, graft.StepRejoined, tracer.StepRelease:
			return nil // to the end, rather than back
		}
		if k.conn.HungUp() {
			return errors.New("its keeper has died")
		}
		return nil
	}
}

// layer puts together what came with a job on a layer that is there.
func (j job) layer(fds []int) (graft.Layer, error) {
	if j.Off && len(fds) == 1 {
		return graft.Layer{Device: -1, Backing: fds[0], Mount: -1, Bottom: -1, PeerGroup: -1, Info: j.Layer}, nil
	}
	return layerOf(j.Layer, fds)
}

// layerOf sorts the descriptors of a layer that are handed around: backing, mount[, the other mount of one over "/"][, peer group].
func layerOf(info graft.LayerInfo, fds []int) (graft.Layer, error) {
	l := graft.Layer{Device: -1, Backing: -1, Mount: -1, Bottom: -1, PeerGroup: -1, Info: info}
	to := []*int{&l.Backing, &l.Mount}
	if info.Root() {
		to = append(to, &l.Bottom)
	}
	if len(fds) < len(to) || len(fds) > len(to)+1 {
		return l, fmt.Errorf("graft over %s: %d descriptors of its layer", info.Path, len(fds))
	}
	for i, fd := range fds {
		*append(to, &l.PeerGroup)[i] = fd
	}
	return l, nil
}

func reswap(j job, k keeperLink, server graft.Server, fds []int) (*graft.Report, error) {
	defer wire.CloseAll(fds)
	l, err := j.layer(fds)
	if err != nil {
		return nil, err
	}
	return graft.Reswap(context.Background(), graft.ReswapOptions{
		Target: j.Target, Layer: l, Files: j.Reswap, Keeper: k, Server: server, HandleIoctl: fusefs.IoctlHandle,
		Limits: j.Limits, Step: j.step(k), Progress: k.at.on, Hung: endHung,
	})
}

func detach(j job, k keeperLink, server graft.Server, fds []int) (*graft.Report, error) {
	defer wire.CloseAll(fds)
	l, err := j.layer(fds)
	if err != nil {
		return nil, err
	}
	var remains graft.Remains
	var locks []graft.LeftLocks
	handle := uint(fusefs.IoctlHandle)
	if j.Dead {
		server = nil
		if !j.StoodIn {
			handle = 0
		}
		if locks, err = k.locks(); err != nil {
			return nil, err
		}
		defer func() {
			for _, l := range locks {
				_ = unix.Close(l.File) // a duplicate
			}
		}()
		if remains, err = k.remains(); err != nil {
			return nil, err
		}
		defer remains.Lender.Close()
	}
	return graft.Detach(context.Background(), graft.DetachOptions{
		ID: j.Graft, Target: j.Target, Layer: l, Server: server, Remains: remains, Locks: locks, Left: j.Left, HandleIoctl: handle,
		Deadline: j.Deadline, Step: j.step(k), Progress: k.at.on, Hung: endHung,
	})
}

// keeperLink is a swapper's connection with its keeper.
type keeperLink struct {
	conn *wire.Conn
	at   *progress
}

var _ graft.Keeper = keeperLink{}

func (k keeperLink) call(method string, in, out any, fds ...int) ([]int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	defer k.at.on()
	return k.conn.Call(ctx, method, in, out, fds...)
}

func (k keeperLink) Serve(_ context.Context, l graft.Layer) error {
	fds := []int{l.Device, l.Backing, l.Mount}
	for _, fd := range []int{l.Bottom, l.PeerGroup} {
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}
	_, err := k.call(callLayer, l.Info, nil, fds...)
	return err
}

func (k keeperLink) Adopted(all []graft.AdoptedDescription) error {
	for len(all) > 0 {
		n := min(len(all), batch)
		var handles []uint64
		var fds []int
		for _, a := range all[:n] {
			handles, fds = append(handles, a.Handle), append(fds, a.File)
		}
		if _, err := k.call(callAdopted, handles, nil, fds...); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// remains are what the dead server had open, as far as the keeper could get it from its holder.
func (k keeperLink) remains() (graft.Remains, error) {
	var a remainsAnswer
	if _, err := k.call(callRemains, nil, &a); err != nil {
		return graft.Remains{}, err
	}
	l, err := tracer.NewLender(a.Keeper)
	if err != nil {
		return graft.Remains{}, fmt.Errorf("swapper: %w", err)
	}
	return graft.Remains{Lender: l, Descriptions: a.Descriptions, Objects: a.Objects, Keep: k.keep}, nil
}

func (k keeperLink) keep(files []int) (numbers []int, err error) {
	_, err = k.call(callKeep, nil, &numbers, files...)
	return numbers, err
}

// locks are the POSIX locks that the dead server had for processes.
func (k keeperLink) locks() (all []graft.LeftLocks, err error) {
	for seen := 0; ; {
		var owners []lockOwner
		fds, err := k.call(callOwners, seen, &owners)
		if err != nil || len(owners) == 0 {
			return all, err
		}
		if len(owners) != len(fds) {
			wire.CloseAll(fds)
			return all, fmt.Errorf("swapper: %d owners of locks with %d descriptors", len(owners), len(fds))
		}
		seen += len(owners)
		for i, o := range owners {
			held, err := fusefs.OFDLocks(fds[i])
			if err != nil || len(held) == 0 { // none: it waited for one
				_ = unix.Close(fds[i])
				continue
			}
			l := graft.LeftLocks{PID: o.PID, Ino: o.Ino, File: fds[i]}
			for _, k := range held {
				l.Locks = append(l.Locks, tracer.Lock(k))
			}
			all = append(all, l)
		}
	}
}
