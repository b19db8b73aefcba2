package fusefs

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/policy"
)

// mode is how the kernel treats the reads, writes and maps of an open file.
type mode uint8

const (
	modeNone mode = iota
	// modeDirect: every read and write is a request, past the page cache, and maps have pages of their own.
	modeDirect
	// modePassthrough: the kernel reads, writes and maps the file below by itself (Linux 6.9).
	modePassthrough
	// modeMixed is for a file that a rule came to match while others have it open in
	// passthrough mode: reads and writes are requests ("FOPEN_DIRECT_IO overrides
	// FOPEN_PASSTHROUGH", fs/fuse/file.c), and maps are of the file below. An inode that is
	// open in passthrough mode can only be opened so (fuse_file_io_open in fs/fuse/iomode.c).
	modeMixed
	// modeCached: through the page cache. For kernels that cannot map direct-I/O files (before Linux 6.6).
	modeCached
)

// cacheable are the operations that the layer does not see of a file that is passed through or cached. The syncs are
// among them because msync(2) of a map that is passed through syncs the file below.
var cacheable = policy.OpSet(0).With(policy.OpRead).With(policy.OpWrite).With(policy.OpMmapRead).With(policy.OpMmapWrite).With(policy.OpFsync).With(policy.OpFdatasync)

// openFiles is how a node is open. What is atomic is changed under mu, and may be
// read without: mu must not be taken by whoever holds nodeTable.mu.
type openFiles struct {
	mu      sync.Mutex
	through atomic.Int32 // files in passthrough mode, mixed ones among them
	direct  atomic.Int32 // all others
	retired atomic.Bool  // see retire.go
	// passed: it was open in passthrough mode, of which maps may be left. Such a map keeps the file below and no
	// file of the layer (fuse_passthrough_mmap, backing_file_mmap), so that its end is not seen.
	passed  bool
	since   atomic.Pointer[time.Time] // when it was retired, or a zero time: nobody moves what is open of it, see moves.go
	unmoved atomic.Bool               // and that has not been done
	// used: direct files are in use. Those that a swapper has prepared are not before it takes them up.
	used    bool
	backing int32      // the kernel's name of the file below; 0 for none
	owner   fuse.Owner // who it was named for
	refused bool       // the kernel does not take the file below
	parked  uint64     // place in parking
}

// none reports whether nobody has the node's file open.
func (o *openFiles) none() bool { return o.through.Load() == 0 && o.direct.Load() == 0 }

// flags are the answer to an OPEN.
func (m mode) flags() uint32 {
	switch m {
	case modeDirect:
		return fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	case modeMixed:
		return fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES | fuse.FOPEN_PASSTHROUGH
	case modePassthrough:
		return fuse.FOPEN_PASSTHROUGH
	default:
		return 0
	}
}

// mustSee reports whether a rule that is there, or is about to come, could act on what passthrough or a cache hides.
func (l *Layer) mustSee(n *node) bool {
	set, coming := l.rules.Load(), l.coming.Load()
	if (set.ops|coming.ops)&cacheable == 0 {
		return false
	}
	paths := l.nodes.paths(n)
	return set.could(cacheable, paths) || coming.could(cacheable, paths)
}

// enterMode chooses how a handle's file is open, and fills the answer. The
// rules are looked at under the node's lock: SetRules, which looks at the open
// files under it after the rules are in force, cannot miss one.
//
// by is who opens it. The kernel writes to the file below with the credentials of
// whoever named it (fuse_passthrough_write_iter): on whom they are depends which
// blocks may be taken, so that a file is passed through to writers with one owner at a time.
func (l *Layer) enterMode(h *handle, by *fuse.InHeader, out *fuse.OpenOut) {
	out.Fh = h.id
	o := &h.node.open
	o.mu.Lock()
	defer o.mu.Unlock()
	seen := l.o.Direct || l.mustSee(h.node)
	foreign := o.owner != by.Owner && h.flags.Load()&unix.O_ACCMODE != unix.O_RDONLY
	if foreign && o.none() {
		l.unname(h.node)
	}
	// Who does not wait until all is moved shares its maps with what is left.
	split := !h.adopted && !h.stopped && !o.used && len(l.nodes.unmoved(h.node)) > 0
	switch {
	case o.through.Load() > 0 && (seen || h.exact || foreign || o.retired.Load()):
		h.mode = modeMixed
	case o.through.Load() > 0:
		h.mode = modePassthrough
	case split && (seen || h.exact || o.direct.Load() > 0):
		h.mode = modeDirect
		if l.passes(h.node, by) {
			h.mode = modeMixed
		}
	case o.direct.Load() > 0: // it may be mapped, and an inode is not both cached and passed through
		h.mode = modeDirect
	case o.retired.Load() || !seen && h.exact && l.mapped(h.node): // maps of it are of the file below
		h.mode = modeDirect
		if l.passes(h.node, by) {
			h.mode = modeMixed
		}
	case seen || h.exact:
		h.mode = modeDirect
	case l.passes(h.node, by):
		h.mode = modePassthrough
	case l.directMap:
		h.mode = modeDirect
	default:
		h.mode = modeCached
	}
	if h.mode == modeDirect || h.mode == modeCached {
		o.direct.Add(1)
		if !h.adopted && !h.stopped || l.moved.on.Load() {
			o.used = true
		}
	} else {
		o.through.Add(1)
		if !o.passed {
			o.passed = true
			h.node.kept.passed.Store(true)
		}
		out.BackingID = o.backing
	}
	out.OpenFlags |= h.mode.flags()
}

