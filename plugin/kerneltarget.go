package plugin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin/graft"
)

// faultableCgroup gives the cgroup of a target, or says why no kernel fault may
// be put on it: a fault hits whatever runs in the cgroup, now and later.
func faultableCgroup(pid int) (kernel.Cgroup, error) {
	t, err := graft.CheckTarget(pid)
	if err != nil {
		return kernel.Cgroup{}, err
	}
	c, err := kernel.CgroupOf(pid)
	if err != nil {
		return c, err
	}
	refuse := func(format string, args ...any) (kernel.Cgroup, error) {
		return c, fmt.Errorf("pid %d: refused: %s", pid, fmt.Sprintf(format, args...))
	}
	const own = "give it a cgroup of its own (a container has one; `systemd-run --scope COMMAND` makes one)"
	if c.Level == 0 {
		return refuse("it is in the root of the cgroup v2 hierarchy, where a kernel fault would hit every process of the host; %s", own)
	}
	members, err := c.Processes()
	if err != nil {
		return c, fmt.Errorf("pid %d: %w", pid, err)
	}
	for _, m := range members {
		if why := protectedProcess(m); why != "" {
			return refuse("its cgroup %s also holds process %d, %s, and a kernel fault would hit that too; %s", c.Path, m, why, own)
		}
	}
	if !t.Tree {
		return c, nil
	}
	// A tree of the host's processes: the cgroup must be the tree's alone.
	tree, err := t.Processes()
	if err != nil {
		return c, fmt.Errorf("pid %d: %w", pid, err)
	}
	for _, m := range members {
		if s, err := graft.ReadStat(m); slices.Contains(tree, m) || err != nil || s.Ended() {
			continue
		} else if !descends(m, pid) { // one that was forked a moment ago is on no list
			return refuse("its cgroup %s also holds process %d (%s), which is not a child of it; %s", c.Path, m, s.Comm, own)
		}
	}
	return c, nil
}

// descends reports whether a process comes from another one, or has ended.
func descends(pid, from int) bool {
	for pid > 1 && pid != from {
		s, err := graft.ReadStat(pid)
		if err != nil {
			return true
		}
		pid = s.PPID
	}
	return pid == from
}

// protectedProcess says what a process is that no kernel fault may hit; empty: nothing of that kind.
func protectedProcess(pid int) string {
	switch pid {
	case 0:
		return "" // of another PID namespace than ours: none of the host's
	case 1:
		return "the host's init"
	case os.Getpid():
		return "faultgraft itself"
	}
	if _, err := graft.ReadStat(pid); errors.Is(err, graft.ErrWithinExec) {
		return fmt.Sprintf("of which nobody can tell what it is: it %v", graft.ErrWithinExec)
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return "" // a kernel thread, or it has just ended
	}
	self, err := os.Readlink("/proc/self/exe")
	base := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	switch {
	case err == nil && exe == self, base == "faultgraft", strings.HasSuffix(base, "-faultgraft"):
		return "faultgraft itself"
	case slices.Contains([]string{"containerd", "dockerd", "kubelet"}, base), strings.HasPrefix(base, "containerd-shim"):
		return base
	}
	return ""
}
