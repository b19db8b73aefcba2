package tracer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// job is what one thread exchanges: a descriptor table, directories, memory, or
// several of these.
type job struct {
	p     *process
	t     *thread
	table *table
	fs    *fsInfo
	mem   *memory

	r        *remote
	locks    []heldLock
	guard    func(LockPhase, []LockedFile, bool) error // Options.GuardLocks
	leaveOwn func() error                              // see transaction.ownLocks
	lost     func(*Object, Lock, error)                // Options.LockLost; nil unless the locks are elsewhere
	back     bool                                      // this is a rollback
	dirs     map[int]int                               // files of ours for directories and the executable: temporary number in the target
	maps     []stagedMap
	brk      uint64 // the program break, where the executable is exchanged
	cwd      int    // present working directory, O_PATH, where the root is exchanged; else -1
	gone     bool   // the process ended
	alone    bool   // no other job opens or closes anything while all stand: the look at the table tells what is open
	begun    bool   // commit was tried: something may be changed
	calls    int
	refused  []ObjectReport // directories that the thread may not enter

	extra    []int   // in a rollback: descriptors that were not there before
	restored []*slot // in a rollback: all slots, also those that were not changed
}

// pick says which file goes in: the new one, or in a rollback the old one.
type pick func(*item) file

func newFile(it *item) file { return file{it.repl, it.lender} }
func oldFile(it *item) file { return file{it.file, nil} }

// scratch estimates the memory for the largest batch, bytes.
func (j *job) scratch() uint64 {
	calls, messages := 256, 8
	if j.table != nil {
		calls += 4*len(j.table.slots) + 3*len(j.locks)
		messages += len(j.table.slots)/atOnce(j.table.slots) + 1
		if n := len(j.table.slots); n > 0 {
			calls += 2 * (j.table.slots[n-1].fd + 1) // holes that may be plugged
		}
	}
	if j.mem != nil {
		calls += 12 * len(j.mem.maps)
		messages += len(j.mem.maps)/maxRights + 1
	}
	return uint64(scratchHeader + calls*(callBytes+32) + messages*2048)
}

func (j *job) stageBytes() (n uint64) {
	if j.mem != nil {
		for _, m := range j.mem.maps {
			n += m.line.end - m.line.start
		}
	}
	return n
}

// controlSockets are the descriptors that our code opens in the target.
const controlSockets = 4

// makeRoom raises RLIMIT_NOFILE of the process where our sockets, temporary
// files or the slots themselves would not fit below it. The code in the target
// raises it, and puts it back, also if we die. Only above the hard limit do we
// do it from here, which the code then puts back too.
// It returns the lowest numbers that are free.
func (j *job) makeRoom(neverEmpty bool) (lowest []int, err error) {
	want, top := controlSockets, 0
	open, err := j.openNumbers()
	if err != nil && !gone(err) {
		return nil, err
	}
	used := newNumberSet(open)
	if len(open) > 0 {
		top = slices.Max(open) + 1
	}
	if j.table != nil && neverEmpty {
		want += min(len(j.table.slots), maxRights)
	}
	if j.fs != nil {
		want += 3 // cwd, root, and the present cwd
	}
	if j.mem != nil {
		want += min(len(j.mem.maps), maxRights)
		if j.mem.exe != nil {
			want++
		}
	}
	lim, err := fileLimit(j.t.tid)
	if err != nil {
		if gone(err) {
			return nil, errTargetGone
		}
		return nil, fmt.Errorf("RLIMIT_NOFILE of process %d (%s): %w", j.p.pid, j.p.comm, err)
	}
	free := 0
	for fd := 0; len(lowest) < want; fd++ {
		if used.has(fd) {
			continue
		}
		lowest = append(lowest, fd)
		if uint64(fd) < lim.Cur {
			free++
		}
	}
	above := j.table != nil && len(j.table.slots) > 0 && uint64(j.table.slots[len(j.table.slots)-1].fd) >= lim.Cur
	if free >= want && !above {
		return lowest, nil
	}
	raised := unix.Rlimit{Cur: uint64(top + want), Max: lim.Max}
	if raised.Cur > lim.Max {
		raised.Max = raised.Cur
		if err := unix.Prlimit(j.p.pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: lim.Cur, Max: raised.Max}, nil); err != nil {
			return nil, fmt.Errorf("process %d (%s) has %d free descriptor numbers below its RLIMIT_NOFILE of %d, the swap needs %d: raise the hard limit of %d: %w (CAP_SYS_RESOURCE is needed)",
				j.p.pid, j.p.comm, free, lim.Cur, want, lim.Max, err)
		}
	}
	if j.p.limit == nil {
		j.p.limit = &lim
	}
	raised.Cur, raised.Max = max(raised.Cur, j.p.raised.Cur), max(raised.Max, j.p.raised.Max)
	j.p.raised = raised
	return lowest, nil
}

