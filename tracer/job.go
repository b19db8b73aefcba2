package tracer

import (
	"encoding/binary"
	"errors"
	"fmt"
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

	r       *remote
	locks   []heldLock
	files   []tempFile // staged
	maps    []stagedMap
	cwd     int  // present working directory, O_PATH, where the root is exchanged; else -1
	gone    bool // the process ended
	begun   bool // commit was tried: something may be changed
	calls   int
	refused []ObjectReport // directories that the thread may not enter

	extra    []int   // in a rollback: descriptors that were not there before
	restored []*slot // in a rollback: all slots, also those that were not changed
}

// heldLock is a POSIX lock to take again through descriptor fd.
type heldLock struct {
	fd int
	Lock
}

// tempFile is a file of ours at a temporary number in the target.
type tempFile struct {
	file, fd int
}

// pick says which file goes in: the new one, or in a rollback the old one.
type pick func(*item) int

func newFile(it *item) int { return it.repl }
func oldFile(it *item) int { return it.file }

// scratch estimates the memory for the largest batch, bytes.
func (j *job) scratch() uint64 {
	calls, messages := 256, 8
	if j.table != nil {
		calls += 4*len(j.table.slots) + 2*len(j.locks)
		messages += len(j.table.slots)/maxRights + 1
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
// puts it back, also if we die.
func (j *job) makeRoom(neverEmpty bool) error {
	want, top := controlSockets, 0
	used := map[int]bool{}
	if all, err := numbers(procPath(j.t.tid, "fd")); err == nil {
		for _, fd := range all {
			used[fd] = true
			top = max(top, fd+1)
		}
	} else if !gone(err) {
		return fmt.Errorf("descriptors of process %d (%s): %w", j.p.pid, j.p.comm, err)
	}
	if j.table != nil && neverEmpty {
		want += min(len(j.table.slots), maxRights)
	}
	want += len(j.tempItems())
	var lim unix.Rlimit
	if err := unix.Prlimit(j.p.pid, unix.RLIMIT_NOFILE, nil, &lim); err != nil {
		if gone(err) {
			return errTargetGone
		}
		return fmt.Errorf("RLIMIT_NOFILE of process %d (%s): %w", j.p.pid, j.p.comm, err)
	}
	free := 0
	for fd := 0; fd < int(min(lim.Cur, uint64(top+want))) && free < want; fd++ {
		if !used[fd] {
			free++
		}
	}
	above := j.table != nil && len(j.table.slots) > 0 && uint64(j.table.slots[len(j.table.slots)-1].fd) >= lim.Cur
	if free >= want && !above {
		return nil
	}
	raised := unix.Rlimit{Cur: uint64(top + want), Max: max(lim.Max, uint64(top+want))}
	if err := unix.Prlimit(j.p.pid, unix.RLIMIT_NOFILE, &raised, nil); err != nil {
		return fmt.Errorf("process %d (%s) has %d free descriptor numbers below its RLIMIT_NOFILE of %d (hard limit %d), the swap needs %d: raise the limit: %w (above the hard limit CAP_SYS_RESOURCE is needed)",
			j.p.pid, j.p.comm, free, lim.Cur, lim.Max, want, err)
	}
	if j.p.limit == nil {
		j.p.limit = &lim
	}
	return nil
}

// tempItems are the items whose files the thread needs at a temporary number.
func (j *job) tempItems() []*item {
	var r []*item
	add := func(p *place) {
		if p != nil && !slices.Contains(r, p.item) {
			r = append(r, p.item)
		}
	}
	if j.fs != nil {
		add(j.fs.cwd)
		add(j.fs.root)
	}
	if j.mem != nil {
		seen := map[*item]bool{}
		for _, m := range j.mem.maps {
			if !seen[m.item] {
				seen[m.item] = true
				r = append(r, m.item)
			}
		}
	}
	return r
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
	if err := j.sendTemps(which, cwd); err != nil {
		return err
	}
	return j.stageMaps(which)
}

// sendTemps sends the files of directories and maps; cwd is the present working
// directory, needed to come back to it after a change of the root.
func (j *job) sendTemps(which pick, cwd int) error {
	j.files = nil
	for _, it := range j.tempItems() {
		j.files = append(j.files, tempFile{file: which(it), fd: -1})
	}
	if j.fs != nil && j.fs.root != nil && cwd >= 0 {
		j.files = append(j.files, tempFile{file: cwd, fd: -1})
	}
	b := j.r.batch()
	var at []int
	for part := range slices.Chunk(j.files, maxRights) {
		var fds []int
		for _, f := range part {
			fds = append(fds, f.file)
		}
		if err := j.r.send(fds); err != nil {
			return err
		}
		at = append(at, b.receive(len(fds), unix.MSG_CMSG_CLOEXEC))
	}
	if err := b.run(); err != nil {
		return err
	}
	i := 0
	for _, a := range at {
		for _, fd := range b.received(a) {
			j.files[i].fd = fd
			i++
		}
	}
	if i != len(j.files) {
		return fmt.Errorf("process %d (%s) received %d of %d files", j.p.pid, j.p.comm, i, len(j.files))
	}
	return nil
}

// temp is the number in the target of a file that was sent.
func (j *job) temp(file int) uint64 {
	for _, f := range j.files {
		if f.file == file {
			return uint64(f.fd)
		}
	}
	return ^uint64(0) // -1: the call that uses it fails with EBADF
}

// commit exchanges everything of the job in one batch, so that a death of ours
// cannot leave half of it.
func (j *job) commit(which pick, neverEmpty bool) error {
	b := j.r.batch()
	if err := j.fillSlots(b, which, neverEmpty); err != nil {
		return err
	}
	j.moveMaps(b)
	var dirs []dirCall
	if j.fs != nil {
		dirs = j.changeDirs(b, which)
	}
	for _, f := range j.files {
		b.add(unix.SYS_CLOSE, uint64(f.fd)).mayFail = true // a close frees the number whatever it returns
	}
	// last: a close of any descriptor of a file drops the locks of the process at it
	for _, l := range j.locks {
		b.add(unix.SYS_FCNTL, uint64(l.fd), unix.F_SETLK, b.bytes(l.flock()))
	}
	j.begun = true
	if err := b.run(); err != nil {
		return err
	}
	return j.checkDirs(b, dirs)
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
		d.calls = append(d.calls, call(unix.SYS_FCHDIR, j.temp(which(p.item))), call(unix.SYS_CHROOT, dot))
		if j.fs.cwd == nil { // back to where it was
			d.calls = append(d.calls, call(unix.SYS_FCHDIR, uint64(j.files[len(j.files)-1].fd)))
		}
		r = append(r, d)
	}
	if p := j.fs.cwd; p != nil {
		r = append(r, dirCall{p, []int{call(unix.SYS_FCHDIR, j.temp(which(p.item)))}})
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
	for _, s := range j.table.slots {
		if kcmp(j.t.tid, self, kcmpFile, s.fd, which(s.item)) != 0 {
			if j.r.dying() {
				return errTargetGone
			}
			return fmt.Errorf("%s has another file than the one it was given", &s.obj)
		}
	}
	return nil
}
