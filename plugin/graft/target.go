package graft

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Target is what a graft works on: the processes of a container, or a process tree.
type Target struct {
	// PID is the first process of the target.
	PID int `json:"pid"`
	// StartTime is when it started, field 22 of /proc/PID/stat; 0 is filled in by CheckTarget.
	StartTime uint64 `json:"startTime"`
	// Tree says that the target has no mount namespace of its own: it is PID and its
	// descendants, and other processes see the layer too, so faults must be limited to the tree.
	Tree bool `json:"tree,omitempty"`
	// MountNS is the inode number of the target's mount namespace. It names it as long as
	// somebody holds the namespace; the kernel uses the numbers again.
	MountNS uint64 `json:"mountNS"`
	// NamespaceFile names the mount namespace for setns(2): a file of nsfs, which the
	// keeper holds open. Empty: that of PID.
	NamespaceFile string `json:"namespaceFile,omitempty"`
}

// CheckTarget looks a PID up and refuses what must never be grafted: processes
// that are not there, kernel threads, init, faultgraft itself and what it was
// started from, containerd and its shims, pause containers.
func CheckTarget(pid int) (Target, error) {
	t := Target{PID: pid}
	if pid <= 0 {
		return t, fmt.Errorf("pid %d: not a process id", pid)
	}
	refuse := func(why string) error { return fmt.Errorf("pid %d: refused: %s", pid, why) }
	if pid == 1 {
		return t, refuse("it is the host's own init; name a process of a container, or the first process of a tree")
	}
	stat, err := ReadStat(pid)
	if errors.Is(err, os.ErrNotExist) {
		return t, fmt.Errorf("pid %d: no such process", pid)
	}
	if err != nil {
		return t, fmt.Errorf("pid %d: %w", pid, err)
	}
	t.StartTime = stat.StartTime
	if stat.Ended() {
		return t, fmt.Errorf("pid %d (%s): the process has ended (zombie)", pid, stat.Comm)
	}
	if stat.Flags&pfKthread != 0 {
		return t, refuse(fmt.Sprintf("%s is a kernel thread", stat.Comm))
	}
	ns, err := identifyOf(pid, "ns/mnt")
	if err != nil {
		return t, fmt.Errorf("pid %d: look at its mount namespace: %w; faultgraft needs root with CAP_SYS_PTRACE", pid, err)
	}
	t.MountNS = ns.ino
	ancestors := ancestry(os.Getpid())
	for _, p := range append(ancestors, 1) {
		// init may hold capabilities that we lack, and then does not let us look (ptrace(2), access mode checking).
		if i, err := identify(fmt.Sprintf("/proc/%d/ns/mnt", p)); err == nil && i == ns {
			t.Tree = true
		}
	}
	if t.Tree && slices.Contains(ancestors, pid) {
		return t, refuse("this command is a part of its process tree")
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return t, fmt.Errorf("pid %d: %w", pid, err)
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return t, err
	}
	base := strings.TrimSuffix(filepath.Base(exe), " (deleted)") // replaced by an upgrade
	switch {
	case exe == self, isFaultgraft(exe):
		return t, refuse("it is faultgraft itself")
	case base == "containerd" || strings.HasPrefix(base, "containerd-shim") || base == "dockerd":
		return t, refuse("it is " + base + ", which runs the containers")
	case exe == "/pause":
		return t, refuse("it is the pause process of a pod")
	}
	return t, nil
}

// Alive reports whether the process that the target was made from still runs.
func (t Target) Alive() bool {
	s, err := ReadStat(t.PID)
	if errors.Is(err, ErrWithinExec) {
		return true // and which process it is can be seen when that is over
	}
	return err == nil && s.StartTime == t.StartTime && !s.Ended()
}

// ancestry lists a process and those that it descends from, init left out.
func ancestry(pid int) []int {
	var chain []int
	for pid > 1 {
		chain = append(chain, pid)
		s, err := ReadStat(pid)
		if err != nil {
			break // it has just ended
		}
		pid = s.PPID
	}
	return chain
}

