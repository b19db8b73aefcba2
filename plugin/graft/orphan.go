package graft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Orphan is a layer that nobody serves any more and nobody will: its keeper, its
// server and whoever else held /dev/fuse were killed. Calls on it fail with ENOTCONN.
type Orphan struct {
	// ID is the graft's, as mountinfo shows it.
	ID string `json:"id"`
	// Path is where it is mounted, as its namespace sees it.
	Path string `json:"path"`
	// PID is a process of that mount namespace.
	PID int `json:"pid"`

	mount uint64 // its id in mountinfo
	dev   uint64
}

// answerWait is how long a layer may take to answer until it counts as one that somebody serves, slowly.
const answerWait = 2 * time.Second

// Orphans looks for such layers in all mount namespaces that a process lives in.
// known are grafts of keepers that live, which take care of theirs.
func Orphans(known func(id string) bool) ([]Orphan, error) {
	pids, err := allProcesses()
	if err != nil {
		return nil, err
	}
	seen := map[inode]bool{}
	var found []Orphan
	for _, pid := range append(looks.filter(pids, comesBack), os.Getpid()) {
		ns, err := identify(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil || seen[ns] {
			continue // it has ended, or may not be looked at
		}
		seen[ns] = true
		mounts, err := readMounts(pid)
		if err != nil {
			delete(seen, ns) // another process of it may tell
			continue
		}
		for _, m := range mounts {
			o := Orphan{ID: m.Source, Path: m.Mountpoint, PID: pid, mount: uint64(m.ID), dev: unix.Mkdev(uint32(m.Major), uint32(m.Minor))}
			if m.FSType != layerType || known(o.ID) || slices.ContainsFunc(found, func(f Orphan) bool { return f.ID == o.ID && f.Path == "/" }) {
				continue
			}
			if o.dead() {
				found = append(found, o)
			}
		}
	}
	return found, nil
}

// dead asks the layer for its attributes: without a server the kernel refuses at once.
func (o *Orphan) dead() bool {
	answer := make(chan error, 1)
	go func() {
		fd, err := o.open()
		if err != nil {
			answer <- nil // hidden below another mount: nobody knows
			return
		}
		defer func() { _ = unix.Close(fd) }() // O_PATH
		if id, err := mountID(fd); err != nil || id != o.mount {
			answer <- nil
			return
		}
		var x unix.Statx_t
		answer <- unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_MODE, &x)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN)
	case <-time.After(answerWait):
		return false
	}
}

// open opens what lies at the path now, in the namespace.
func (o *Orphan) open() (int, error) {
	root, err := unix.Open("/proc/"+strconv.Itoa(o.PID)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("pid %d: %w", o.PID, err)
	}
	defer func() { _ = unix.Close(root) }() // O_PATH
	rel, err := filepath.Rel("/", o.Path)
	if err != nil {
		return -1, err
	}
	// What mountinfo shows has no symbolic links.
	fd, err := unix.Openat2(root, rel, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("pid %d: open %s: %w", o.PID, o.Path, err)
	}
	return fd, nil
}

// Guards lists the processes that stand by the layer although it is dead: of those for which
// mayBe is true, the ones that have something of it open. Whether they run is not asked.
func (o Orphan) Guards(mayBe func(pid int) bool) ([]int, error) {
	all, err := allProcesses()
	if err != nil {
		return nil, err
	}
	return looks.filter(all, func(pid int) bool { return mayBe(pid) && o.openIn(pid) }), nil
}

// openIn reports whether a process has something of the layer open.
func (o Orphan) openIn(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false // it has ended
	}
	return slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
		i, err := identify(filepath.Join(dir, fd.Name()))
		return err == nil && unix.Mkdev(i.major, i.minor) == o.dev
	})
}

// TakeOff takes the layer off, and gives back what is open on it: files by their
// path below, with their offsets. What was unlinked, and locks, are lost: nobody
// has their originals any more. A layer over "/" has to stay.
func (o Orphan) TakeOff(ctx context.Context) (*Report, error) {
	if o.Path == "/" {
		return nil, fmt.Errorf("graft %s of process %d lies over /, and all that served it was killed: the container has lost its root directory, restart it", o.ID, o.PID)
	}
	fail := func(err error) error {
		return fmt.Errorf("take the dead layer %s off %s of process %d: %w", o.ID, o.Path, o.PID, err)
	}
	t, err := CheckTarget(o.PID)
	if err != nil && t.MountNS == 0 {
		return nil, fail(err) // else it may not be grafted, as the host's init: a layer that its namespace shows is taken off all the same
	}
	layer, err := o.open()
	if err != nil {
		return nil, fail(err)
	}
	defer func() { _ = unix.Close(layer) }() // O_PATH
	if id, err := mountID(layer); err != nil || id != o.mount {
		return nil, fail(errors.Join(errors.New("something else lies there by now"), err))
	}
	procFD, err := openProcFD()
	if err != nil {
		return nil, fail(err)
	}
	defer func() { _ = unix.Close(procFD) }() // O_PATH
	ns, err := enterNamespace(t.namespaceFile())
	if err != nil {
		return nil, fail(err)
	}
	err = ns.do(func() error { return detachMount(layer, procFD) })
	ns.close()
	if err != nil {
		return nil, fail(err)
	}
	backing, err := o.open()
	if err != nil {
		return nil, fail(err)
	}
	defer func() { _ = unix.Close(backing) }() // O_PATH
	rep, err := Detach(ctx, DetachOptions{
		ID: o.ID, Target: t,
		// Links in procfs show paths on a mount that is off from the mount's own root (d_path, fs/d_path.c).
		Layer: Layer{Device: -1, Mount: -1, Backing: backing, Bottom: -1, PeerGroup: -1, Info: LayerInfo{Path: o.Path, Prefix: "/", Dev: o.dev}},
	})
	if err != nil {
		return nil, fail(err)
	}
	return rep, nil
}
