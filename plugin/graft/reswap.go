package graft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// RetiredFile is a file of a layer that is open in passthrough mode, so that the
// kernel serves it, while a rule has come that can match it. Its look-ups give
// another inode of the same number by now; what is open has to be moved there.
type RetiredFile struct {
	// Node is the FUSE node id of the old inode, Ino the inode number of both.
	Node uint64 `json:"node"`
	Ino  uint64 `json:"ino"`
	// Path is as the target sees it.
	Path string `json:"path"`
}

// ReswapOptions say which files of a layer to move.
type ReswapOptions struct {
	Target Target
	// Layer is what the keeper holds; only its Mount and Info are used, and stay the caller's.
	Layer  Layer
	Files  []RetiredFile
	Keeper Keeper
	Server Server
	// HandleIoctl is the ioctl(2) request by which the layer tells the handle of an open file.
	HandleIoctl uint
	Limits
	// Hung, if set, ends this process, which does nothing else, when the target would stand still for good: see tracer.Options.
	Hung func(what string)
	// Step is called before each step with its name; an error makes the swap roll back. For tests.
	Step func(step string) error
	// Progress, if set, is called wherever the work comes on: see tracer.Options.
	Progress func()
}

// Reswap moves what is open of retired files to new files of the same layer,
// which wrap the very same descriptions. Only processes that hold one of these
// files are stopped. On an error each of them has a file that works, the old one
// or the new one.
func Reswap(ctx context.Context, o ReswapOptions) (*Report, error) {
	if o.Deadline == 0 {
		o.Deadline = DefaultDeadline
	}
	if o.Step == nil {
		o.Step = func(string) error { return nil }
	}
	r := &reswap{ReswapOptions: o, adopter: newAdopter(o.Server, o.Keeper, o.Layer.Mount, o.Progress), files: map[uint64]RetiredFile{}, rep: &Report{}}
	for _, f := range o.Files {
		r.files[f.Node] = f
	}
	defer r.close()
	if err := r.run(ctx); err != nil {
		return nil, fmt.Errorf("move open files of %s that a new rule can match: %w", o.Layer.Info.Path, err)
	}
	return r.rep, nil
}

type reswap struct {
	ReswapOptions
	adopter
	files   map[uint64]RetiredFile // by node
	keeping bool                   // the server keeps POSIX locks
	locked  bool                   // there are some
	known   map[lockKey][]tracer.Lock
	rep     *Report
}

// lockKey is what POSIX locks belong to: a process and a file.
type lockKey struct {
	pid int
	ino uint64
}

func (r *reswap) run(ctx context.Context) error {
	swap := tracer.Options{
		Match: r.match, Device: r.Layer.Info.Dev, ReplaceAll: r.replace, Locks: r.locks, OwnLocks: r.ownLocks,
		Stopped: r.stopped, Undo: r.endKeeping, Exchanged: r.endKeeping, Settle: r.settle, Step: r.Step, Progress: r.Progress,
		Deadline: r.Deadline, Budget: r.Budget, RequireAll: r.RequireAll, Hung: r.Hung, OwnProcess: r.Hung != nil,
		Together: true, // see stopped
		// Closing a file of the layer waits for the server; no slot is empty for that long.
		NeverEmpty: true,
	}
	t, err := r.swap(ctx, swap)
	if err != nil {
		return err
	}
	r.rep.add(t)
	// Processes without such a file were not stopped, and may have got one from one that was.
	for range stragglerPasses {
		t, err := r.swap(ctx, swap)
		if err != nil {
			return errors.Join(err, r.handOver())
		}
		r.rep.addStragglers(t)
		if len(t.Swapped) == 0 {
			break
		}
	}
	if err := r.Server.Moved(slices.Collect(maps.Keys(r.files))); err != nil {
		return errors.Join(err, r.handOver())
	}
	if err := r.Step(StepHandOver); err != nil {
		return err
	}
	if err := r.handOver(); err != nil {
		return err
	}
	return r.Step(StepHanded)
}

func (r *reswap) swap(ctx context.Context, o tracer.Options) (*tracer.Report, error) {
	var t *tracer.Report
	var err error
	if r.Target.Tree { // others see the layer too, but get no faults
		o.Processes = r.Target.Processes
		t, err = tracer.Swap(ctx, o)
	} else {
		t, err = swapEverywhere(ctx, r.Target, o)
	}
	return t, errors.Join(err, r.endKeeping())
}

// stopped runs with every process stopped that has one of the files. From here
// on each close of theirs is ours. One of any file, old or new, would end the locks that
// its process has on the file below: also of a new one that was only needed to make a map.
func (r *reswap) stopped() error {
	var err error
	if r.locked, err = r.Server.KeepLocks(true); err != nil {
		return err
	}
	r.keeping, r.known = true, map[lockKey][]tracer.Lock{}
	return nil
}

// endKeeping runs before they are let go: a close of theirs ends locks again.
func (r *reswap) endKeeping() error {
	if !r.keeping {
		return nil
	}
	r.keeping = false
	_, err := r.Server.KeepLocks(false)
	return err
}

