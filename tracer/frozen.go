package tracer

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/faultgraft/faultgraft/mountinfo"
)

// A process in a frozen cgroup (a paused container) cannot run our code. One of
// version 2 can even be stopped; one of version 1 is in uninterruptible sleep.

// refrigerator is where a thread waits that version 1 has frozen, but for one that slept in a call that can be frozen itself, such
// as nanosleep(2) (__refrigerator in kernel/freezer.c; TASK_FREEZABLE, Linux 6.1).
const refrigerator = "__refrigerator"

// errFrozen is a process that waits for its cgroup to be thawed.
type errFrozen struct {
	pid    int
	comm   string
	cgroup string // empty: no file says so, but a thread is in the refrigerator
}

func (e *errFrozen) Error() string {
	by := "frozen by its cgroup " + e.cgroup
	if e.cgroup == "" {
		by = "frozen (a thread waits in " + refrigerator + ") by a cgroup that cannot be seen from here"
	}
	return fmt.Sprintf("process %d (%s) is %s: resume it first (a paused container: unpause it)", e.pid, e.comm, by)
}

// freezer finds out whether processes are frozen. The zero value is ready.
type freezer struct {
	mounts []cgroupMount
	read   bool
	known  map[string]string // text of /proc/PID/cgroup to the frozen cgroup, "" for none
}

// cgroupMount is a mounted hierarchy that can freeze.
type cgroupMount struct {
	v2          bool
	root, point string
}

// check returns an *errFrozen for a frozen process, or a thread. Where files do not tell, since hierarchies need not be mounted
// here, its own sleep does: that is what our code would wait for.
func (f *freezer) check(pid int, comm string) error {
	text, err := readProc(procPath(pid, "cgroup"))
	if err != nil {
		return nil // it ended
	}
	frozen, known := f.known[string(text)]
	if !known {
		if !f.read {
			f.read = true
			// Not of /proc/self: the main thread may be one that went to a target's mount namespace.
			if mounts, err := mountinfo.Own(); err == nil {
				f.mounts = cgroupMounts(mounts)
			}
		}
		frozen = f.frozen(text)
		if f.known == nil {
			f.known = map[string]string{}
		}
		f.known[string(text)] = frozen
	}
	if frozen != "" || inRefrigerator(pid) {
		return &errFrozen{pid, comm, frozen}
	}
	return nil
}

// inRefrigerator reports that a thread, of a process the first, is frozen.
func inRefrigerator(tid int) bool {
	where, _ := readProc(procPath(tid, "wchan")) // one that ended waits nowhere
	return string(where) == refrigerator
}

// Frozen returns an error that says so if a process is frozen by its cgroup. comm is for the words.
func Frozen(pid int, comm string) error { return new(freezer).check(pid, comm) }

// frozenNow returns an *errFrozen for a process that was frozen since it was looked at.
func (p *process) frozenNow() error { return Frozen(p.pid, p.comm) }

// frozen names the cgroup that freezes a process with this text of /proc/PID/cgroup (cgroups(7)).
func (f *freezer) frozen(text []byte) string {
	for line := range strings.Lines(string(text)) {
		part := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(part) != 3 {
			continue
		}
		v2 := part[0] == "0" && part[1] == ""
		if !v2 && !strings.Contains(","+part[1]+",", ",freezer,") {
			continue
		}
		for _, m := range f.mounts {
			below, ok := belowRoot(m.root, part[2])
			if m.v2 != v2 || !ok {
				continue
			}
			if where := m.frozen(below); where != "" {
				return where
			}
		}
	}
	return ""
}

// frozen looks at a cgroup, and in version 2 at those above it, whose freezing its own file does not show.
func (m cgroupMount) frozen(below string) string {
	if !m.v2 {
		if s, err := os.ReadFile(path.Join(m.point, below, "freezer.state")); err == nil && !bytes.HasPrefix(s, []byte("THAWED")) {
			return below
		}
		return ""
	}
	for c := below; c != "/" && c != "."; c = path.Dir(c) {
		if s, err := os.ReadFile(path.Join(m.point, c, "cgroup.freeze")); err == nil && strings.TrimSpace(string(s)) == "1" {
			return c
		}
	}
	return ""
}

// belowRoot is the path of a cgroup below the root of a mount, "/" for that itself.
func belowRoot(root, cgroup string) (string, bool) {
	if root == "/" {
		return cgroup, path.IsAbs(cgroup) && !strings.HasPrefix(cgroup, "/..")
	}
	rest, ok := strings.CutPrefix(cgroup, root)
	return path.Join("/", rest), ok && (rest == "" || rest[0] == '/')
}

// cgroupMounts finds cgroup2 and the freezer of version 1 among mounts.
func cgroupMounts(mounts []*mountinfo.Info) (all []cgroupMount) {
	for _, m := range mounts {
		v1 := m.FSType == "cgroup" && strings.Contains(","+m.VFSOptions+",", ",freezer,")
		if m.FSType == "cgroup2" || v1 {
			all = append(all, cgroupMount{v2: !v1, root: m.Root, point: m.Mountpoint})
		}
	}
	return all
}
