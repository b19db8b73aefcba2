package graft

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path"

	"github.com/faultgraft/faultgraft/tracer"
	"golang.org/x/sys/unix"
)

// match picks the objects under the layer's place. FIFOs, sockets and devices
// stay where they are: their peers would not follow them.
func (a *attachment) match(o *tracer.Object) bool {
	if match, known := a.heldBelow(o); known {
		return match
	}
	switch o.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
	case unix.S_IFLNK:
		if o.Flags&unix.O_PATH == 0 {
			return false
		}
	default:
		return false
	}
	if o.Dev == a.dev {
		return false
	}
	if unnamed(o.Path, o.Mode) {
		return o.MountID == uint64(a.place.mount.ID) // it may lie there: adopt says so
	}
	if a.visits(o.Kind, o.MountID) {
		return true
	}
	if a.place.root() && (o.MountID != uint64(a.place.mount.ID) || atRoot(o, a.place.prefix)) {
		return false // on another mount, which is not under the layer; or moved by pivot_root
	}
	_, below := a.place.relative(o.Path)
	return below
}

// adopt makes what goes in place of descriptions: files of the layer that wrap
// these very descriptions, so that nothing about them can differ.
func (a *attachment) adopt(all []*tracer.Description) []tracer.Replacement {
	made := make([]tracer.Replacement, len(all))
	var open pending
	for i, d := range all {
		rel, _ := a.place.relative(d.Path)
		directory := d.Mode&unix.S_IFMT == unix.S_IFDIR
		switch m := &made[i]; {
		case unnamed(d.Path, d.Mode):
			m.Err = errors.New("its path is longer than the kernel shows: whether it lies under the layer cannot be told")
		case a.visits(d.Kind, d.MountID):
			m.FD, m.Err = openVisited(a.fuse.bottom, rel, d)
		case d.Kind == tracer.Cwd || d.Kind == tracer.Root:
			m.FD, m.Err = a.openSame(rel, unix.O_PATH|unix.O_DIRECTORY, d)
		case d.Flags&unix.O_PATH != 0:
			m.FD, m.Err = a.openSame(rel, unix.O_PATH|d.Flags&(unix.O_NOFOLLOW|unix.O_DIRECTORY), d)
		case !d.Deleted:
			open.add(i, a.byPath(rel, d))
		case directory:
			m.Err = errors.New("a deleted directory cannot be opened on the layer")
		default:
			open.add(i, a.byToken(d.File, a.nameOf(d), d))
		}
	}
	var again pending
	for i, m := range open.make(&a.adopter, made) {
		d := all[i]
		if d.Deleted || d.Mode&unix.S_IFMT == unix.S_IFDIR || m.Err == nil {
			continue
		}
		// Renamed over, or hidden below another mount: the path names something else now.
		again.add(i, a.byToken(d.File, a.nameOf(d), d))
	}
	again.make(&a.adopter, made)
	return made
}

// unnamed: a file, no directory, whose path the kernel does not show (see tracer.Object).
func unnamed(path string, mode uint32) bool { return path == "/" && mode&unix.S_IFMT == unix.S_IFREG }

// openFlags are those to open another file with in the place of a description.
func openFlags(d *tracer.Description) int {
	// These act at open time only, and did so when the target opened the file (open(2)).
	flags := d.Flags&^(unix.O_CREAT|unix.O_EXCL|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_TMPFILE&^unix.O_DIRECTORY) | unix.O_CLOEXEC | unix.O_NOCTTY
	if d.Mode&unix.S_IFMT != unix.S_IFDIR {
		flags &^= unix.O_DIRECTORY
	}
	return flags
}

// byPath opens rel on the layer.
func (a *attachment) byPath(rel string, d *tracer.Description) wrapping {
	return wrapping{d: d, description: d.File, name: a.nameOf(d), open: func() (int, error) { return a.open(rel, openFlags(d), d.Mode) }}
}

// nameOf is what the target calls it.
func (a *attachment) nameOf(d *tracer.Description) string {
	below, _ := a.place.relative(d.Path)
	return path.Join(a.place.path, below)
}

