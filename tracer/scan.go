package tracer

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// slot is one number of a descriptor table that is part of the swap.
type slot struct {
	fd      int
	cloexec bool
	obj     Object
	item    *item
}

// table is one descriptor table: of a process, or of threads that have their own.
type table struct {
	pid, tid int // tid: a thread that has it
	all      []int
	slots    []*slot
	dead     bool // the thread had ended, and so has no table
}

// place is a directory or a map that is part of the swap.
type place struct {
	obj  Object
	item *item
	line mapLine  // of a map
	vm   []string // VmFlags of a map
}

// fsInfo is what threads with common directories share (CLONE_FS).
type fsInfo struct {
	pid, tid  int
	cwd, root *place
}

// memory is what threads with common memory share (CLONE_VM).
type memory struct {
	pid, tid int
	lines    []mapLine // the map as it was read
	maps     []*place
	exe      *place // what it was started from
	aio      bool   // has a context of io_setup(2)
}

// scanner finds the objects of processes and groups them into items.
type scanner struct {
	o       *Options
	self    int
	items   []*item
	byFile  map[fileKey]*kcmpSet[*item]
	byPlace map[placeKey]*item
	seen    map[int]map[int]*slot       // pid, fd: what the live scan found in the table of the leader
	passed  map[slotKey]string          // link of a descriptor that the live scan found not to be part of the swap
	links   map[string]bool             // links of those that are: a file can be open so and so, on two mounts or as two inodes of a layer
	looked  map[int]map[mapLine]*Object // pid: what the live scan found of a map, nil if it is not part of the swap
	flags   map[int]mapFlags            // pid: VmFlags of maps that were found
	maps    map[int]*mapsText           // pid: its maps as they were last
	types   map[uint64]string           // file system by mount id
	skipped []ObjectReport
	// within, while processes stand, has another thread do what may have to wait for a file system.
	within func(what string, do func() error) error
	heldScan
}

// slotKey is a slot of a process.
type slotKey struct{ pid, fd int }

func newScanner(o *Options) *scanner {
	return &scanner{o: o, self: os.Getpid(), byFile: map[fileKey]*kcmpSet[*item]{}, byPlace: map[placeKey]*item{},
		seen: map[int]map[int]*slot{}, passed: map[slotKey]string{}, links: map[string]bool{}, looked: map[int]map[mapLine]*Object{}, flags: map[int]mapFlags{}, maps: map[int]*mapsText{}, types: map[uint64]string{},
		heldScan: newHeldScan()}
}

// reset forgets holders, not items: what was replaced before the stop stays.
func (s *scanner) reset() {
	for _, it := range s.items {
		it.Holders = nil
	}
	s.skipped = nil
}

// ended drops all that is known of a process.
func (s *scanner) ended(pid int) {
	delete(s.seen, pid)
	delete(s.looked, pid)
	delete(s.flags, pid)
	delete(s.maps, pid)
	s.heldScan.ended(pid)
}

func (s *scanner) skip(o Object, reason string) {
	s.skipped = append(s.skipped, ObjectReport{Object: o, Reason: reason})
}

// gone reports errors that mean that a task or a file is not there any more.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EBADF)
}