// namespaceFile is a path for enterNamespace.
func (t Target) namespaceFile() string {
	if t.NamespaceFile != "" {
		return t.NamespaceFile
	}
	return fmt.Sprintf("/proc/%d/ns/mnt", t.PID)
}

func (t Target) inNamespace(pid int) bool {
	ns, err := identifyOf(pid, "ns/mnt")
	return err == nil && ns.ino == t.MountNS && !remainder(pid, t) // a process that ended meanwhile is in no namespace
}

// listPasses bounds how often the processes are listed again because there were new ones.
const listPasses = 10

// Processes lists the target's processes: all of the mount namespace, or the tree.
// One that ends before it is looked at may have left a child that was not on the
// list, so the list is read again until it names nobody new. One that cannot be
// looked at is left out, see lookPatience.
func (t Target) Processes() ([]int, error) {
	var pids []int
	seen := map[int]bool{}
	parents := map[int]int{}
	for range listPasses {
		all, err := allProcesses()
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(pid int) bool { return seen[pid] })
		if len(all) == 0 {
			break
		}
		for _, pid := range all {
			seen[pid] = true
		}
		if t.Tree {
			addParents(parents, all)
		} else {
			pids = append(pids, looks.filter(all, func(pid int) bool { return t.inNamespace(pid) && closedExec(pid) })...)
		}
	}
	if t.Tree {
		pids = looks.filter(descendants(t.PID, parents), closedExec)
	}
	return pids, nil
}

// identifyOf follows a link of a process in procfs. Those of a process whose first
// thread has ended while others run are only to be had from the others.
func identifyOf(pid int, link string) (inode, error) {
	i, err := identify(fmt.Sprintf("/proc/%d/%s", pid, link))
	if err == nil || errors.Is(err, unix.EACCES) {
		return i, err
	}
	tasks, terr := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if terr != nil {
		return i, err // it has ended altogether
	}
	for _, task := range tasks {
		if i, terr := identify(fmt.Sprintf("/proc/%d/task/%s/%s", pid, task.Name(), link)); terr == nil {
			return i, nil
		}
	}
	return i, err
}

// allProcesses lists every process but this one.
func allProcesses() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list /proc: %w", err)
	}
	self := os.Getpid()
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && pid != self {
			pids = append(pids, pid)
		}
	}
	sort.Ints(pids)
	return pids, nil
}

// reachableProcesses lists the processes that a layer's objects can be taken
// back from. Left out are those that this process may not look into, because
// they have capabilities that it lacks (ptrace(2), access mode checking), as an
// init may have; and faultgraft's own, which hold layers for good reason.
func reachableProcesses(t Target) ([]int, error) {
	ours, err := newOwn()
	if err != nil {
		return nil, err
	}
	all, err := allProcesses()
	if err != nil {
		return nil, err
	}
	return looks.filter(all, func(pid int) bool {
		exe, err := identifyOf(pid, "exe") // kernel threads have none
		return err == nil && !ours.has(pid, exe, t) && closedExec(pid)
	}), nil
}

// inode names a file of this machine.
type inode struct {
	major, minor uint32
	ino          uint64
}

// identify asks no file system: the executable of a process may be on a layer whose server is dead.
func identify(path string) (inode, error) {
	var x unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &x)
	return inode{x.Dev_major, x.Dev_minor, x.Ino}, err
}

// addParents notes the parents of processes.
func addParents(parents map[int]int, pids []int) {
	for _, pid := range pids {
		if up, ok := parentOf(pid); ok {
			parents[pid] = up
		}
	}
}

// descendants lists root and the processes below it, ascending.
func descendants(root int, parents map[int]int) []int {
	for pid, up := range parents {
		if _, known := parents[up]; !known && up > 1 {
			addParents(parents, []int{pid}) // the parent has ended meanwhile, and there is another one
		}
	}
	var pids []int
	for pid := range parents {
		for p, hops := pid, 0; p > 1 && hops < len(parents); p, hops = parents[p], hops+1 {
			if p == root {
				pids = append(pids, pid)
				break
			}
		}
	}
	slices.Sort(pids)
	return pids
}