// match picks descriptors and maps of the old inodes. Directories are never
// retired, and an O_PATH descriptor does no I/O.
func (r *reswap) match(o *tracer.Object) bool {
	if o.Dev != r.Layer.Info.Dev || o.Mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	var link string
	switch {
	case o.Kind == tracer.Descriptor && o.Flags&unix.O_PATH == 0:
		link = fmt.Sprintf("/proc/%d/fd/%d", o.TID, o.FD)
	case o.Kind == tracer.Map:
		link = fmt.Sprintf("/proc/%d/map_files/%x-%x", o.TID, o.Start, o.End)
	default:
		return false
	}
	node, err := nodeOf(link)
	if err != nil {
		return false // closed or unmapped meanwhile
	}
	_, ok := r.files[node]
	return ok
}

// nodeOf asks the kernel for the FUSE node id behind a link of procfs. Old and new
// inode have the same number, but not the same file handle: the one of FUSE holds the
// node id, high half first (fuse_encode_fh, fs/fuse/inode.c). No request is sent.
func nodeOf(link string) (uint64, error) {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, link, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return 0, fmt.Errorf("file handle of %s: %w", link, err)
	}
	b := h.Bytes()
	if len(b) < 8 {
		return 0, fmt.Errorf("file handle of %s: %d bytes", link, len(b))
	}
	return uint64(binary.NativeEndian.Uint32(b))<<32 | uint64(binary.NativeEndian.Uint32(b[4:])), nil
}

// replace makes files of the new inodes over the descriptions behind those that are replaced.
func (r *reswap) replace(all []*tracer.Description) []tracer.Replacement {
	below := descriptionsUnder(all, r.server, r.HandleIoctl, r.progress)
	made := make([]tracer.Replacement, len(all))
	defer func() {
		for _, b := range below {
			if b.Err == nil {
				_ = unix.Close(b.FD) // the server has its own
			}
		}
	}()
	var named, again pending
	for i, d := range all {
		if made[i] = below[i]; below[i].Err != nil {
			continue
		}
		made[i] = tracer.Replacement{FD: -1, Err: errors.New("its name leads elsewhere")}
		name := r.nameOf(d)
		if rel, under := relativeTo(r.Layer.Info.Path, name); under && rel != "" {
			named.add(i, wrapping{d: d, description: below[i].FD, name: name, open: func() (int, error) { return r.openNew(rel, openFlags(d)) }})
		}
	}
	named.make(&r.adopter, made)
	for i, d := range all {
		if made[i].Err != nil && below[i].Err == nil {
			// Unlinked, renamed over, hidden below another mount, or looked up by the kernel a moment ago.
			again.add(i, r.byToken(below[i].FD, r.nameOf(d), d))
		}
	}
	again.make(&r.adopter, made)
	return made
}

// openNew opens a name below the layer that has to lead to the new inode.
func (r *reswap) openNew(rel string, flags int) (int, error) {
	fd, err := openBelow(r.mount, rel, flags, unix.S_IFREG, true) // directories are never retired
	if err != nil {
		return -1, err
	}
	node, err := nodeOf(fmt.Sprintf("/proc/self/fd/%d", fd))
	if _, old := r.files[node]; err == nil && old {
		err = errors.New("its name leads to the old inode still")
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// nameOf is what the target calls the file.
func (r *reswap) nameOf(d *tracer.Description) string {
	for _, f := range r.files {
		if f.Ino == d.Ino {
			return f.Path
		}
	}
	return d.Path
}

// locks are the POSIX locks to take through the new files. They are held all the
// time; this tells the layer which files they belong to now. Those that this descriptor has
// not the access for were taken through another one, of a file that is not moved, and stay
// as they are.
func (r *reswap) locks(o *tracer.Object) []tracer.Lock {
	return slices.DeleteFunc(slices.Clone(r.allLocks(o)), func(l tracer.Lock) bool {
		mode := o.Flags & unix.O_ACCMODE
		return mode == unix.O_RDONLY && l.Type == unix.F_WRLCK || mode == unix.O_WRONLY && l.Type == unix.F_RDLCK
	})
}

func (r *reswap) allLocks(o *tracer.Object) []tracer.Lock {
	if o.Kind != tracer.Descriptor || !r.locked {
		return nil
	}
	k := lockKey{o.PID, o.Ino}
	if l, ok := r.known[k]; ok { // each question takes time in which everything stands still
		return l
	}
	r.known[k] = r.ownLocks(o)
	return r.known[k]
}

// ownLocks asks the layer.
func (r *reswap) ownLocks(o *tracer.Object) []tracer.Lock {
	locks, err := r.Server.LocksToKeep(o.PID, o.TID, o.Ino)
	if err != nil {
		r.rep.Notes = append(r.rep.Notes, fmt.Sprintf("%s: its POSIX locks are lost: %v", o, err))
	}
	return locks
}