// scanTable looks at each slot of the table of thread tid. pidfd is that of the
// process.
func (s *scanner) scanTable(pid, tid, pidfd int, remember bool) (*table, error) {
	t := &table{pid: pid, tid: tid}
	var err error
	for range 2 { // an empty table of a thread that lives: another one may have taken the number of one that ended
		if t.all, err = numbers(procPath(tid, "fd")); err != nil {
			if gone(err) {
				t.dead = true
				return t, nil
			}
			return nil, fmt.Errorf("descriptors of process %d: %w", pid, err)
		}
		if len(t.all) > 0 {
			break
		}
		if t.dead = ended(tid); t.dead {
			return t, nil
		}
	}
	known := map[int]*slot{}
	if pid == tid {
		if s.seen[pid] != nil {
			known = s.seen[pid]
		} else if remember {
			s.seen[pid] = known
		}
	}
	g := getter{pid: pid, tid: tid, pidfd: pidfd, own: -1}
	defer g.close()
	dir, err := openFdInfo(tid)
	if err != nil {
		if gone(err) {
			return t, nil
		}
		return nil, fmt.Errorf("fdinfo of process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(dir) }() // O_PATH
	still := make([]bool, len(t.all))
	spread(len(still), func(i int) {
		was := known[t.all[i]]
		still[i] = was != nil && kcmp(tid, s.self, kcmpFile, was.fd, was.item.file) == 0
	})
	var holders []heldSource
	for i, fd := range t.all {
		if still[i] {
			sl := *known[fd]
			sl.item.Holders = append(sl.item.Holders, sl.obj)
			t.slots = append(t.slots, &sl)
			continue
		}
		s.o.Progress()
		link, err := readLink(procPath(tid, "fd/"+strconv.Itoa(fd)))
		if err != nil {
			if gone(err) {
				continue
			}
			return nil, fmt.Errorf("descriptor %d of process %d: %w", fd, pid, err)
		}
		if !strings.HasPrefix(link, "/") { // a socket, a pipe, an anonymous inode
			if holderKind(link) != Descriptor {
				holders = append(holders, heldSource{g: &g, dir: dir, fd: fd, link: link})
			}
			continue
		}
		if !remember && pid == tid && s.passed[slotKey{pid, fd}] == link && !s.links[link] {
			continue // none of ours before the stop, and the same file still
		}
		before := len(s.skipped)
		sl, err := s.look(&g, dir, fd, link)
		for tries := 0; errors.Is(err, errSlotChanged) && tries < 100; tries++ {
			if link, err = readLink(procPath(tid, "fd/"+strconv.Itoa(fd))); err == nil {
				sl, err = s.look(&g, dir, fd, link)
			}
		}
		if gone(err) {
			continue // not passed: the same file may be there again by the stop
		}
		if err != nil {
			return nil, fmt.Errorf("descriptor %d of process %d: %w", fd, pid, err)
		}
		if remember {
			known[fd] = sl
			if sl == nil && pid == tid && len(s.skipped) == before {
				s.passed[slotKey{pid, fd}] = link
			}
		}
		if sl != nil {
			t.slots = append(t.slots, sl)
		}
	}
	for i := range holders {
		holders[i].table = t
		if err := s.lookHeld(&holders[i], remember); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// errSlotChanged: a running program put another file into a slot while it was looked at.
var errSlotChanged = errors.New("the slot changes all the time")

// isAnother reports that a descriptor of ours is not for what /proc told of an object: the
// program changed it between the two. A file that was renamed in that time is the same one:
// others may do so while its holder stands.
func isAnother(o *Object, file int) (bool, error) {
	is := Object{}
	if err := identifyFile(&is, file); err != nil {
		return false, fmt.Errorf("look at %s: %w", o, err)
	}
	if is.MountID != o.MountID || is.Dev != o.Dev || is.Ino != o.Ino || o.Kind == Descriptor && (is.Flags^o.Flags)&openFlags != 0 {
		return true, nil
	}
	o.Path, o.Deleted = is.Path, is.Deleted
	return false, nil
}

// look takes in one slot, nil if it is not part of the swap. What /proc tells of it and the
// duplicate that we take must be of one file. The error is gone if it was closed meanwhile.
func (s *scanner) look(g *getter, dir, fd int, link string) (*slot, error) {
	id, err := identify(procPath(g.tid, "fd/"+strconv.Itoa(fd)))
	if err != nil {
		if gone(err) {
			return nil, err
		}
		return nil, fmt.Errorf("stat of descriptor %d of process %d (%s): %w", fd, g.pid, link, err)
	}
	if s.o.Device != 0 && id.dev != s.o.Device { // most are, and to read fdinfo takes longer than all else
		return nil, nil
	}
	fi, err := readFdInfo(dir, fd)
	if err != nil {
		if gone(err) {
			return nil, err
		}
		return nil, fmt.Errorf("fdinfo of descriptor %d of process %d: %w", fd, g.pid, err)
	}
	o := Object{PID: g.pid, TID: g.tid, Kind: Descriptor, FD: fd, MountID: fi.mountID, Flags: fi.flags, Dev: id.dev, Ino: id.ino, Mode: id.mode}
	o.Path, o.Deleted = cutDeleted(link)
	if !s.o.Match(&o) {
		return nil, nil
	}
	if fi.lease {
		s.skip(o, "it has a lease (F_SETLEASE), which a swap would drop")
		return nil, nil
	}
	file, err := g.get(fd)
	if err != nil {
		if gone(err) || s.o.RequireRoom && noRoom(err) {
			return nil, err
		}
		s.skip(o, err.Error())
		return nil, nil
	}
	if changed, err := isAnother(&o, file); err != nil || changed {
		_ = unix.Close(file) // a duplicate
		if err == nil {
			return nil, errSlotChanged
		}
		s.skip(o, err.Error())
		return nil, nil
	}
	s.fileSystem(g.pid, o.MountID) // to know it in the stop
	it := s.itemOf(&o, file)
	s.links[link] = true
	it.Holders = append(it.Holders, o)
	it.locked = it.locked || len(fi.locks) > 0 || s.o.Locked != nil && s.o.Locked(&o)
	return &slot{fd: fd, cloexec: fi.flags&unix.O_CLOEXEC != 0, obj: o, item: it}, nil
}

// open opens a file of a target.
func (s *scanner) open(path string, flags int) (file int, err error) {
	if s.within == nil || flags&unix.O_PATH != 0 {
		return unix.Open(path, flags, 0)
	}
	opened := make(chan int, 1) // who gave up does not wait for it
	err = s.within("open "+path, func() error {
		fd, err := unix.Open(path, flags, 0)
		opened <- fd
		return err
	})
	if err != nil {
		return -1, err
	}
	return <-opened, nil
}

// scanFS looks at the directories of thread tid.
func (s *scanner) scanFS(pid, tid int) (*fsInfo, error) {
	f := &fsInfo{pid: pid, tid: tid}
	for _, k := range []struct {
		kind Kind
		name string
		to   **place
	}{{Cwd, "cwd", &f.cwd}, {Root, "root", &f.root}} {
		path := procPath(tid, k.name)
		link, err := readLink(path)
		if err != nil {
			if gone(err) {
				return f, nil
			}
			return nil, fmt.Errorf("%s of process %d: %w", k.name, pid, err)
		}
		if !strings.HasPrefix(link, "/") { // "(unreachable)…": of another mount namespace
			continue
		}
		id, err := identify(path)
		if err != nil {
			if gone(err) {
				return f, nil
			}
			return nil, fmt.Errorf("%s of process %d: %w", k.name, pid, err)
		}
		o := Object{PID: pid, TID: tid, Kind: k.kind, FD: -1, MountID: id.mountID, Dev: id.dev, Ino: id.ino, Mode: id.mode, Flags: unix.O_PATH}
		o.Path, o.Deleted = cutDeleted(link)
		if !s.o.Match(&o) {
			continue
		}
		it, err := s.placeItem(&o, path, unix.O_PATH)
		if err != nil {
			if gone(err) {
				return f, nil
			}
			if s.o.RequireRoom && noRoom(err) {
				return nil, err
			}
			s.skip(o, err.Error())
			continue
		}
		*k.to = &place{obj: o, item: it}
	}
	return f, nil
}

// getter takes duplicates of the descriptors of one table.
type getter struct {
	pid, tid, pidfd int
	own             int // pidfd of the thread, if it is not the leader
}

func (g *getter) get(fd int) (int, error) {
	pidfd := g.pidfd
	if g.tid != g.pid {
		if g.own < 0 {
			own, err := unix.PidfdOpen(g.tid, unix.PIDFD_THREAD)
			if err != nil {
				return -1, fmt.Errorf("thread %d has a descriptor table of its own, which needs Linux 6.9: %w", g.tid, err)
			}
			g.own = own
		}
		pidfd = g.own
	}
	n, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor %d of process %d: %w", fd, g.pid, err)
	}
	return n, nil
}

func (g *getter) close() {
	if g.own >= 0 {
		_ = unix.Close(g.own)
	}
}
