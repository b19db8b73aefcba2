package tracer

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// scanMaps looks at the memory maps of thread tid.
func (s *scanner) scanMaps(pid, tid int, remember bool) (*memory, error) {
	m := &memory{pid: pid, tid: tid}
	text, err := readProc(procPath(tid, "maps"))
	if err != nil {
		if gone(err) {
			return m, nil
		}
		return nil, fmt.Errorf("maps of process %d: %w", pid, err)
	}
	lines, err := parseMaps(text)
	if err != nil {
		return nil, fmt.Errorf("maps of process %d: %w", pid, err)
	}
	m.aio = s.lookMemory(pid, tid, lines)
	type file struct{ dev, ino uint64 }
	executable := map[file]bool{}
	for _, l := range lines {
		if l.prot&unix.PROT_EXEC != 0 && l.ino != 0 {
			executable[file{l.dev, l.ino}] = true
		}
	}
	known := s.looked[pid]
	if known == nil && remember {
		known = map[mapLine]*Object{}
		s.looked[pid] = known
	}
	for _, l := range lines {
		if !strings.HasPrefix(l.path, "/") || s.o.Device != 0 && l.dev != s.o.Device {
			continue
		}
		o, seen := known[l]
		if !seen {
			if o, err = s.lookMap(pid, tid, l); err != nil {
				return nil, err
			}
			if remember {
				known[l] = o
			}
		}
		if o == nil {
			continue
		}
		p := &place{obj: *o, line: l}
		p.obj.TID = tid
		if executable[file{l.dev, l.ino}] && !s.o.Executables {
			s.skip(p.obj, reasonExecutable)
			continue
		}
		if p.vm = s.flags[pid][l]; p.vm == nil {
			if err := s.readMapFlags(pid, tid, lines); err != nil {
				return nil, err
			}
			p.vm = s.flags[pid][l]
		}
		if reason := mapObstacle(p.vm); reason != "" {
			s.skip(p.obj, reason)
			continue
		}
		flags := p.obj.Flags
		if s.o.MapsByPath {
			flags = unix.O_PATH
		}
		if p.item, err = s.placeItem(&p.obj, mapFile(tid, l), flags); err != nil {
			if gone(err) {
				continue
			}
			s.skip(p.obj, err.Error())
			continue
		}
		m.maps = append(m.maps, p)
	}
	if s.o.Executables {
		if m.exe, err = s.scanExecutable(pid, tid); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Reasons in reports that callers may look for.
const (
	reasonExecutable = "file is mapped for execution: the running program and its libraries are left as they are"
)

func mapFile(tid int, l mapLine) string {
	return procPath(tid, fmt.Sprintf("map_files/%x-%x", l.start, l.end))
}

// lookMap asks whether a map is part of the swap; nil if not.
func (s *scanner) lookMap(pid, tid int, l mapLine) (*Object, error) {
	path := mapFile(tid, l)
	link, err := readLink(path)
	if err == nil && strings.HasPrefix(link, "/") {
		var id identity
		if id, err = identify(path); err == nil {
			o := Object{PID: pid, TID: tid, Kind: Map, FD: -1, MountID: id.mountID, Dev: id.dev, Ino: id.ino, Mode: id.mode,
				Start: l.start, End: l.end, Offset: l.offset, Shared: l.shared, Prot: l.prot}
			o.Path, o.Deleted = cutDeleted(link)
			if l.shared {
				// the link has the access mode of the mapped file (fs/proc/base.c,
				// proc_map_files_instantiate): with write access the map can become
				// writable later, mprotect(2)
				var st unix.Stat_t
				if err = unix.Lstat(path, &st); err == nil && st.Mode&unix.S_IWUSR != 0 {
					o.Flags = unix.O_RDWR
				}
			}
			if err == nil {
				if !s.o.Match(&o) {
					return nil, nil
				}
				return &o, nil
			}
		}
	}
	if err == nil || gone(err) {
		return nil, nil
	}
	return nil, fmt.Errorf("map %x-%x of process %d: %w (CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE is needed)", l.start, l.end, pid, err)
}

func (s *scanner) readMapFlags(pid, tid int, lines []mapLine) error {
	text, err := readProc(procPath(tid, "smaps"))
	if err != nil && !gone(err) {
		return fmt.Errorf("smaps of process %d: %w", pid, err)
	}
	byStart := parseMapFlags(text)
	r := map[mapLine][]string{}
	for _, l := range lines {
		if f, ok := byStart[l.start]; ok {
			r[l] = f
		}
	}
	s.flags[pid] = r
	return nil
}

// mapObstacle says why a map of these VmFlags (proc(5)) cannot be swapped, "" if
// it can.
func mapObstacle(vm []string) string {
	for _, f := range []struct{ flag, reason string }{
		{"io", "map of device memory"}, {"pf", "map of device memory"},
		{"ht", "map of huge pages"},
		{"um", "map is watched by userfaultfd"}, {"uw", "map is watched by userfaultfd"}, {"ui", "map is watched by userfaultfd"},
		{"sl", "map is sealed (mseal)"},
	} {
		if slices.Contains(vm, f.flag) {
			return f.reason
		}
	}
	return ""
}
