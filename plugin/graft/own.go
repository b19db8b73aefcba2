package graft

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/faultgraft/faultgraft/plugin/holder"
)

// Processes of faultgraft have layers open for good reason: who looks for what is to be moved off a layer passes them by. They
// are not known by their executable alone, which an upgrade replaces while they run.

// Job tells what a process does for faultgraft, empty for nothing, and for which state directory, where its arguments say that. They are
// the same in all versions. Any process can have such arguments.
func Job(pid int) (job, stateDir string) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "", "" // it has ended
	}
	defer func() { _ = f.Close() }() // read only
	b, err := io.ReadAll(io.LimitReader(f, maxCmdline))
	if err != nil {
		return "", ""
	}
	return jobOf(string(b))
}

// maxCmdline is room for the arguments that tell a job, a path among them. What a process has as its arguments is as long as it says
// (PR_SET_MM_MAP in prctl(2); get_mm_cmdline in fs/proc/base.c).
const maxCmdline = 16 << 10

// jobOf reads /proc/PID/cmdline.
func jobOf(cmdline string) (job, stateDir string) {
	args := strings.Split(strings.TrimRight(cmdline, "\x00"), "\x00")
	switch {
	case args[0] == holder.Name:
		return "holder", ""
	case len(args) < 2:
		return "", ""
	}
	switch args[1] {
	case "keeper", "server":
		if len(args) > 3 && args[2] == "--state-dir" {
			return args[1], args[3]
		}
	case "swap":
		if len(args) == 2 || strings.HasPrefix(args[2], "--") {
			return args[1], ""
		}
	}
	return "", ""
}

// own is what processes of faultgraft have in common with this one.
type own struct{ exe, pids, users inode }

func newOwn() (o own, err error) {
	for link, to := range map[string]*inode{"exe": &o.exe, "ns/pid": &o.pids, "ns/user": &o.users} {
		if *to, err = identify("/proc/self/" + link); err != nil {
			return o, fmt.Errorf("look at this process: %w", err)
		}
	}
	return o, nil
}

// has tells faultgraft's processes, whatever version they are of, from those that may be the target's. exe is what the process runs.
// What a program can give itself, its name and its arguments, counts only for root outside of containers. A privileged container that shares
// the host's process ids is told by its mount namespace and its parents; what is root there, and gets rid of both, could kill the real ones as well.
func (o own) has(pid int, exe inode, t Target) bool {
	if exe != o.exe {
		if job, _ := Job(pid); job == "" && !runsFaultgraft(pid) {
			return false
		}
		if uid, ok := userOf(pid); !ok || uid != 0 {
			return false
		}
	}
	for link, want := range map[string]inode{"ns/pid": o.pids, "ns/user": o.users} {
		if is, err := identifyOf(pid, link); err != nil || is != want {
			return false
		}
	}
	return (t.Tree || !t.inNamespace(pid)) && !descendsFrom(pid, []int{t.PID})
}

// isNow is has, of what the process runs at this moment.
func (o own) isNow(pid int, t Target) bool {
	exe, err := identifyOf(pid, "exe")
	return err == nil && o.has(pid, exe, t)
}

// runsFaultgraft tells by its name that a process is an agent or a command: who looks for layers that nobody serves has one open meanwhile.
func runsFaultgraft(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && isFaultgraft(exe)
}

func isFaultgraft(exe string) bool {
	base := strings.TrimSuffix(filepath.Base(exe), " (deleted)")          // replaced by an upgrade
	return base == "faultgraft" || strings.HasSuffix(base, "-faultgraft") // NRI plugins are called NN-NAME
}

// remainder tells that a process whose first thread has ended is what is left of one of ours that was killed: a thread waits where no signal
// ends it, and may be the one that works in the target's mount namespace (see namespace). Its cgroup is that of whoever started it.
func remainder(pid int, t Target) bool {
	if _, err := identify(fmt.Sprintf("/proc/%d/ns/mnt", pid)); err == nil || errors.Is(err, os.ErrPermission) {
		return false
	}
	o, err := newOwn()
	if err != nil {
		return false
	}
	exe, err := identifyOf(pid, "exe")
	if err != nil || exe != o.exe {
		return false
	}
	pids, err := identifyOf(pid, "ns/pid")
	if err != nil || pids != o.pids || descendsFrom(pid, []int{t.PID}) {
		return false
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err == nil && slices.ContainsFunc(tasks, func(task os.DirEntry) bool { // not the first one: of a thread that has ended some cgroups are not shown
		return task.Name() != strconv.Itoa(pid) && cgroupOfThread(pid, task.Name()) == cgroupOf(os.Getpid())
	})
}

// userOf gives the effective user of a process, as this one sees it.
func userOf(pid int) (uid int, ok bool) {
	_, err := fmt.Sscanf(statusOf(pid, "Uid"), "%d %d", new(int), &uid)
	return uid, err == nil
}

// Jobs lists the other processes that have a job for faultgraft (see Job) and for which want is true. They are root's, and in this
// process's mount namespace, as no container is.
func Jobs(want func(pid int, job, stateDir string) bool) ([]int, error) {
	all, err := allProcesses()
	if err != nil {
		return nil, err
	}
	ours, err := identify("/proc/self/ns/mnt")
	if err != nil {
		return nil, fmt.Errorf("look at this process: %w", err)
	}
	return looks.filter(all, func(pid int) bool {
		job, dir := Job(pid)
		if job == "" {
			return false
		}
		uid, ok := userOf(pid)
		ns, err := identifyOf(pid, "ns/mnt")
		// Asked at last: it may walk the process's paths, and a container's can lead to a file system that never answers.
		return ok && uid == 0 && err == nil && ns == ours && want(pid, job, dir)
	}), nil
}

// OfTheHost tells that a process is root's and in this process's namespaces of process ids and users, as keepers are and no usual container is.
func OfTheHost(pid int) bool {
	if uid, ok := userOf(pid); !ok || uid != 0 {
		return false
	}
	for _, link := range []string{"ns/pid", "ns/user"} {
		ours, err := identify("/proc/self/" + link)
		if its, ierr := identifyOf(pid, link); err != nil || ierr != nil || its != ours {
			return false
		}
	}
	return true
}