// mapped reports whether there may be maps of a file that was open in passthrough mode
// and is open in no way now. Nothing tells the layer, but a lease for writing is given
// only for a file that nobody has open, as a map has (check_conflicting_open in
// fs/locks.c). Somebody who has it open below counts, too, and so does a file system
// without leases. The caller holds the lock of n.open.
func (l *Layer) mapped(n *node) bool {
	o := &n.open
	if !o.passed || !o.none() {
		return o.passed
	}
	l.unname(n) // before Linux 6.16 it keeps the file open
	fd, err := unix.Open(magic(n.fd), unix.O_RDONLY|unix.O_NOATIME|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer func() { _ = unix.Close(fd) }() // gives the lease back as well
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return true
	}
	o.passed = false
	n.kept.passed.Store(false)
	return false
}

// needsLayer reports whether the writes of a file have to be requests although
// no rule is about them, because the kernel's own way would do other than the
// file system below does (fs/backing-file.c, fs/fuse/passthrough.c, Linux 6.18
// looked at):
//   - The file below is opened with the flags of the open(2), so that O_APPEND
//     could not be taken away again (fcntl(2), RWF_NOAPPEND).
//   - Set-ID bits and file capabilities would not go with a write.
func needsLayer(n *node, flags uint32) bool {
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return false
	}
	if flags&unix.O_APPEND != 0 {
		return true
	}
	var st unix.Statx_t
	if err := statx(n.fd, &st); err != nil || st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		return true
	}
	_, err := unix.Getxattr(magic(n.fd), "security.capability", nil)
	return err == nil
}

// leaveMode is for a handle whose file was closed, or could not be opened.
func (l *Layer) leaveMode(h *handle) {
	o := &h.node.open
	o.mu.Lock()
	switch h.mode {
	case modeNone: // a directory
	case modeDirect, modeCached:
		if o.direct.Add(-1) == 0 {
			o.used = false
		}
	default:
		o.through.Add(-1)
	}
	park := o.none() && o.backing != 0
	o.mu.Unlock()
	if park {
		l.parked.add(l, h.node)
	}
}

// passes reports whether the kernel passes the file through, and has it named to
// it if not yet. The caller holds the lock of n.open.
func (l *Layer) passes(n *node, by *fuse.InHeader) bool {
	o := &n.open
	if !l.passthrough || o.refused || n.kind != unix.S_IFREG || n == l.nodes.root { // no other node can take the root's place, see retire.go
		return false
	}
	if o.backing != 0 {
		return true
	}
	var id int32
	err := l.creds.as(by, false, func() (err error) {
		id, err = l.device.openBacking(n.fd)
		return err
	})
	if err != nil {
		// ELOOP: too many file systems on top of each other. EOPNOTSUPP: it cannot do reads and writes like that.
		o.refused = true
		n.kept.refused.Store(true)
		l.o.Logger.Debug("a file is not passed through", "ino", n.key.ino, "err", err)
		return false
	}
	o.backing, o.owner = id, by.Owner
	n.kept.named(id, by.Owner)
	return true
}

// parking keeps the names of files that were closed a short while ago: a file
// that is opened again and again is not named to the kernel each time.
type parking struct {
	mu   sync.Mutex
	ring [256]*node
	last uint64
}

func (p *parking) add(l *Layer, n *node) {
	p.mu.Lock()
	p.last++
	n.open.mu.Lock()
	n.open.parked = p.last
	n.open.mu.Unlock()
	at := p.last % uint64(len(p.ring))
	old := p.ring[at]
	p.ring[at] = n
	oldest := p.last - uint64(len(p.ring))
	p.mu.Unlock()
	if old == nil {
		return
	}
	old.open.mu.Lock()
	idle := old.open.none() && old.open.parked == oldest
	old.open.mu.Unlock()
	if idle {
		l.dropBacking(old)
	}
}

// dropBacking gives the kernel's name of a file back, unless it is open.
func (l *Layer) dropBacking(n *node) {
	n.open.mu.Lock()
	defer n.open.mu.Unlock()
	if n.open.none() {
		l.unname(n)
	}
}

// unname gives the kernel's name of a file back. The caller holds the lock of n.open, and nobody has the file open.
func (l *Layer) unname(n *node) {
	if o := &n.open; o.backing != 0 {
		n.kept.backing.Store(-int64(o.backing)) // not to be used from here on, and to be given back by whoever finds it
		l.device.closeBacking(o.backing)
		o.backing = 0
		n.kept.backing.Store(0)
	}
}

// Expect says which rules are going to be set: files that they can match are
// opened, and adopted, so that the layer will see what is done to them. SetRules ends it.
func (l *Layer) Expect(rules []policy.Rule) error {
	set := &ruleSet{}
	now := time.Now()
	for i := range rules {
		if err := checkRule(&rules[i]); err != nil {
			return err
		}
		set.add(idleRule(rules[i], now, &keptRule{slot: &ruleSlot{}}))
	}
	l.coming.Store(set)
	return nil
}
