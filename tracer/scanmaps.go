package tracer

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mapFlags are the VmFlags of a process's maps. Reading them takes the kernel a walk
// through all pages, so it is not done again in the stop where no memory is locked,
// nor was.
type mapFlags struct {
	locked bool // some memory was locked
	of     map[mapLine][]string
}

// mapsText is what /proc/PID/maps says, and what follows from that. It is not changed.
type mapsText struct {
	text       []byte
	lines      []mapLine
	code       []uint64       // the ends of maps that code of ours can be in
	executable map[inode]bool // files that are mapped for execution
}

type inode struct{ dev, ino uint64 }

// reread reads the maps of a thread anew. Mostly they are what they were, and to take the text
// apart takes as long as the kernel takes to write it.
func (m *mapsText) reread(tid int) (now *mapsText, err error) {
	err = withProc(procPath(tid, "maps"), func(text []byte) error {
		if m != nil && bytes.Equal(text, m.text) {
			now = m
			return nil
		}
		now = &mapsText{text: bytes.Clone(text), executable: map[inode]bool{}}
		now.lines, err = parseMaps(now.text)
		return err
	})
	if err != nil || now == m {
		return now, err
	}
	for _, l := range now.lines {
		if mayHoldCode(l) {
			now.code = append(now.code, l.end)
		}
		if l.prot&unix.PROT_EXEC != 0 && l.ino != 0 {
			now.executable[inode{l.dev, l.ino}] = true
		}
	}
	return now, nil
}

// scanMaps looks at the memory maps of thread tid; locked is its VmLck.
func (s *scanner) scanMaps(pid, tid int, locked string, remember bool) (*memory, error) {
	m := &memory{pid: pid, tid: tid}
	text, err := s.maps[pid].reread(tid)
	if err != nil {
		if gone(err) {
			return m, nil
		}
		return nil, fmt.Errorf("maps of process %d: %w", pid, err)
	}
	s.maps[pid] = text
	lines := text.lines
	if !remember { // a look at what stands
		m.lines = lines
	}
	m.aio = s.lookMemory(pid, tid, lines)
	known := s.looked[pid]
	if known == nil && remember {
		known = map[mapLine]*Object{}
		s.looked[pid] = known
	}
	again := false // VmFlags were read
	for _, l := range lines {
		if !strings.HasPrefix(l.path, "/") || s.o.Device != 0 && l.dev != s.o.Device {
			continue
		}
		o, seen := known[l]
		if !seen {
			o, err = s.lookMap(pid, tid, l)
			if err != nil && !gone(err) {
				return nil, fmt.Errorf("map %x-%x of process %d: %w (CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE is needed)", l.start, l.end, pid, err)
			}
			if remember && err == nil { // one that is gone may be there again by the stop
				known[l] = o
			}
		}
		if o == nil {
			continue
		}
		p := &place{obj: *o, line: l}
		p.obj.TID = tid
		if text.executable[inode{l.dev, l.ino}] && !s.o.Executables {
			s.skip(p.obj, reasonExecutable)
			continue
		}
		vm := s.flags[pid]
		if vm.of[l] == nil || !again && (locked != "0 kB" || vm.locked) {
			again = true
			if vm, err = readMapFlags(pid, tid, lines); err != nil {
				return nil, err
			}
			s.flags[pid] = vm
		}
		p.vm = vm.of[l]
		// VM_MAYWRITE: the file was opened for writing, or the map is private. Not by the
		// mode of the link in map_files: the kernel keeps that of an earlier map of the
		// same range (map_files_d_revalidate in fs/proc/base.c)
		if l.shared && slices.Contains(p.vm, "mw") {
			p.obj.Flags = unix.O_RDWR
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
			if s.o.RequireRoom && noRoom(err) {
				return nil, err
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
	if err != nil || !strings.HasPrefix(link, "/") {
		return nil, err
	}
	id, err := identify(path)
	if err != nil {
		return nil, err
	}
	o := &Object{PID: pid, TID: tid, Kind: Map, FD: -1, MountID: id.mountID, Dev: id.dev, Ino: id.ino, Mode: id.mode,
		Start: l.start, End: l.end, Offset: l.offset, Shared: l.shared, Prot: l.prot}
	o.Path, o.Deleted = cutDeleted(link)
	if !s.o.Match(o) {
		return nil, nil
	}
	return o, nil
}

func readMapFlags(pid, tid int, lines []mapLine) (mapFlags, error) {
	text, err := readProc(procPath(tid, "smaps"))
	if err != nil && !gone(err) {
		return mapFlags{}, fmt.Errorf("smaps of process %d: %w", pid, err)
	}
	byStart := parseMapFlags(text)
	r := mapFlags{of: map[mapLine][]string{}}
	for _, l := range lines {
		if f, ok := byStart[l.start]; ok {
			r.of[l] = f
			r.locked = r.locked || slices.Contains(f, "lo")
		}
	}
	return r, nil
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
