package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/faultgraft/faultgraft/mountinfo"
	"golang.org/x/sys/unix"
)

// ErrNoCgroup2 says that there is no cgroup v2 hierarchy to scope a fault by:
// eBPF knows the cgroup of a process in that hierarchy only. A hybrid system has
// both and is fine.
var ErrNoCgroup2 = errors.New("no cgroup v2 hierarchy is mounted (only v1, or none): kernel faults are scoped by cgroup v2; boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 on /sys/fs/cgroup/unified and have the runtime use it")

// errRootCgroup refuses to fail the whole machine.
var errRootCgroup = errors.New("it is in the root of the cgroup v2 hierarchy, where a fault would hit every process of the host: give it a cgroup of its own")

// Cgroup is a cgroup of the v2 hierarchy.
type Cgroup struct {
	// ID is the cgroup's id, as bpf_get_current_cgroup_id gives it: its inode
	// number. It is never used again while the machine is up.
	ID uint64 `json:"id"`
	// Level is how deep it is: 0 for the root, 1 for /a, 2 for /a/b.
	Level int `json:"level"`
	// Path is where it is in the hierarchy, /a/b.
	Path string `json:"path"`
	// dir is the directory that shows it.
	dir string
}

// CgroupOf gives the cgroup of a process in the v2 hierarchy, also on a hybrid
// system. Without that hierarchy the error is ErrNoCgroup2.
func CgroupOf(pid int) (Cgroup, error) {
	return inHostCgroups(func() (Cgroup, error) {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
		if err != nil {
			return Cgroup{}, fmt.Errorf("cgroup of process %d: %w", pid, err)
		}
		path, err := parseProcCgroup(string(text))
		if err != nil {
			return Cgroup{}, fmt.Errorf("cgroup of process %d: %w", pid, err)
		}
		return cgroupAt(path)
	})
}

// CgroupAt gives the cgroup at a path of the v2 hierarchy, such as /a/b.
func CgroupAt(path string) (Cgroup, error) {
	return inHostCgroups(func() (Cgroup, error) { return cgroupAt(path) })
}

// parseProcCgroup finds the line of the v2 hierarchy, "0::/path", see cgroups(7).
func parseProcCgroup(text string) (string, error) {
	for line := range strings.Lines(text) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		switch {
		case !ok:
			continue
		case strings.HasSuffix(path, " (deleted)"):
			return "", fmt.Errorf("%s: the cgroup was removed: %w", path, os.ErrNotExist)
		case !strings.HasPrefix(path, "/"):
			return "", fmt.Errorf("%q is no path", path)
		}
		return path, nil
	}
	return "", ErrNoCgroup2
}

// hierarchy finds where the whole v2 hierarchy is mounted. Its root has the
// inode number 1 (fs/kernfs/dir.c, kernfs_create_root); what is mounted with
// another one is a part.
func hierarchy() (string, error) {
	mounts, err := mountinfo.Own()
	if err != nil {
		return "", fmt.Errorf("look for the cgroup v2 hierarchy: %w", err)
	}
	mounts = slices.DeleteFunc(mounts, func(m *mountinfo.Info) bool { return m.FSType != "cgroup2" })
	for _, m := range mounts {
		var st unix.Stat_t
		if unix.Stat(m.Mountpoint, &st) == nil && st.Ino == 1 {
			return m.Mountpoint, nil
		}
	}
	if len(mounts) > 0 {
		return "", fmt.Errorf("only a part of the cgroup v2 hierarchy is mounted (on %s): mount the whole of it, as from the host's /sys/fs/cgroup", mounts[0].Mountpoint)
	}
	return "", ErrNoCgroup2
}

func cgroupAt(path string) (Cgroup, error) {
	clean := filepath.Clean("/" + path)
	if strings.HasPrefix(path, "/..") {
		return Cgroup{}, fmt.Errorf("cgroup %s is outside the cgroup namespace of this process", path)
	}
	root, err := hierarchy()
	if err != nil {
		return Cgroup{}, err
	}
	dir := filepath.Join(root, clean)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return Cgroup{}, fmt.Errorf("cgroup %s: %w", clean, &os.PathError{Op: "stat", Path: dir, Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return Cgroup{}, fmt.Errorf("cgroup %s: %s is not a directory", clean, dir)
	}
	c := Cgroup{ID: st.Ino, Path: clean, dir: dir}
	if clean != "/" {
		c.Level = strings.Count(clean, "/")
	}
	return c, nil
}

// hostCgroupNamespace is the inode number of the first cgroup namespace
// (include/linux/proc_ns.h, PROC_CGROUP_INIT_INO).
const hostCgroupNamespace = 0xeffffffb

// inHostCgroups runs f where paths of cgroups are those of the whole hierarchy.
// In a container with a cgroup namespace of its own (a DaemonSet with hostPID)
// they would be relative to that container's cgroup, cgroup_namespaces(7), so a
// thread enters the namespace of process 1 for it.
func inHostCgroups(f func() (Cgroup, error)) (Cgroup, error) {
	var st unix.Stat_t
	if unix.Stat("/proc/thread-self/ns/cgroup", &st) != nil || st.Ino == hostCgroupNamespace {
		return f()
	}
	type result struct {
		cgroup Cgroup
		err    error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its namespace with it
		ns, err := os.Open("/proc/1/ns/cgroup")
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWCGROUP)
			_ = ns.Close()
		}
		if err != nil {
			done <- result{err: fmt.Errorf("enter the host's cgroup namespace (faultgraft needs the host's PID namespace and CAP_SYS_ADMIN): %w", err)}
			return
		}
		c, err := f()
		done <- result{c, err}
	}()
	r := <-done
	return r.cgroup, r.err
}

// needsIO says that block requests of the cgroup bear no mark of it: without the
// io controller they are charged to an ancestor that has it.
func (c Cgroup) needsIO() error {
	text, err := os.ReadFile(filepath.Join(c.dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("controllers of cgroup %s: %w", c.Path, err)
	}
	if !slices.Contains(strings.Fields(string(text)), "io") {
		return fmt.Errorf("cgroup %s does not have the io controller, so the kernel charges its block requests to a cgroup above it: write +io to %s",
			c.Path, filepath.Join(filepath.Dir(c.dir), "cgroup.subtree_control"))
	}
	return nil
}