// adopter makes files of a layer that wrap descriptions that are there.
type adopter struct {
	server   Server
	keeper   Keeper
	mount    int                  // of the layer
	adopted  []AdoptedDescription // that the keeper does not have yet
	progress func()
}

func newAdopter(server Server, keeper Keeper, mount int, progress func()) adopter {
	if progress == nil {
		progress = func() {}
	}
	return adopter{server: server, keeper: keeper, mount: mount, progress: progress}
}

// mostKept is how many originals wait for the hand-over: each is a descriptor, beside the two that a file needs.
const mostKept = 200

// wrapping is a file of the layer that is to wrap a description, in the place of d.
type wrapping struct {
	d           *tracer.Description
	description int
	token       string // open opens this name; see Adoption
	name        string // what the target calls it
	open        func() (int, error)
}

// byToken opens a name that is made up, for a file that has none which leads to it.
func (a *adopter) byToken(description int, name string, d *tracer.Description) wrapping {
	w := wrapping{d: d, description: description, name: name}
	var err error
	w.token, err = randomName()
	w.open = func() (int, error) {
		if err != nil {
			return -1, err
		}
		return unix.Openat(a.mount, w.token, openFlags(d), 0) // the server knows it, for this thread
	}
	return w
}

// pending are files that are to be made, each with its place among the answers.
type pending struct {
	at  []int
	all []wrapping
}

func (p *pending) add(at int, w wrapping) { p.at, p.all = append(p.at, at), append(p.all, w) }

// make makes them, and puts what came out to its place. It gives these answers by their places.
func (p *pending) make(a *adopter, made []tracer.Replacement) map[int]tracer.Replacement {
	out := map[int]tracer.Replacement{}
	for i, m := range a.wrap(p.all) {
		made[p.at[i]] = m
		out[p.at[i]] = m
	}
	return out
}

// errMixedUp: an open that should have adopted a description did not come to the server, and the next one of the same file got it.
var errMixedUp = errors.New("adopt: the layer wrapped the description of another descriptor of the file")

// wrap opens files of the layer, at most tracer.ReplaceAtOnce. The server is asked for all at once: to ask it twice for each takes
// longer than all the rest.
func (a *adopter) wrap(all []wrapping) []tracer.Replacement {
	made := a.wrapAtOnce(all)
	for i := range made {
		if errors.Is(made[i].Err, errMixedUp) {
			made[i] = a.wrapAtOnce(all[i : i+1])[0]
		}
	}
	return made
}

func (a *adopter) wrapAtOnce(all []wrapping) []tracer.Replacement {
	if len(all) == 0 {
		return nil
	}
	made := make([]tracer.Replacement, len(all))
	failed := func(err error) []tracer.Replacement {
		for i := range made {
			if made[i].Err == nil {
				a.drop(&made[i], err)
			}
		}
		return made
	}
	tid := unix.Gettid() // the tracer calls from one locked thread
	adoptions := make([]Adoption, len(all))
	for i, w := range all {
		made[i].FD = -1
		adoptions[i] = Adoption{File: w.description, Token: w.token, Path: w.name}
	}
	if err := a.server.Arm(tid, adoptions); err != nil {
		return failed(fmt.Errorf("adopt: %w", err))
	}
	for i, w := range all {
		a.progress()
		if made[i].FD, made[i].Err = w.open(); made[i].Err != nil {
			made[i] = tracer.Replacement{FD: -1, Err: fmt.Errorf("open on the layer: %w", made[i].Err)}
		}
	}
	adopted, err := a.server.Disarm(tid)
	if err == nil && len(adopted) != len(all) {
		err = fmt.Errorf("%d answers for %d files", len(adopted), len(all))
	}
	if err != nil {
		return failed(fmt.Errorf("adopt: %w", err))
	}
	nth := 0
	for i := range made {
		if made[i].Err != nil {
			continue
		}
		nth++
		switch is := adopted[i].Nth; {
		case is == nth:
			a.keep(&made[i], adopted[i].Handle, all[i].description)
		case is == 0 && len(all) == 1:
			a.drop(&made[i], errors.New("adopt: the layer opened another file"))
		default:
			a.drop(&made[i], errMixedUp)
		}
	}
	return made
}

