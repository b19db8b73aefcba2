package tracer

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const reasonRingFile = "it is a fixed file of an io_uring: requests that name the slot go on with the file as it is now. Have the program register the file anew (IORING_REGISTER_FILES_UPDATE)"

// ringFiles reports the fixed files of an io_uring. The kernel tells their paths
// only, and there is no way to a descriptor of one but a request in the program's
// own queue.
func (s *scanner) ringFiles(h *heldSource, text []byte) (r []heldReport, err error) {
	if id, err := identify(procPath(h.g.tid, "fd/"+strconv.Itoa(h.fd))); err == nil {
		s.rings[id.ino] = true
	}
	files, told, err := parseRing(text)
	for tries := 0; err == nil && !told && tries < 20; tries++ {
		// somebody has its lock: the kernel does not wait for it (mutex_trylock in
		// io_uring_show_fdinfo)
		time.Sleep(100 * time.Microsecond)
		if text, err = fdInfoText(h.dir, h.fd, s.text); err != nil {
			if gone(err) {
				return nil, nil
			}
			return nil, err
		}
		files, told, err = parseRing(text)
	}
	if err != nil {
		return nil, err
	}
	if !told {
		return s.untoldRing(h.object(RingFile), "the ring is busy"), nil
	}
	names := 0
	for _, f := range files {
		o := h.object(RingFile)
		o.Index = f.slot
		o.Path, o.Deleted = cutDeleted(f.path)
		switch {
		case strings.HasPrefix(f.path, "/"):
			if s.o.Match(&o) {
				r = append(r, heldReport{ObjectReport: ObjectReport{Object: o, Reason: reasonRingFile}})
			}
		case !strings.Contains(f.path, ":"): // "socket:[4711]", "anon_inode:…"; older kernels show a file's name without its folder
			names++
		}
	}
	if names > 0 {
		r = append(r, s.untoldRing(h.object(RingFile), fmt.Sprintf("this kernel shows only the names of its %d files", names))...)
	}
	return r, nil
}

func (s *scanner) untoldRing(o Object, why string) []heldReport {
	o.Path = "io_uring"
	return s.untold(o, "it cannot be told whether the io_uring has fixed files here: "+why)
}

// lookMemory takes note of what else the lines of /proc/PID/maps tell.
func (s *scanner) lookMemory(pid, tid int, lines []mapLine) (aio bool) {
	for _, l := range lines {
		switch l.path {
		case "/[aio] (deleted)", "/[aio]": // aio_setup_ring, fs/aio.c
			aio = true
		case "anon_inode:[io_uring]":
			s.mapped[l.ino] = Object{PID: pid, TID: tid, Kind: RingFile, FD: -1}
		}
	}
	return aio
}

// lookRings reports rings that are mapped, but have no descriptor by which to see
// their files: IORING_SETUP_REGISTERED_FD_ONLY, or closed.
func (s *scanner) lookRings() error {
	for ino, o := range s.mapped {
		if s.rings[ino] {
			continue
		}
		if own, err := hasRing(o.TID, ino); err != nil {
			return err
		} else if own { // made between the looks at descriptors and at maps
			s.rings[ino] = true
			continue
		}
		s.report(s.untoldRing(o, "the process has no descriptor of it"))
	}
	return nil
}

// hasRing says whether a thread has a descriptor of an io_uring, or has let it go.
func hasRing(tid int, ino uint64) (bool, error) {
	fds, err := numbers(procPath(tid, "fd"))
	if err != nil {
		if gone(err) {
			return true, nil
		}
		return false, fmt.Errorf("descriptors of thread %d: %w", tid, err)
	}
	for _, fd := range fds {
		link, err := readLink(procPath(tid, "fd/"+strconv.Itoa(fd)))
		if err != nil || link != "anon_inode:[io_uring]" {
			continue
		}
		if id, err := identify(procPath(tid, "fd/"+strconv.Itoa(fd))); err == nil && id.ino == ino {
			return true, nil
		}
	}
	text, err := readProc(procPath(tid, "maps"))
	if err != nil {
		if gone(err) {
			return true, nil
		}
		return false, fmt.Errorf("maps of thread %d: %w", tid, err)
	}
	return !strings.Contains(string(text), fmt.Sprintf(" %d ", ino)), nil
}

const reasonAIO = "the process has an aio context. Requests that it has submitted may be under way, which cannot be told: they are done on the files as they were. Those that it submits from now on are not"

// lookAIO reports an aio context of a process that has files to be swapped. Only
// io_submit(2) looks descriptors up, so nothing but what is under way has an old
// file. That is no reason to refuse: its time is that of a disk.
func (s *scanner) lookAIO(f *found, pid int) {
	for _, t := range f.tables {
		if len(t.slots) > 0 {
			o := Object{PID: pid, TID: t.tid, Kind: AIOContext, FD: -1}
			s.report([]heldReport{{ObjectReport{Object: o, Reason: reasonAIO}, true}})
			return
		}
	}
}

const (
	reasonLoop = "it is the file behind %s: what is read and written through the device does not come by here. Detach the device, and set it up again on the path"
	reasonSwap = "the machine swaps to it: the kernel reads and writes its blocks past the file system. swapoff(8) frees it"
)

// lookHost finds files that the kernel holds for no process: loop devices, swap
// files. It is cheap, but not for within the stop.
func (s *scanner) lookHost() error {
	s.forget(0)
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file") // Linux 2.6.37; not there without a file
	if err != nil {
		return err
	}
	for _, f := range loops {
		b, err := os.ReadFile(f)
		if err != nil { // detached meanwhile
			continue
		}
		o := Object{Kind: LoopDevice, FD: -1}
		o.Path, o.Deleted = cutDeleted(strings.TrimSuffix(string(b), "\n"))
		device := filepath.Base(filepath.Dir(filepath.Dir(f)))
		if o.Index, err = strconv.Atoi(strings.TrimPrefix(device, "loop")); err != nil {
			continue // none of the kernel's names
		}
		if strings.HasPrefix(o.Path, "/") && s.o.Match(&o) {
			s.report([]heldReport{{ObjectReport: ObjectReport{Object: o, Reason: fmt.Sprintf(reasonLoop, "/dev/"+device)}}})
		}
	}
	b, err := os.ReadFile("/proc/swaps")
	if err != nil && !os.IsNotExist(err) { // a kernel without swap
		return fmt.Errorf("swap files: %w", err)
	}
	for _, path := range parseSwaps(b) {
		o := Object{Kind: SwapFile, FD: -1}
		o.Path, o.Deleted = cutDeleted(path)
		if s.o.Match(&o) {
			s.report([]heldReport{{ObjectReport: ObjectReport{Object: o, Reason: reasonSwap}}})
		}
	}
	return nil
}
