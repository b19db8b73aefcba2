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

// adopt makes what goes in place of a description: a file of the layer that wraps
// that very description, so that nothing about it can differ.
func (a *attachment) adopt(d *tracer.Description) (int, error) {
	if unnamed(d.Path, d.Mode) {
		return -1, errors.New("its path is longer than the kernel shows: whether it lies under the layer cannot be told")
	}
	rel, _ := a.place.relative(d.Path)
	switch {
	case a.visits(d.Kind, d.MountID):
		return openVisited(a.fuse.bottom, rel, d)
	case d.Kind == tracer.Cwd || d.Kind == tracer.Root:
		return a.openSame(rel, unix.O_PATH|unix.O_DIRECTORY, d)
	case d.Flags&unix.O_PATH != 0:
		return a.openSame(rel, unix.O_PATH|d.Flags&(unix.O_NOFOLLOW|unix.O_DIRECTORY), d)
	}
	flags := openFlags(d)
	directory := d.Mode&unix.S_IFMT == unix.S_IFDIR
	if !d.Deleted {
		fd, err := a.adoptAs(rel, flags, "", d)
		if err == nil || directory {
			return fd, err
		}
		// Renamed over, or hidden below another mount: the path names something else now.
	}
	if directory {
		return -1, errors.New("a deleted directory cannot be opened on the layer")
	}
	token, err := randomName()
	if err != nil {
		return -1, err
	}
	return a.adoptAs(token, flags, token, d)
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

// adoptAs opens rel on the layer while the server is armed to adopt d.
func (a *attachment) adoptAs(rel string, flags int, token string, d *tracer.Description) (int, error) {
	below, _ := a.place.relative(d.Path)
	return a.adoption(d, d.File, token, path.Join(a.place.path, below), func() (int, error) {
		if token != "" {
			return unix.Openat(a.fuse.mount, token, flags, 0) // a name that the server made up for this thread
		}
		return a.open(rel, flags, d.Mode)
	})
}

// adopter makes files of a layer that wrap descriptions that are there.
type adopter struct {
	server  Server
	keeper  Keeper
	mount   int                  // of the layer
	adopted []AdoptedDescription // that the keeper does not have yet
}

// mostKept is how many originals wait for the hand-over: each is a descriptor, beside the two that a file needs.
const mostKept = 200

// adoption opens a file of the layer, by the token or by whatever open opens, that
// wraps the description in the place of d. name is what the target calls it.
func (a *adopter) adoption(d *tracer.Description, description int, token, name string, open func() (int, error)) (int, error) {
	tid := unix.Gettid() // the tracer calls from one locked thread
	if err := a.server.Arm(tid, description, token, name); err != nil {
		return -1, fmt.Errorf("adopt: %w", err)
	}
	fd, openErr := open()
	handle, adopted, err := a.server.Disarm(tid)
	switch {
	case openErr != nil:
		return -1, fmt.Errorf("open on the layer: %w", openErr)
	case err != nil:
		_ = unix.Close(fd)
		return -1, fmt.Errorf("adopt: %w", err)
	case !adopted:
		_ = unix.Close(fd)
		return -1, errors.New("adopt: the layer opened another file")
	}
	original, err := unix.FcntlInt(uintptr(description), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("keep the original: %w", err)
	}
	a.adopted = append(a.adopted, AdoptedDescription{Handle: handle, File: original})
	if len(a.adopted) < mostKept {
		return fd, nil
	}
	if err := a.handOver(); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("hand the originals over: %w", err)
	}
	return fd, nil
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
