package fusefs

import (
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// reader is one goroutine that reads requests and answers them.
type reader struct {
	d *device
	// turn is even while the reader reads, and odd while it answers. Who raises it from an odd value has replaced the reader.
	turn   atomic.Uint64
	unique atomic.Uint64 // the request being answered; 0 for none
	in     []byte        // room for the largest request
	out    []byte        // room for an answer without data
	data   []byte        // room for the largest answer with data
	pages  [2][]byte     // what in and data are parts of
	slot   uint16        // in the ledger; 0 for none
	room   uint16        // the slot whose room the requests are read into; 0 for memory of this process
	left   int           // size of a request that another server had read into in

	mu          sync.Mutex
	cancel      chan struct{} // closed by an interrupt
	interrupted bool
}

// The payload of a write and the data of a read begin on a page, so that they
// can go to and come from files that are open with O_DIRECT.
const (
	pageSize   = 4096
	writeStart = int(unsafe.Sizeof(fuse.WriteIn{}))
	headerSize = int(unsafe.Sizeof(fuse.OutHeader{}))
	inBytes    = maxRequest + 2*pageSize
	outBytes   = 512
)

func (d *device) newReader() (*reader, error) {
	slot := d.layer.ledger.take()
	if slot == 0 && d.layer.handles.kept != nil && !d.resends() { // what it reads would be lost with this process
		d.layer.handles.kept.head.incomplete.Store(true)
	}
	r, err := d.readerOf(slot)
	if err != nil {
		d.layer.ledger.give(slot)
	}
	return r, err
}

// readerOf makes the reader that has a slot of the ledger; 0 is none.
func (d *device) readerOf(slot uint16) (*reader, error) {
	// All at once: a reader that reads has all that its answer may need, and cannot run short of it.
	room := slot
	if d.resends() { // nobody will look for them; and slots change hands there, see claim
		room = 0
	}
	in, err := d.layer.ledger.mapRequests(room)
	if err != nil {
		return nil, err
	}
	data, err := mapBuffer(inBytes)
	if err != nil {
		_ = unix.Munmap(in)
		return nil, err
	}
	r := &reader{d: d, in: in[requestStart:], data: data, pages: [2][]byte{in, data}, out: make([]byte, outBytes), cancel: make(chan struct{}), slot: slot, room: room}
	d.mu.Lock()
	d.all[r] = struct{}{}
	n := len(d.all)
	d.mu.Unlock()
	if d.layer.handles.kept != nil {
		if n > wholeReaders {
			in = in[:someBytes]
		}
		_ = unix.Madvise(in, unix.MADV_POPULATE_WRITE) // Linux 5.14; else pages come as they are used
	}
	return r, nil
}

// The pages into which requests are read are there beforehand, if another process may have to serve on: a process that is
// killed while a request is copied to it gets no pages any more, and the kernel answers the request with EIO (fatal signals
// in faultin_page of mm/gup.c; fuse_dev_do_read in fs/fuse/dev.c). Where very many requests are
// answered at a time, that would be much memory for those that wait: only wholeReaders are ready for the largest request,
// the others for the first someBytes of one, until they have read a larger one.
const (
	wholeReaders = 8
	someBytes    = 64 << 10
)

// mapBuffer allocates outside of Go's heap: pages that were never touched cost
// nothing, and the garbage collector does not count them.
func mapBuffer(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
}

// dataBuffer gives room for a header and so much data, which begins on a page.
func (r *reader) dataBuffer(size int) []byte { return r.data[pageSize-headerSize : pageSize+size] }

// free gives the buffers and the slot back. Nothing refers to them any more.
func (r *reader) free() {
	r.drop()
	r.d.layer.ledger.freeRequests(r.room)
	r.d.layer.ledger.give(r.slot)
}

// drop ends the reader, and leaves its request and what is booked of it.
func (r *reader) drop() {
	r.d.mu.Lock()
	delete(r.d.all, r)
	r.d.mu.Unlock()
	for _, p := range r.pages {
		_ = unix.Munmap(p) // only fails for what is not mapped
	}
}

func (r *reader) header() *fuse.InHeader { return (*fuse.InHeader)(unsafe.Pointer(&r.in[0])) }

// readDevice waits for a request.
func (r *reader) readDevice() (int, syscall.Errno) {
	n, _, e := unix.Syscall(unix.SYS_READ, uintptr(r.d.fd), uintptr(unsafe.Pointer(&r.in[0])), uintptr(len(r.in)))
	return int(n), e
}

// run reads and answers until another reader is there for it.
func (r *reader) run() {
	d := r.d
	defer d.wg.Done()
	if n := r.left; n > 0 { // another server had read it
		r.left = 0
		if !r.serveOne(n) {
			return
		}
	}
	for {
		if d.active.Load() > 1 && !d.pending() && d.leave() {
			r.rest()
			return
		}
		n, e := d.next(r)
		switch e {
		case 0:
		case unix.EINTR, unix.EAGAIN, unix.ENOENT: // ENOENT: it was interrupted before it was read
			continue
		default:
			if e != unix.ENODEV {
				d.log.Error("read requests from /dev/fuse", "err", e)
			}
			d.active.Add(-1)
			d.end()
			r.free()
			return
		}
		if !r.serveOne(n) {
			return
		}
	}
}

// serveOne answers the request of n bytes that is in r.in. It reports whether the reader is to read on; else it has been replaced meanwhile.
func (r *reader) serveOne(n int) bool {
	turn := r.turn.Add(1)
	r.d.stir()
	r.serve(n)
	if r.turn.CompareAndSwap(turn, turn+1) {
		return true
	}
	r.rest()
	return false
}

// rest keeps a reader for later, or frees it. Its goroutine ends.
func (r *reader) rest() {
	if !r.d.over.Load() {
		select {
		case r.d.spare <- r:
			return
		default:
		}
	}
	r.free()
}

// begin says which request is being answered; the answers to come may be interrupted.
func (r *reader) begin(unique uint64) {
	r.unique.Store(unique &^ resentMark)
}

// finish ends what begin began.
func (r *reader) finish() {
	r.mu.Lock()
	r.unique.Store(0)
	if r.interrupted {
		r.interrupted, r.cancel = false, make(chan struct{})
	}
	r.mu.Unlock()
}

// interrupt tells whoever answers a request to stop waiting, if it is still the one that is meant.
func (r *reader) interrupt(unique uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unique.Load() != unique&^resentMark {
		return false
	}
	if !r.interrupted {
		r.interrupted = true
		close(r.cancel)
	}
	return true
}

// pending reports whether a request waits to be read.
func (d *device) pending() bool { return readable(d.fd) }

func readable(device int) bool {
	p := unix.PollFd{Fd: int32(device), Events: unix.POLLIN}
	var now unix.Timespec
	n, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return n == 1
}

// activate makes a reader read, in a goroutine of its own.
func (d *device) activate(r *reader) {
	d.active.Add(1)
	d.wg.Add(1)
	go r.run()
}

// another brings a further reader into the rotation.
func (d *device) another() {
	if d.over.Load() {
		return
	}
	r, err := d.idle()
	if err != nil {
		d.noMemory(err)
		return
	}
	d.activate(r)
}

// idle gives a reader that has no work: a spare one, or a new one.
func (d *device) idle() (*reader, error) {
	select {
	case r := <-d.spare:
		return r, nil
	default:
		return d.newReader()
	}
}

func (d *device) noMemory(err error) {
	if d.short.CompareAndSwap(false, true) {
		d.log.Error("no memory for another reader of requests; those that are there go on", "err", err)
	}
}

// replace takes a reader out of the rotation that answers a request, and puts
// another in if it was the last. turn is the one it was seen at. Without memory
// for another one it stays: nobody would read requests any more. The watcher
// tries again as long as the answer takes.
func (d *device) replace(r *reader, turn uint64) {
	if turn%2 == 0 || r.turn.Load() != turn {
		return // it is done, or was replaced before
	}
	next, err := d.idle()
	if err != nil {
		d.noMemory(err)
		return
	}
	if r.turn.CompareAndSwap(turn, turn+1) && d.active.Add(-1) == 0 && !d.over.Load() {
		d.activate(next)
		return
	}
	next.rest()
}

// leave takes a reader out of the rotation, unless it is the last.
func (d *device) leave() bool {
	for {
		n := d.active.Load()
		if n <= 1 {
			return false
		}
		if d.active.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// next reads a request.
func (d *device) next(r *reader) (int, syscall.Errno) {
	began := nanotime()
	if d.active.Load() == 1 {
		d.polling.wait(d, began)
	}
	var n int
	var e syscall.Errno
	if l := d.layer.ledger; l != nil && l.resuming.Load() {
		n, e = d.nextResent(r)
	} else {
		n, e = r.readDevice()
	}
	if nanotime()-began > int64(immediate) {
		d.backlog.Store(0)
	} else if d.backlog.Add(1) >= backlogLimit && int(d.active.Load()) < runtime.NumCPU() {
		d.backlog.Store(0)
		d.another()
	}
	return n, e
}
