package graft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/faultgraft/faultgraft/mountinfo"
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

	// Mount is its id in mountinfo, Dev the device of its file system.
	Mount uint64 `json:"mount"`
	Dev   uint64 `json:"dev"`

	namespace inode
}

// Asker has layers asked whether somebody serves them, by a process that can be left behind: whoever has /dev/fuse in a container can make
// what looks like a layer, read the question, and never answer. dead has which of them nobody serves, silent which did not answer.
type Asker func(layers []Orphan) (dead, silent []bool, err error)

// Orphans looks for such layers in all mount namespaces that a process lives in.
// known are grafts of keepers that live, which take care of theirs. passed says for a person what could not be looked at.
func Orphans(known func(id string) bool, ask Asker) (found []Orphan, passed []string, err error) {
	perNamespace, passed, err := mayBeOrphans(known)
	layers := inTurn(perNamespace)
	if err != nil || len(layers) == 0 {
		return nil, passed, err
	}
	dead, silent, err := ask(layers)
	if err != nil {
		return nil, passed, err
	}
	unheard := 0
	for i, o := range layers {
		switch {
		case silent[i]:
			if unheard++; unheard > mostNamed {
				continue
			}
			passed = append(passed, fmt.Sprintf("left alone: what looks like the layer of graft %s over %q of process %d (%s) does not answer. Whoever serves it hangs, or it is no layer of faultgraft's",
				o.ID, o.Path, o.PID, CommOf(o.PID)))
		case dead[i] && !slices.ContainsFunc(found, func(f Orphan) bool { return f.ID == o.ID && f.Path == "/" }):
			found = append(found, o)
		}
	}
	if unheard > mostNamed {
		passed = append(passed, fmt.Sprintf("left alone: %d more that do not answer", unheard-mostNamed))
	}
	return found, passed, nil
}

// mostNamed is how many that do not answer are named.
const mostNamed = 20

// mayBeOrphans lists the mounts that may be of layers of ours, by namespace, without touching any.
func mayBeOrphans(known func(id string) bool) (perNamespace [][]Orphan, passed []string, err error) {
	pids, err := allProcesses()
	if err != nil {
		return nil, nil, err
	}
	seen := map[inode]bool{}
	for _, pid := range append(looks.filter(pids, comesBack), os.Getpid()) {
		ns, err := identify(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil || seen[ns] {
			continue // it has ended, or may not be looked at
		}
		seen[ns] = true
		mounts, err := readMounts(pid)
		if errors.Is(err, mountinfo.ErrTooLong) {
			passed = append(passed, fmt.Sprintf("dead layers of process %d (%s) were not looked for: %v", pid, CommOf(pid), err))
			continue
		}
		if err != nil {
			delete(seen, ns) // another process of it may tell
			continue
		}
		var here []Orphan
		for _, m := range mounts {
			o := Orphan{ID: m.Source, Path: m.Mountpoint, PID: pid, Mount: uint64(m.ID), Dev: unix.Mkdev(uint32(m.Major), uint32(m.Minor)), namespace: ns}
			if mayBeOurs(m) && !known(o.ID) && rootsOwn(o.Dev) {
				here = append(here, o)
			}
		}
		if len(here) > 0 {
			perNamespace = append(perNamespace, here)
		}
	}
	return perNamespace, passed, nil
}

// Apart groups layers so that those of one group have no process to do with those of another: they share no mount namespace, and no file system.
func Apart(layers []Orphan) (groups [][]Orphan) {
	for _, o := range layers {
		with := []Orphan{o}
		groups = slices.DeleteFunc(groups, func(g []Orphan) bool {
			near := slices.ContainsFunc(g, func(other Orphan) bool { return other.namespace == o.namespace || other.Dev == o.Dev })
			if near {
				with = append(slices.Clone(g), with...)
			}
			return near
		})
		groups = append(groups, with)
	}
	return groups
}

// inTurn puts the layers of all namespaces into one row: who has many in one of them is no reason for the others to wait.
func inTurn(perNamespace [][]Orphan) (all []Orphan) {
	for i, more := 0, true; more; i++ {
		more = false
		for _, here := range perNamespace {
			if i < len(here) {
				all, more = append(all, here[i]), true
			}
		}
	}
	return all
}

var idOfGraft = regexp.MustCompile(`^g-[0-9a-f]{8}$`)

// mayBeOurs tells by what mountinfo shows whether a mount may be of a layer (see fuseMountOf).
func mayBeOurs(m *mountinfo.Info) bool {
	if m.FSType != layerType || !idOfGraft.MatchString(m.Source) {
		return false
	}
	has := strings.Split(m.VFSOptions, ",")
	for _, o := range []string{"user_id=0", "group_id=0", "default_permissions", "allow_other"} {
		if !slices.Contains(has, o) {
			return false
		}
	}
	return true
}

// rootsOwn is false for a FUSE connection of another user than root of the host. Its mount options show the user as the user namespace
// of whoever made it has him; its folder in the control file system belongs to the real one (fuse_ctl_add_dentry, fs/fuse/control.c).
func rootsOwn(dev uint64) bool {
	control, err := openControl()
	if err != nil {
		return true // not known
	}
	defer func() { _ = unix.Close(control) }() // only looked at
	var st unix.Stat_t
	return unix.Fstatat(control, fmt.Sprint(unix.Minor(dev)), &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Uid == 0
}

// askedAtOnce is how many questions may be without an answer at a time.
const askedAtOnce = 128

// AskLayers is the work of an Asker: it tells of each layer that has answered whether it is dead. It may never come back.
func AskLayers(layers []Orphan, tell func(i int, dead bool) error) error {
	next := make(chan int, len(layers))
	for i := range layers {
		next <- i
	}
	close(next)
	var all sync.WaitGroup
	errs := make([]error, min(len(layers), askedAtOnce))
	for n := range errs {
		all.Go(func() {
			for i := range next {
				if errs[n] = tell(i, layers[i].dead()); errs[n] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// dead asks the layer for its attributes: without a server the kernel refuses at once. It waits for whoever serves it, whatever signal comes
// (request_wait_answer, fs/fuse/dev.c), and for all file systems on the way.
func (o *Orphan) dead() bool {
	fd, err := o.open()
	if err != nil {
		return false // hidden below another mount: nobody knows
	}
	defer func() { _ = unix.Close(fd) }() // O_PATH
	if id, err := mountID(fd); err != nil || id != o.Mount {
		return false
	}
	var x unix.Statx_t
	return errors.Is(unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_MODE, &x), unix.ENOTCONN)
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
		return err == nil && unix.Mkdev(i.major, i.minor) == o.Dev
	})
}

// TakeOff takes the layer off, and gives back what is open on it: files by their
// path below, with their offsets. What was unlinked, and locks, are lost: nobody
// has their originals any more. A layer over "/" has to stay. It waits for file systems of the container, and may
// never come back: it is for a process that does nothing else, and that hung ends (see tracer.Options).
func (o Orphan) TakeOff(ctx context.Context, hung func(what string)) (*Report, error) {
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
	if id, err := mountID(layer); err != nil || id != o.Mount {
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
		ID: o.ID, Target: t, Hung: hung,
		// Links in procfs show paths on a mount that is off from the mount's own root (d_path, fs/d_path.c).
		Layer: Layer{Device: -1, Mount: -1, Backing: backing, Bottom: -1, PeerGroup: -1, Info: LayerInfo{Path: o.Path, Prefix: "/", Dev: o.Dev}},
	})
	if err != nil {
		return nil, fail(err)
	}
	return rep, nil
}
