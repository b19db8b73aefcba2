package fusefs

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Restore is New for a layer that another process served until it died: Options.State is the state that it kept,
// Options.Device and Options.Root are taken from it and need not be set. take gives this process's duplicate of what
// was descriptor fd in the process State.Owner (pidfd_getfd(2) from one that shares its descriptor table); the layer owns
// it. That process must be gone, with all its system calls. When Restore fails, it has closed what it took, and State is as
// it was: Restore can be tried again, by any process.
//
// Rules are not restored, but what they have counted is: SetRules, called before Resume, gives a rule that is equal
// to one that was in force its counters and its start. What kept the old descriptors open (the holder) has to be gone
// before Resume: a lock that was let go of may still be held by a descriptor that nobody knows any more.
func Restore(o Options, take func(fd int) (int, error)) (*Layer, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("restore a fault layer: %w", err)
	}
	l, err := restore(o, take)
	if err != nil {
		return nil, fmt.Errorf("fault layer of %q: restore it: %w", o.Prefix, err)
	}
	return l, nil
}

func restore(o Options, take func(fd int) (int, error)) (*Layer, error) {
	if o.State == nil {
		return nil, errors.New("no state of it was kept")
	}
	raiseFileLimit(o.Logger)
	from, err := o.State.read()
	if err != nil {
		return nil, err
	}
	defer from.close()
	kept, err := o.State.next()
	if err != nil {
		return nil, err
	}
	l, err := emptyLayer(o, kept)
	if err != nil {
		return nil, err
	}
	r := &restorer{l: l, from: from, take: take, locks: map[key]*lockTable{}}
	if err := r.all(); err != nil {
		for _, fd := range r.taken {
			_ = unix.Close(fd) // a duplicate of what whoever keeps the descriptors still has
		}
		kept.close()
		return nil, err
	}
	if err := o.State.turn(); err != nil {
		o.Logger.Warn("give the memory of a layer's old state back", "path", o.Prefix, "err", err)
	}
	return l, nil
}

// restorer makes a layer of what a table says.
type restorer struct {
	l       *Layer
	from    *savedTable
	take    func(int) (int, error)
	taken   []int
	locks   map[key]*lockTable
	leaving []*nodeSlot // nodes that were on their way out
	names   []int32     // the kernel's names of files that are to be given back
}

func (r *restorer) fd(old int32) (int, error) {
	fd, err := r.take(int(old))
	if err != nil {
		return -1, fmt.Errorf("take descriptor %d: %w", old, err)
	}
	r.taken = append(r.taken, fd)
	return fd, nil
}

func (r *restorer) all() error {
	for _, f := range []func() error{
		r.nodes, r.nodeNames, r.device, r.handles, r.lockOwners, r.forgotten, r.rules, r.leave,
	} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// device is that of the one who served before, as it was after the handshake.
func (r *restorer) device() error {
	head := r.from.head
	fd, err := r.fd(int32(head.device.Load()))
	if err != nil {
		return err
	}
	l, kept := r.l, r.l.handles.kept.head
	l.o.Device, l.o.Root = fd, l.nodes.root.fd
	kept.device.Store(int64(fd))
	l.ending.Store(head.ending.Load())
	kept.ending.Store(head.ending.Load())
	in := head.init[:min(head.initSize.Load(), initBytes)]
	if len(in) < int(unsafe.Sizeof(fuse.InitIn{})) {
		return errors.New("the state is of a layer that was not served yet")
	}
	d := newDevice(l)
	if _, err := d.negotiate(in, make([]byte, outBytes)); err != nil { // the kernel has had its answer
		return err
	}
	if d.flags != head.flags { // by another version of faultgraft: what was agreed on holds
		l.o.Logger.Info("what was agreed on with the kernel is not what would be today", "path", l.o.Prefix, "agreed", head.flags, "today", d.flags)
		d.flags = head.flags
	}
	l.handles.kept.handshake(in, d.flags)
	d.agreed()
	l.device = d
	return nil
}

// Resume is Serve without the handshake, for a layer made by Restore. What was not answered comes first: the kernel sends it
// again (FUSE_NOTIFY_RESEND, Linux 6.9), or it is found where the server before has read it.
func (l *Layer) Resume() error {
	if l.device == nil {
		return errors.New("fault layer: it was not restored")
	}
	if !l.state.CompareAndSwap(stateNew, stateServing) {
		return errors.New("fault layer: served already")
	}
	dropResource(l.o.Logger)
	unix.Umask(0)
	d := l.device
	var left []*reader
	if !d.resends() {
		var err error
		if left, err = l.takeUp(); err != nil {
			return fmt.Errorf("fault layer of %q: resume it: %w", l.o.Prefix, err)
		}
	}
	r, err := d.newReader()
	if err != nil {
		for _, r := range left {
			r.drop()
		}
		return fmt.Errorf("fault layer of %q: resume it: %w", l.o.Prefix, err)
	}
	if d.resends() { // before anything is read, so that what was not answered comes before what came after it
		if err := l.notify.resend(); err != nil && err != unix.ENODEV { // the connection has ended: the reader will find so
			r.free()
			return fmt.Errorf("fault layer of %q: have the kernel send again what was not answered (FUSE_NOTIFY_RESEND): %w", l.o.Prefix, err)
		}
	}
	for _, r := range left {
		d.activate(r)
	}
	d.start(r)
	go l.await(d)
	l.notify.start(func() { l.dropCaches(l.rules.Load()) }) // of rules that came in between
	l.moveAgain()
	return nil
}

// moveAgain has what is open of retired files moved, if somebody moves such: whoever was at it may have failed.
func (l *Layer) moveAgain() {
	if l.o.Retire == nil || len(l.Retired()) == 0 {
		return
	}
	l.o.Retire()
}

// CanResume tells whether the layer, which is served, can be served on by another process: its state is kept, whole.
func (l *Layer) CanResume() bool {
	return l.o.State != nil && l.device != nil && !l.handles.kept.head.incomplete.Load()
}