// keep notes the original of a file that was made, for the keeper.
func (a *adopter) keep(m *tracer.Replacement, handle uint64, description int) {
	original, err := unix.FcntlInt(uintptr(description), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		a.drop(m, fmt.Errorf("keep the original: %w", err))
		return
	}
	a.adopted = append(a.adopted, AdoptedDescription{Handle: handle, File: original})
	if len(a.adopted) < mostKept {
		return
	}
	if err := a.handOver(); err != nil {
		a.drop(m, fmt.Errorf("hand the originals over: %w", err))
	}
}

// drop gives up a file that was made.
func (a *adopter) drop(m *tracer.Replacement, why error) {
	if m.FD >= 0 {
		_ = unix.Close(m.FD)
	}
	*m = tracer.Replacement{FD: -1, Err: why}
}

// handOver leaves the adopted originals with the keeper, for the day the server dies.
func (a *adopter) handOver() error {
	err := a.keeper.Adopted(a.adopted)
	if err == nil {
		a.close()
	}
	return err
}

// settle has the kernel ask for the size of a file that has changed since it was
// opened on the layer. It does not always ask by itself: a page fault beyond the
// size that it knows raises SIGBUS (filemap_fault, mm/filemap.c), and an lseek to
// the end takes the size that it knows where the answer to its question is
// discarded, because the inode's attributes were invalidated meanwhile, as they
// are when rules come (fuse_change_attributes_i and fuse_reverse_inval_inode,
// fs/fuse/inode.c).
func (a *adopter) settle(d *tracer.Description, fd int) error {
	if d.Kind != tracer.Descriptor && d.Kind != tracer.Map || d.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	var known, now unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_SIZE, &known) // makes no request
	if err == nil {
		err = unix.Statx(d.File, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_SIZE, &now)
	}
	if err == nil && known.Size != now.Size {
		err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_SIZE, &known)
	}
	if err != nil {
		return fmt.Errorf("size of an open file: %w", err)
	}
	return nil
}

// mayWait: see tracer.Options. Of a file of a file system that is this kernel's alone the size is known here, and the server is asked
// only for one whose size has changed meanwhile.
func (a *attachment) mayWait(d *tracer.Description) bool {
	if d == nil {
		return false
	}
	if a.quick == nil {
		a.quick = map[uint64]bool{}
		for _, m := range a.place.mounts {
			a.quick[uint64(m.ID)] = !mayHang(m)
		}
	}
	return !a.quick[d.MountID]
}

// close lets go of what the swap kept; the target has its own.
func (a *adopter) close() {
	for _, d := range a.adopted {
		_ = unix.Close(d.File)
	}
	a.adopted = nil
}

func (a *attachment) open(rel string, flags int, mode uint32) (int, error) {
	if rel != "" {
		return openBelow(a.fuse.mount, rel, flags, mode, true)
	}
	if a.place.mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.Openat(a.fuse.mount, ".", flags, 0)
	}
	// The mount of a single file has no directory to open it in; its descriptor is the file (proc_pid_fd(5)).
	return unix.Open(fmt.Sprintf("/proc/self/fd/%d", a.fuse.mount), flags, 0)
}

// openSame opens an object that holds no description worth adopting, and makes sure that it is the same inode.
func (a *attachment) openSame(rel string, flags int, d *tracer.Description) (int, error) {
	fd, err := a.open(rel, flags|unix.O_CLOEXEC, d.Mode)
	if err != nil {
		return -1, fmt.Errorf("open on the layer: %w", err)
	}
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	if s.Ino != d.Ino || s.Dev != a.dev || s.Mode&unix.S_IFMT != d.Mode&unix.S_IFMT {
		_ = unix.Close(fd)
		return -1, errors.New("its path names another file now, and what is open as O_PATH or a working directory can only be found by its path")
	}
	return fd, nil
}

func randomName() (string, error) {
	b := make([]byte, 24)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return ".~" + hex.EncodeToString(b), nil
}
