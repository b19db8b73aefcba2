package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Snapshot is what the kernel knows of the lab at one moment: what a graft may
// not leave behind.
type Snapshot struct {
	// Processes are those in the lab's mount namespace with all their
	// descendants, and every process of the machine that runs a faultgraft binary
	// of this lab. By PID.
	Processes map[int]string
	// Mounts are the lines of /proc/PID/mountinfo by the name of the mount namespace's owner.
	Mounts map[string][]string
	// Open is, for the processes that the caller named, what they hold open:
	// descriptors with flags and mount, working folder, root, and maps of files.
	Open map[int][]string

	// machine are the keys of Mounts whose paths are those of the machine, not of a container.
	machine map[string]bool
}

// Snapshot looks at the lab; pids are processes whose descriptors, folders and
// maps are wanted too.
func (l *Lab) Snapshot(pids ...int) (*Snapshot, error) {
	procs, err := readProcesses()
	if err != nil {
		return nil, err
	}
	s := &Snapshot{Processes: map[int]string{}, Mounts: map[string][]string{}, Open: map[int][]string{}, machine: map[string]bool{}}
	seen := map[string]bool{}
	for _, p := range l.pick(procs) {
		s.Processes[p.pid] = p.comm
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", p.pid))
		if err != nil || seen[ns] {
			continue // it ended, or its namespace is in already
		}
		lines, err := mountinfo(p.pid)
		if err != nil {
			return nil, err
		}
		if len(lines) > 0 {
			seen[ns] = true
			name := fmt.Sprintf("%s (process %d)", p.comm, p.pid)
			s.Mounts[name] = lines
			s.machine[name] = l.Private() && isMember(l.source(), p.pid)
		}
	}
	for _, pid := range pids {
		if s.Open[pid], err = openObjects(pid); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Diff lists in words how after differs from s; empty when it does not. A
// process that is in one of them only takes its mount namespace with it.
func (s *Snapshot) Diff(after *Snapshot) []string {
	var d []string
	for _, pid := range slices.Sorted(maps.Keys(s.Processes)) {
		if _, ok := after.Processes[pid]; !ok {
			d = append(d, fmt.Sprintf("process %d (%s) is gone", pid, s.Processes[pid]))
		}
	}
	for _, pid := range slices.Sorted(maps.Keys(after.Processes)) {
		if _, ok := s.Processes[pid]; !ok {
			d = append(d, fmt.Sprintf("process %d (%s) is new", pid, after.Processes[pid]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Mounts)) {
		if lines, ok := after.Mounts[name]; ok {
			before := s.Mounts[name]
			if s.machine[name] {
				before = slices.DeleteFunc(slices.Clone(before), func(l string) bool {
					return !slices.Contains(lines, l) && mountPointRemoved(l)
				})
			}
			d = append(d, diffLines("mounts of "+name, before, lines)...)
		}
	}
	for _, pid := range slices.Sorted(maps.Keys(s.Open)) {
		if lines, ok := after.Open[pid]; ok {
			d = append(d, diffLines(fmt.Sprintf("open in process %d", pid), s.Open[pid], lines)...)
		}
	}
	return d
}

// Settle takes snapshots until one is like before, for what ends a moment later
// by itself (a shim, a keeper), and returns the differences that are left when
// ctx ends.
func (l *Lab) Settle(ctx context.Context, before *Snapshot) ([]string, error) {
	pids := slices.Sorted(maps.Keys(before.Open))
	for {
		now, err := l.Snapshot(pids...)
		if err != nil {
			return nil, err
		}
		d := before.Diff(now)
		if len(d) == 0 {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return d, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// mountPointRemoved says whether the folder or file under a mount is no longer
// there. The lab's namespace began with copies of the machine's mounts; who
// removes a mount point outside takes the copy with it (Linux 3.18 and later).
func mountPointRemoved(line string) bool {
	f := strings.Fields(line) // id parent major:minor root mountpoint ...
	if len(f) < 5 {
		return false
	}
	// blanks are written as \040 and so on: proc_pid_mountinfo(5)
	path := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func diffLines(what string, before, after []string) []string {
	var d []string
	for _, l := range before {
		if !slices.Contains(after, l) {
			d = append(d, what+": gone: "+l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			d = append(d, what+": new: "+l)
		}
	}
	return d
}

type process struct {
	pid, parent int
	comm        string
}

// readProcesses lists the processes of the machine, zombies left out: they hold nothing.
func readProcesses() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it ended
		}
		// pid (comm) state ppid ...; comm may hold blanks and parentheses: proc_pid_stat(5)
		open, end := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')')
		f := strings.Fields(string(b[end+1:]))
		if f[0] == "Z" || f[0] == "X" {
			continue
		}
		parent, err := strconv.Atoi(f[1])
		if err != nil {
			return nil, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		all = append(all, process{pid, parent, string(b[open+1 : end])})
	}
	return all, nil
}

// pick picks the lab's processes, in the order of their PIDs.
func (l *Lab) pick(all []process) []process {
	source := l.source()
	in := map[int]bool{}
	for _, p := range all {
		if p.pid == os.Getpid() {
			continue
		}
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid)) // none: kernel thread, or it ended
		exe = strings.TrimSuffix(exe, " (deleted)")
		ours := exe != "" && (exe == l.binary || exe == l.command())
		in[p.pid] = ours || l.Private() && isMember(source, p.pid)
	}
	for grew := true; grew; {
		grew = false
		for _, p := range all {
			if !in[p.pid] && in[p.parent] {
				in[p.pid], grew = true, true
			}
		}
	}
	all = slices.DeleteFunc(slices.Clone(all), func(p process) bool { return !in[p.pid] })
	slices.SortFunc(all, func(a, b process) int { return cmp.Compare(a.pid, b.pid) })
	return all
}

// mountinfo reads a process's mounts, one line each: proc_pid_mountinfo(5). None when it ended.
func mountinfo(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if ended(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n"), nil
}

// openObjects lists what a process holds open, without what changes as it works: offsets, and maps of no file.
func openObjects(pid int) ([]string, error) {
	var out []string
	dir := fmt.Sprintf("/proc/%d", pid)
	for _, name := range []string{"cwd", "root"} {
		link, err := os.Readlink(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("what process %d holds: %w", pid, err)
		}
		out = append(out, name+" "+link)
	}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return nil, fmt.Errorf("what process %d holds: %w", pid, err)
	}
	for _, fd := range fds {
		link, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			return nil, err
		}
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		line := "fd " + fd.Name() + " " + link
		for l := range strings.Lines(string(info)) {
			if k, v, ok := strings.Cut(strings.TrimSpace(l), ":"); ok && (k == "flags" || k == "mnt_id" || k == "ino" || k == "lock") {
				line += " " + k + "=" + strings.Join(strings.Fields(v), " ")
			}
		}
		out = append(out, line)
	}
	b, err := os.ReadFile(filepath.Join(dir, "maps"))
	if err != nil {
		return nil, err
	}
	for l := range strings.Lines(string(b)) {
		// address perms offset dev inode path: proc_pid_maps(5)
		if f := strings.Fields(l); len(f) >= 6 && f[4] != "0" {
			out = append(out, "map "+strings.Join(f, " "))
		}
	}
	return out, nil
}

// ended says whether err is of a process that is no longer there.
func ended(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || err != nil && strings.Contains(err.Error(), "no such process") || err != nil && strings.Contains(err.Error(), "invalid argument")
}
