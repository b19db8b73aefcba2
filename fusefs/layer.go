package fusefs

import (
	"errors"
	"fmt"
	"log"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options says what a Layer serves.
type Options struct {
	// Device is a /dev/fuse descriptor that fsconfig(2) has bound to a mount; the mount may still be detached. The Layer owns it from the call of New on.
	Device int
	// Root is an O_PATH descriptor of what lies under the layer, a directory or a regular file. The Layer owns it from the call of New on.
	Root int
	// Prefix is the path of Root as the target sees it, absolute and clean, such as "/data". Globs are matched against Prefix joined with the path below it.
	Prefix string
	// Scope, when set, is asked with the thread id of a caller; only callers for which it is true are faulted. 0 stands for the kernel itself (write-back, release).
	Scope func(tid uint32) bool
	// Record, when set, gets every fault that fired. It is called on the goroutine of the request and must not block.
	Record func(Event)
	// Released, when set, gets the handle of an adopted description whose last descriptor on the layer was closed. It must not block.
	Released func(handle uint64)
	// Direct has every read and write reach the layer, whether a rule can match it or not. Files that are open when a rule
	// comes are then seen by it at once, and nothing is as fast as below.
	Direct bool
	// Retire, when set, is called when a file that is open in passthrough mode got a name that a rule matches: see Retired. It must
	// not block. Whoever sets it moves what is open of retired files, also when rules came by SetRules, and calls Moved then:
	// meanwhile others wait who open such a file.
	Retire func()
	// Mounted, when set, is asked whether something is mounted on the layer at a path, as the target sees it, or at a path
	// below it. Such names are looked up without faults and never dropped: the kernel would take off what is mounted there.
	Mounted func(path string) bool
	// State, when set, is kept up to date, so that another process can serve the layer on when this one dies: see Restore. It is
	// for this layer alone, which does not close it.
	State *State
	// NoResend has the layer do as on a kernel that cannot send requests again (before Linux 6.9), for tests.
	NoResend bool
	// Resent, when set, is called once in a layer that was made by Restore, when all that the process before had not answered has
	// come again, if there was anything: so many requests. It must not block.
	Resent func(requests uint64)
	// Logger is where the layer says what it could not do; nil discards.
	Logger *slog.Logger
}

// Layer is one fault layer: one FUSE connection over one directory or file.
type Layer struct {
	fuse.RawFileSystem // what is not implemented is answered with ENOSYS

	o      Options
	device *device   // nil until Serve
	notify *notifier // nil until Serve
	ledger *ledger   // nil: no state is kept
	creds  *credentials

	directMap   bool // the kernel maps direct-I/O files shared (FUSE_DIRECT_IO_ALLOW_MMAP, Linux 6.6)
	passthrough bool // the kernel can pass files through (FUSE_PASSTHROUGH, Linux 6.9)
	expireOnly  bool // the kernel can expire an entry without dropping it (FUSE_HAS_EXPIRE_ONLY, Linux 6.2)

	nodes      nodeTable
	handles    handleTable
	rules      atomic.Pointer[ruleSet]
	coming     atomic.Pointer[ruleSet] // see Expect
	parked     parking
	setting    sync.Mutex // one SetRules at a time
	waits      waitTable
	counted    faultTally
	trusted    trustTable
	armed      armTable
	spaceLocks spaceLocks

	closes   sync.Map // device number to bool: see answersClose
	trimming atomic.Bool

	state  atomic.Int32 // new, serving, closed
	closed chan struct{}
	ending atomic.Bool // see EndFlushes
	moved  movedLocks
	moves  moveTable
	tables tableNames

	keptRules keptRules // guarded by setting
}

const (
	stateNew int32 = iota
	stateServing
	stateClosed
)

// New makes a layer that is not served yet. When it fails, it has closed
// Options.Device and Options.Root.
func New(o Options) (*Layer, error) {
	l, err := newLayer(o)
	if err != nil {
		_ = unix.Close(o.Device) // nothing was done with either
		_ = unix.Close(o.Root)
		return nil, fmt.Errorf("fault layer of %q: %w", o.Prefix, err)
	}
	return l, nil
}

func newLayer(o Options) (*Layer, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	var st unix.Statx_t
	if err := statx(o.Root, &st); err != nil {
		return nil, fmt.Errorf("stat what lies under it: %w", err)
	}
	kind := uint32(st.Mode) & unix.S_IFMT
	if kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return nil, errors.New("neither a directory nor a regular file lies under it; only these can carry a layer")
	}
	var kept *stateTable
	if o.State != nil {
		var err error
		if kept, err = o.State.begin(); err != nil {
			return nil, err
		}
		kept.head.device.Store(int64(o.Device))
	}
	l, err := emptyLayer(o, kept)
	if err != nil {
		return nil, err
	}
	l.nodes.init(o.Root, &st, o.Prefix, kept)
	return l, nil
}

