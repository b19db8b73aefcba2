package fusefs

import (
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// device answers the requests of one /dev/fuse descriptor.
//
// go-fuse's own loop has a goroutine blocked in read(2) for each processor, and
// hands requests and reads from one to the other. Where a program makes one call
// after the other, as most do, the wake-ups of these threads cost several times
// what the call itself does. Here one reader reads and answers, in one thread,
// until there is a reason for a second. Requests that are
// frequent are decoded here (dispatch.go), the others by go-fuse.
type device struct {
	fd    int
	layer *Layer
	proto *fuse.ProtocolServer // INIT, and what dispatch.go does not decode
	log   *slog.Logger
	init  fuse.InitIn // what the kernel offered
	flags uint64      // what was agreed on

	// How many readers read requests in turn. There is one, except while a reader
	// answers a request that takes long: it is then replaced, by itself where it
	// knows (blocking), else by the watcher (watch.go); and while requests come
	// faster than one reader answers them.
	active  atomic.Int32
	backlog atomic.Int32 // requests in a row that were there already
	polling polling
	asleep  atomic.Bool // the watcher is
	awake   chan struct{}

	mu    sync.Mutex
	all   map[*reader]struct{}
	spare chan *reader // readers without work
	short atomic.Bool  // there was no memory for one

	over  atomic.Bool
	ended chan struct{}
	wg    sync.WaitGroup
}

// maxRequest is the size of the largest read or write request (bytes): the
// kernel's own limit, FUSE_MAX_MAX_PAGES (fs/fuse/fuse_i.h).
const maxRequest = 1 << 20

// newDevice is the device of a layer; nothing has been read yet.
func newDevice(l *Layer) *device {
	return &device{
		fd: l.o.Device, layer: l, proto: fuse.NewProtocolServer(l, l.protocolOptions()), log: l.o.Logger,
		awake: make(chan struct{}, 1), all: map[*reader]struct{}{}, spare: make(chan *reader, maxSpare), ended: make(chan struct{}),
		polling: polling{off: runtime.NumCPU() == 1},
	}
}

// begin completes the handshake, and starts to answer.
func (d *device) begin() error {
	r, err := d.newReader()
	if err != nil {
		return err
	}
	if err := d.handshake(r); err != nil {
		r.free()
		return err
	}
	d.agreed()
	d.start(r)
	return nil
}

// agreed gives the layer what answers may need, before the first request.
func (d *device) agreed() {
	l := d.layer
	l.directMap = d.flags&fuse.CAP_DIRECT_IO_ALLOW_MMAP != 0
	l.passthrough = d.flags&fuse.CAP_PASSTHROUGH != 0
	l.expireOnly = d.flags&fuse.CAP_HAS_EXPIRE_ONLY != 0
	l.device = d
	l.notify = &notifier{device: d, expire: l.expireOnly, log: l.o.Logger}
}

// start has a reader read and answer requests.
func (d *device) start(r *reader) {
	d.activate(r)
	d.wg.Add(1)
	go d.watch()
}

// handshake answers INIT, the first request of every connection.
func (d *device) handshake(r *reader) error {
	n, e := r.readDevice()
	if e != 0 {
		return e
	}
	in := r.in[:n]
	if h := r.header(); n < int(unsafe.Sizeof(fuse.InHeader{})) || h.Opcode != opInit {
		return fmt.Errorf("the first request is not INIT but opcode %d", h.Opcode)
	}
	size, err := d.negotiate(in, r.out)
	if err != nil {
		return err
	}
	if _, err = d.write(r.out[:size]); err != nil {
		return err
	}
	d.layer.handles.kept.handshake(in, d.flags)
	return nil
}

// negotiate makes the answer to INIT.
func (d *device) negotiate(in, out []byte) (size int, err error) {
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&d.init)), unsafe.Sizeof(d.init)), in)
	size, st := d.proto.HandleRequest([][]byte{in}, [][]byte{out})
	if !st.Ok() {
		return 0, syscall.Errno(st)
	}
	head := (*fuse.OutHeader)(unsafe.Pointer(&out[0]))
	if head.Status != 0 {
		return 0, fmt.Errorf("protocol %d.%d of this kernel is refused: %w", d.init.Major, d.init.Minor, syscall.Errno(-head.Status))
	}
	d.flags = (*fuse.InitOut)(unsafe.Pointer(&out[unsafe.Sizeof(fuse.OutHeader{})])).Flags64()
	return size, nil
}

// write sends an answer or a notification.
func (d *device) write(b []byte) (int, error) {
	for {
		n, _, e := unix.Syscall(unix.SYS_WRITE, uintptr(d.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return 0, e
		}
		return int(n), nil
	}
}

// wait returns when the connection has ended and no request is being answered.
func (d *device) wait() {
	<-d.ended
	d.wg.Wait()
	for {
		select {
		case r := <-d.spare:
			r.free()
		default:
			return
		}
	}
}

// end is called by whoever finds that the connection has ended (ENODEV).
func (d *device) end() {
	if !d.over.CompareAndSwap(false, true) {
		return
	}
	d.layer.endRules() // whoever waits on behalf of one goes on
	d.mu.Lock()
	for r := range d.all {
		if unique := r.unique.Load(); unique != 0 {
			r.interrupt(unique)
		}
	}
	d.mu.Unlock()
	close(d.ended)
}

// answering finds the reader that answers a request.
func (d *device) answering(unique uint64) *reader {
	d.mu.Lock()
	defer d.mu.Unlock()
	for r := range d.all {
		if r.unique.Load() == unique&^resentMark {
			return r
		}
	}
	return nil
}

// blocking is called by code that answers a request and is going to wait for
// something: another reader takes over, so that nobody else waits with it.
func (d *device) blocking(unique uint64) {
	if r := d.answering(unique); r != nil {
		d.replace(r, r.turn.Load())
	}
}

// blocking is device.blocking, for whoever answers a request.
func (l *Layer) blocking(h *fuse.InHeader) { l.device.blocking(h.Unique) }

// protocolOptions are what go-fuse negotiates and how it decodes.
func (l *Layer) protocolOptions() *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:          "faultgraft",
		MaxWrite:      maxRequest,
		MaxBackground: 64,
		MaxStackDepth: l.stackDepth(),
		EnableLocks:   true,
		EnableAcl:     true,
		// Atomic O_TRUNC: an open that truncates is one operation, as for the file system below. KILLPRIV_V2: the kernel neither asks for
		// security.capability before each write nor chmods; it says when suid and sgid have to go. DONT_MASK: the umask belongs to us, as default ACLs replace it.
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_SETXATTR_EXT | fuse.CAP_DONT_MASK |
			fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_HAS_EXPIRE_ONLY | fuse.CAP_EXPORT_SUPPORT | fuse.CAP_ASYNC_DIO | fuse.CAP_HAS_RESEND,
		Logger: newProtocolLog(l.o.Logger),
	}
}

// stackDepth is how deep the file systems below are stacked on others, plus
// one: passthrough files may only be on top of fewer (fuse_backing_open in
// fs/fuse/backing.c), and the kernel allows two in all. What is higher than
// needed would keep a program from mounting overlayfs on the layer.
func (l *Layer) stackDepth() int {
	var s unix.Statfs_t
	if err := unix.Fstatfs(l.nodes.root.fd, &s); err == nil && s.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return 2
	}
	return 1
}

// nanotime is a clock for intervals, in nanoseconds.
func nanotime() int64 { return int64(time.Since(clockStart)) }

var clockStart = time.Now()