// openNumbers lists the descriptors that are open in the job's table now. To read /proc once
// more takes some 7 percent of the pause of a process with many files.
func (j *job) openNumbers() ([]int, error) {
	if !j.alone || j.back || j.table == nil {
		now, err := numbers(procPath(j.t.tid, "fd"))
		if err != nil {
			return nil, fmt.Errorf("descriptors of process %d (%s): %w", j.p.pid, j.p.comm, err)
		}
		return now, nil
	}
	now := slices.Clone(j.table.all)
	if j.r != nil { // its copies of our ends are closed before the first batch
		now = append(now, j.r.theirs[:]...)
	}
	for _, fd := range j.dirs {
		now = append(now, fd)
	}
	return now, nil
}

// fileLimit reads RLIMIT_NOFILE. prlimit(2) for a process of another user needs CAP_SYS_RESOURCE
// even to read; /proc, which does not, takes twenty times as long.
func fileLimit(tid int) (lim unix.Rlimit, err error) {
	if unix.Prlimit(tid, unix.RLIMIT_NOFILE, nil, &lim) == nil {
		return lim, nil
	}
	text, err := readProc(procPath(tid, "limits"))
	if err != nil {
		return unix.Rlimit{}, err
	}
	return parseFileLimit(text)
}

// stage does what changes nothing yet: the close-on-exec flags are read, files
// for directories and maps are sent, maps are made beside the old ones.
func (j *job) stage(which pick, cwd int) error {
	if j.table != nil && !j.begun {
		b := j.r.batch()
		for _, s := range j.table.slots {
			b.add(unix.SYS_FCNTL, uint64(s.fd), unix.F_GETFD)
		}
		if err := b.run(); err != nil {
			return err
		}
		for i, s := range j.table.slots {
			s.cloexec = b.calls[i].ret&unix.FD_CLOEXEC != 0
			s.obj.Flags &^= unix.O_CLOEXEC
			if s.cloexec {
				s.obj.Flags |= unix.O_CLOEXEC
			}
		}
	}
	if err := j.stageMaps(which); err != nil {
		return err
	}
	if err := j.readBreak(); err != nil {
		return err
	}
	return j.sendFiles(which, cwd)
}

// sendFiles sends the files of directories and the executable; cwd is the present working directory,
// needed to come back to it after a change of the root.
func (j *job) sendFiles(which pick, cwd int) error {
	j.dirs = map[int]int{}
	var places []*place
	if j.fs != nil {
		places = append(places, j.fs.cwd, j.fs.root)
	}
	if j.mem != nil {
		places = append(places, j.mem.exe)
	}
	var files []int
	for _, p := range places {
		if p != nil && !slices.Contains(files, which(p.item).fd) {
			files = append(files, which(p.item).fd)
		}
	}
	if j.fs != nil && cwd >= 0 {
		files = append(files, cwd)
	}
	fds, err := j.r.temps(files)
	if err != nil {
		return err
	}
	for i, fd := range fds {
		j.dirs[files[i]] = fd
	}
	return nil
}

