package fusefs

import (
	"log/slog"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// notifier tells the kernel to drop what it has cached. A notification may wait
// for requests that are being answered (page locks, a directory's lock), so it
// is never sent from the goroutine of one, nor with a lock held.
type notifier struct {
	device *device
	expire bool
	log    *slog.Logger

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

func (n *notifier) close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.wg.Wait()
}

// Notifications (enum fuse_notify_code in include/uapi/linux/fuse.h) are answers without a request.
func notification(code int32, body unsafe.Pointer, size uintptr, name string) []byte {
	b := make([]byte, headerSize, headerSize+int(size)+len(name)+1)
	b = append(b, unsafe.Slice((*byte)(body), size)...)
	if name != "" {
		b = append(append(b, name...), 0)
	}
	*(*fuse.OutHeader)(unsafe.Pointer(&b[0])) = fuse.OutHeader{Length: uint32(len(b)), Status: code}
	return b
}

// send sends a notification, unless the connection is gone.
func (n *notifier) send(b []byte) error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return unix.ENODEV
	}
	n.wg.Add(1)
	n.mu.Unlock()
	defer n.wg.Done()
	_, err := n.device.write(b)
	return err
}

// expireEntry has the kernel ask again about a name, without dropping it: an
// invalidation would also unhash the entry, and a process that has it as its
// working directory would see it as deleted (FUSE_EXPIRE_ONLY, Linux 6.2).
func (n *notifier) expireEntry(dir uint64, name string) error {
	o := fuse.NotifyInvalEntryOut{Parent: dir, NameLen: uint32(len(name)), Flags: fuse.EXPIRE_ONLY}
	return n.send(notification(-fuse.NOTIFY_INVAL_ENTRY, unsafe.Pointer(&o), unsafe.Sizeof(o), name))
}

// dropEntry has the kernel forget a name.
func (n *notifier) dropEntry(dir uint64, name string) error {
	o := fuse.NotifyInvalEntryOut{Parent: dir, NameLen: uint32(len(name))}
	return n.send(notification(-fuse.NOTIFY_INVAL_ENTRY, unsafe.Pointer(&o), unsafe.Sizeof(o), name))
}

// start runs f beside the caller, unless the connection is gone; close waits for it.
func (n *notifier) start(f func()) (done chan struct{}) {
	done = make(chan struct{})
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		close(done)
		return done
	}
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		defer close(done)
		f()
	}()
	return done
}

// ResendNotification asks the kernel to send again what was read from a /dev/fuse and not answered, when it is written there.
func ResendNotification() []byte {
	b := make([]byte, headerSize)
	*(*fuse.OutHeader)(unsafe.Pointer(&b[0])) = fuse.OutHeader{Length: uint32(headerSize), Status: -fuse.NOTIFY_RESEND}
	return b
}

// resend has the kernel send all requests again that were read and not answered, before those that it has not sent yet.
// They are marked by resentMark (FUSE_NOTIFY_RESEND, Linux 6.9; fuse_resend in fs/fuse/dev.c).
func (n *notifier) resend() error {
	n.device.layer.awaitResent()
	err := n.send(ResendNotification())
	reach(placeAsked, &fuse.InHeader{})
	return err
}

var dataOps = policy.OpSet(0).With(policy.OpRead).With(policy.OpMmapRead)

// stale is what the kernel may not use any more of what it has cached of a node.
type stale struct {
	node        uint64
	names       []link
	attr, pages bool
}

func (n *notifier) drop(s stale) {
	switch {
	case s.pages:
		n.inode(s.node, 0)
	case s.attr:
		n.inode(s.node, -1) // attributes only
	}
	for _, k := range s.names {
		n.entry(k.dir.id, k.name)
	}
}

// dropCaches drops what the kernel has cached and one of the rules could act on.
func (l *Layer) dropCaches(set *ruleSet) {
	if l.notify == nil || l.state.Load() == stateNew || // see Resume
		set.ops&(entryOps|attrOps|dataOps) == 0 && l.nodes.splits.Load() == 0 {
		return
	}
	var all []stale
	l.nodes.mu.RLock()
	for id, n := range l.nodes.byID {
		paths := l.nodes.allPaths(n)
		s := stale{node: id, attr: set.could(attrOps, paths), pages: n.kind == unix.S_IFREG && set.could(dataOps, paths)}
		retired := n.open.retired.Load() // its names are to be those of another node
		s.attr = s.attr || retired
		if retired || set.could(entryOps, paths) {
			s.names = append(s.names, n.names...)
		}
		if s.attr || s.pages || len(s.names) > 0 {
			all = append(all, s)
		}
	}
	l.nodes.mu.RUnlock()
	l.dropStale(all)
}

// dropKnown drops all names and attributes that the kernel has cached.
func (l *Layer) dropKnown() {
	if l.notify == nil {
		return
	}
	var all []stale
	l.nodes.mu.RLock()
	for id, n := range l.nodes.byID {
		all = append(all, stale{node: id, attr: true, names: slices.Clone(n.names)})
	}
	l.nodes.mu.RUnlock()
	l.dropStale(all)
}

// DropPages drops the pages of maps that the layer serves, after what is changed in them was
// written to the file below. A swapper has it done when a graft is made: until then some of
// the target may have written to a file below of which others had a map on the layer.
func (l *Layer) DropPages() {
	if l.notify == nil {
		return
	}
	var all []stale
	l.nodes.mu.RLock()
	for id, n := range l.nodes.byID {
		if n.open.direct.Load() > 0 {
			all = append(all, stale{node: id, pages: true})
		}
	}
	l.nodes.mu.RUnlock()
	l.dropStale(all)
}

// dropStale waits until the kernel has dropped it all, two seconds at most.
func (l *Layer) dropStale(all []stale) {
	done := l.notify.start(func() {
		for _, s := range all {
			l.notify.drop(s)
		}
	})
	t := time.NewTimer(2 * time.Second)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		l.o.Logger.Warn("the kernel has not yet dropped everything that it cached; it goes on", "path", l.o.Prefix, "objects", len(all))
	}
}

func (n *notifier) dropInode(id uint64, off int64) error {
	o := fuse.NotifyInvalInodeOut{Ino: id, Off: off}
	return n.send(notification(-fuse.NOTIFY_INVAL_INODE, unsafe.Pointer(&o), unsafe.Sizeof(o), ""))
}

// inode drops an inode's pages and attributes, from an offset on; -1 is attributes only.
func (n *notifier) inode(id uint64, off int64) {
	err := n.dropInode(id, off)
	// ENOENT: the kernel does not know the inode any more. ENODEV, EPERM: the connection is closed.
	if err != nil && err != unix.ENOENT && err != unix.ENODEV && err != unix.EPERM {
		n.log.Warn("drop the kernel's cache of a file", "err", err)
	}
}

func (n *notifier) entry(dir uint64, name string) {
	if !n.expire {
		return // asked again when cacheTime is over
	}
	if err := n.expireEntry(dir, name); err != nil && err != unix.ENOENT && err != unix.ENOTDIR && err != unix.ENODEV && err != unix.EPERM {
		n.log.Warn("expire a name that the kernel has cached", "name", name, "err", err)
	}
}

// passOn has the kernel pass the answer of a GETATTR that it is waiting for on
// to the caller without keeping it. It is safe in the goroutine of that request:
// without pages to drop the kernel waits for nothing.
func (n *notifier) passOn(id uint64) bool {
	err := n.dropInode(id, -1)
	if err != nil {
		n.log.Warn("attributes stay as they are: the kernel did not drop those that it has", "err", err)
	}
	return err == nil
}