// complete checks the options, and fills in what is not set.
func (o *Options) complete() error {
	if o.Prefix == "" || o.Prefix[0] != '/' {
		return errors.New("the prefix must be an absolute path")
	}
	if len(o.Prefix) > 1 {
		o.Prefix = strings.TrimRight(o.Prefix, "/")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// emptyLayer is a layer without nodes, of which the state is kept in a table if there is one.
func emptyLayer(o Options, kept *stateTable) (*Layer, error) {
	creds, err := newCredentials()
	if err != nil {
		return nil, err
	}
	l := &Layer{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), o: o, creds: creds, closed: make(chan struct{}), ledger: keep(o.State),
	}
	l.handles.init(kept)
	l.armed.init()
	l.trusted.init()
	l.counted.kept = kept
	l.keptRules.table = kept
	l.rules.Store(&ruleSet{})
	l.coming.Store(&ruleSet{})
	return l, nil
}

// Serve completes the FUSE handshake and starts to answer requests. When it
// returns nil the layer is live: whatever reaches the mount is answered. The
// handshake needs no path to the mount, so that it can be done before the
// mount is moved to its place. Serve sets the process's umask to 0, because
// the modes of new files come from the callers.
func (l *Layer) Serve() error {
	if !l.state.CompareAndSwap(stateNew, stateServing) {
		return errors.New("fault layer: served already")
	}
	raiseFileLimit(l.o.Logger)
	dropResource(l.o.Logger)
	unix.Umask(0)
	d := newDevice(l)
	if err := d.begin(); err != nil {
		_ = unix.Close(l.o.Device)
		l.finish()
		return fmt.Errorf("fault layer of %q: FUSE handshake (is the mount of this /dev/fuse descriptor made?): %w", l.o.Prefix, err)
	}
	go l.await(d)
	return nil
}

// await ends the layer when its connection has ended.
func (l *Layer) await(d *device) {
	d.wait() // returns when all its readers have ended, and with them all requests
	l.closeAll()
	l.o.State.discard() // nobody can serve it on
	close(l.closed)
}

// Wait returns when the connection has ended, because the file system is
// mounted nowhere any more or was aborted, and all of the layer's descriptors
// are closed. It returns at once for a layer whose Serve failed.
func (l *Layer) Wait() { <-l.closed }

// Close frees a layer that was never served. A layer that is served ends with
// its mount: unmount it and Wait.
func (l *Layer) Close() error {
	if !l.state.CompareAndSwap(stateNew, stateClosed) {
		return errors.New("fault layer: it was served; it ends when its mount does")
	}
	var err error
	if l.device == nil { // else finish does it
		err = unix.Close(l.o.Device)
	}
	l.finish()
	return err
}

// finish is the end of a layer that was not served.
func (l *Layer) finish() {
	l.closeAll()
	close(l.closed)
}

// closeAll closes what the layer holds. No request is running any more.
func (l *Layer) closeAll() {
	l.endRules()
	l.armed.close()
	l.handles.close()
	l.nodes.close()
	if l.device != nil {
		l.notify.close()
		_ = unix.Close(l.o.Device) // the connection has ended
	}
}

// endRules ends all rules, and lets none come after them.
func (l *Layer) endRules() {
	l.state.Store(stateClosed)
	l.rules.Swap(&ruleSet{}).end()
}

// String names the file system, for go-fuse.
func (l *Layer) String() string { return "faultgraft" }

// newProtocolLog is where go-fuse writes.
func newProtocolLog(l *slog.Logger) *log.Logger { return log.New(&logWriter{l}, "", 0) }

// logWriter passes go-fuse's messages on.
type logWriter struct{ l *slog.Logger }

func (w *logWriter) Write(p []byte) (int, error) {
	w.l.Warn("fuse: " + strings.TrimSpace(string(p)))
	return len(p), nil
}