// commit exchanges everything of the job in one batch, so that a death of ours
// cannot leave half of it. Around it locks that would be lost are guarded.
func (j *job) commit(which pick, neverEmpty bool) error {
	if err := j.guardLocks(); err != nil {
		return err
	}
	j.begun = true
	b := j.r.batch()
	for i := range j.locks {
		if l := &j.locks[i]; j.guard != nil && !l.shared() && j.lost == nil { // the server that has it below would be in our own way
			b.setLock(l.fd, Lock{Type: unix.F_UNLCK, Start: l.Start, Len: l.Len}).mayFail = true // it may be lost already
		}
	}
	if err := j.fillSlots(b, which, neverEmpty); err != nil {
		return err
	}
	j.moveMaps(b)
	exe, err := j.changeExecutable(b, which)
	if err != nil {
		return err
	}
	var dirs []dirCall
	if j.fs != nil {
		dirs = j.changeDirs(b, which)
	}
	b.closeTemps(slices.Sorted(maps.Values(j.dirs)))
	// last: a close of any descriptor of a file drops the locks of the process at it
	for i := range j.locks {
		fd, lock := j.locks[i].fd, j.locks[i].Lock
		if j.guard != nil {
			fd, lock = j.locks[i].passing()
		}
		if j.lost == nil {
			b.setLock(fd, lock)
		}
	}
	if err := b.run(); err != nil {
		return err
	}
	if err := j.checkDirs(b, dirs); err != nil {
		return err
	}
	j.checkExecutable(b, exe)
	return j.regainLocks()
}

func (l Lock) flock() []byte {
	b := make([]byte, 32) // struct flock
	binary.LittleEndian.PutUint16(b, uint16(l.Type))
	binary.LittleEndian.PutUint64(b[8:], uint64(l.Start))
	binary.LittleEndian.PutUint64(b[16:], uint64(l.Len))
	return b
}

// dirCall is the place of a directory's system calls in a batch.
type dirCall struct {
	place *place
	calls []int
}

// changeDirs adds the calls that change root and working directory. The thread
// may lack the right to enter a directory it is in already, so they may fail.
func (j *job) changeDirs(b *batch, which pick) []dirCall {
	var r []dirCall
	call := func(nr uintptr, arg uint64) int {
		b.add(nr, arg).mayFail = true
		return len(b.calls) - 1
	}
	if p := j.fs.root; p != nil {
		dot := b.bytes([]byte(".\x00"))
		d := dirCall{place: p}
		d.calls = append(d.calls, call(unix.SYS_FCHDIR, uint64(j.dirs[which(p.item).fd])), call(unix.SYS_CHROOT, dot))
		if j.fs.cwd == nil { // back to where it was
			d.calls = append(d.calls, call(unix.SYS_FCHDIR, uint64(j.dirs[j.cwd])))
		}
		r = append(r, d)
	}
	if p := j.fs.cwd; p != nil {
		r = append(r, dirCall{p, []int{call(unix.SYS_FCHDIR, uint64(j.dirs[which(p.item).fd]))}})
	}
	return r
}

func (j *job) checkDirs(b *batch, dirs []dirCall) error {
	j.refused = nil
	for _, d := range dirs {
		for _, i := range d.calls {
			if e := b.calls[i].errno(); e != 0 {
				ce := &callError{index: i, call: b.calls[i], comm: j.p.comm, tid: j.t.tid}
				if !errors.Is(e, syscall.EACCES) && !errors.Is(e, syscall.EPERM) {
					return ce
				}
				j.refused = append(j.refused, ObjectReport{Object: d.place.obj, Reason: "the process may not enter it: " + ce.Error()})
				break
			}
		}
	}
	return nil
}

// verify compares every slot with what must be in it.
func (j *job) verify(self int, which pick) error {
	if j.table == nil {
		return nil
	}
	same := make([]bool, len(j.table.slots))
	spread(len(same), func(i int) {
		s := j.table.slots[i]
		f := which(s.item)
		same[i] = kcmp(j.t.tid, f.holder(self), kcmpFile, s.fd, f.fd) == 0
	})
	if i := slices.Index(same, false); i >= 0 {
		if j.r.dying() {
			return errTargetGone
		}
		return fmt.Errorf("%s has another file than the one it was given", &j.table.slots[i].obj)
	}
	return nil
}
