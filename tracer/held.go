package tracer

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Files that the kernel holds for a process beside its descriptors, directories
// and maps cannot be swapped. They are found and reported: while the processes
// run, and again within the stop where there was something or is something new.
// What comes to an old socket or ring between the two is found by the next swap.

// heldScan is what is known of such files.
type heldScan struct {
	reported map[int][]heldReport // by process; 0 for what belongs to none
	behind   map[heldKey]heldSeen // what the live look found behind sockets, rings and such
	rings    map[uint64]bool      // io_urings that some process has a descriptor of, by inode
	mapped   map[uint64]Object    // io_urings that are mapped
	patient  time.Duration        // how long live looks may still wait for queues to become empty
	text     []byte
}

func newHeldScan() heldScan {
	return heldScan{
		reported: map[int][]heldReport{}, behind: map[heldKey]heldSeen{}, rings: map[uint64]bool{}, mapped: map[uint64]Object{},
		patient: queuePatience, text: make([]byte, 4096),
	}
}

// heldKey is a descriptor of a process' own table behind which such files can be.
type heldKey struct{ pid, fd int }

// heldSeen is what the live look found behind a descriptor.
type heldSeen struct {
	link    string
	queued  int // descriptors in the queue of a socket
	reports []heldReport
}

// heldReport is one file that is held, or one that may be.
type heldReport struct {
	ObjectReport
	keeps bool // it works on as it is: no reason to refuse
}

// holderKind is the kind of what can be behind a nameless descriptor, by the text
// of its link: Descriptor for nothing.
func holderKind(link string) Kind {
	if strings.HasPrefix(link, "socket:") {
		return InFlight
	}
	switch strings.TrimPrefix(link, "anon_inode:") {
	case "[io_uring]":
		return RingFile
	case "inotify", "[fanotify]":
		return Watch
	case "[eventpoll]":
		return Polled
	}
	return Descriptor
}

// heldSource is a descriptor behind which files may be held.
type heldSource struct {
	g     *getter
	dir   int // of fdinfo
	fd    int
	link  string
	table *table
	seen  int // descriptors in flight so far
}

// object is the start of a report.
func (h *heldSource) object(kind Kind) Object {
	return Object{PID: h.g.pid, TID: h.g.tid, Kind: kind, FD: h.fd}
}

// lookHeld looks behind one descriptor.
func (s *scanner) lookHeld(h *heldSource, remember bool) error {
	key, own := heldKey{h.g.pid, h.fd}, h.g.pid == h.g.tid
	was, seen := s.behind[key]
	seen = seen && own && was.link == h.link
	if seen && !remember && (len(was.reports) == 0 || was.reports[0].keeps) { // what works on can wait
		s.report(was.reports)
		return nil
	}
	text, err := fdInfoText(h.dir, h.fd, s.text)
	if err != nil {
		if gone(err) {
			return nil
		}
		return fmt.Errorf("fdinfo of descriptor %d of process %d: %w", h.fd, h.g.pid, err)
	}
	now := heldSeen{link: h.link}
	switch holderKind(h.link) {
	case InFlight:
		if now.queued, _, err = parseQueued(text); err == nil && now.queued > 0 {
			if seen && !remember && was.queued == now.queued {
				now.reports = was.reports
			} else {
				now.reports, err = s.emptyQueue(h, &now.queued, remember)
			}
		}
	case RingFile:
		now.reports, err = s.ringFiles(h, text)
	case Watch:
		now.reports, err = s.watches(h, text)
	case Polled:
		now.reports, err = s.polledFiles(h, text)
	}
	if err != nil { // a later kernel's; a swap must not fail for that
		o := h.object(holderKind(h.link))
		o.Path = h.link
		now.reports = s.untold(o, "it cannot be told which files are held here: "+err.Error())
	}
	if own && remember {
		s.behind[key] = now
	}
	s.report(now.reports)
	return nil
}

// untold reports what may be part of the swap, if it may: Match decides by the
// process, there is no path.
func (s *scanner) untold(o Object, reason string) []heldReport {
	if !s.o.Match(&o) {
		return nil
	}
	return []heldReport{{ObjectReport: ObjectReport{Object: o, Reason: reason}}}
}

// report takes reports over, each once.
func (s *scanner) report(all []heldReport) {
	for _, r := range all {
		pid := r.Object.PID
		if !slices.Contains(s.reported[pid], r) {
			s.reported[pid] = append(s.reported[pid], r)
		}
	}
}

// forget drops the reports of a process that is looked at again. Of what goes with
// an object that was swapped meanwhile there is nothing to be seen any more.
func (h *heldScan) forget(pid int) {
	h.reported[pid] = slices.DeleteFunc(h.reported[pid], func(r heldReport) bool {
		return r.Object.Kind != AIOContext && r.Object.Kind != Polled
	})
}

// ended drops all that is known of a process.
func (h *heldScan) ended(pid int) {
	delete(h.reported, pid)
	maps.DeleteFunc(h.behind, func(k heldKey, _ heldSeen) bool { return k.pid == pid })
	maps.DeleteFunc(h.mapped, func(_ uint64, o Object) bool { return o.PID == pid })
}

// heldReports lists what was reported of all processes, in their order: what works
// on, or what cannot be swapped.
func (h *heldScan) heldReports(keeps bool) (r []ObjectReport) {
	for _, pid := range slices.Sorted(maps.Keys(h.reported)) {
		for _, one := range h.reported[pid] {
			if one.keeps == keeps {
				r = append(r, one.ObjectReport)
			}
		}
	}
	return r
}

// identifyFile fills in what a descriptor of ours is.
func identifyFile(o *Object, fd int) error {
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	link, err := readLink(path)
	if err != nil {
		return err
	}
	o.Path, o.Deleted = cutDeleted(link)
	id, err := identify(path)
	if err != nil {
		return err
	}
	o.MountID, o.Dev, o.Ino, o.Mode = id.mountID, id.dev, id.ino, id.mode
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	o.Flags = flags
	return err
}
