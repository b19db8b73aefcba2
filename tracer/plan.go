package tracer

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// unit is one thing that a job exchanges, which only threads that share it can.
type unit struct {
	pid, tid int
	kcmp     int
	take     func(*job)
}

// plan spreads what was found over as few threads as can do it.
func (x *transaction) plan(all *found) (jobs []*job, err error) {
	var units []unit
	for _, t := range all.tables {
		if len(t.slots) > 0 {
			units = append(units, unit{t.pid, t.tid, kcmpFiles, func(j *job) { j.table = t }})
		}
	}
	for _, d := range all.fs {
		if d.cwd != nil || d.root != nil {
			units = append(units, unit{d.pid, d.tid, kcmpFS, func(j *job) { j.fs = d }})
		}
	}
	for _, m := range all.mems {
		if p := x.e.procs[m.pid]; p != nil {
			for _, l := range m.maps {
				p.avoid = append(p.avoid, span{l.line.start, l.line.end})
			}
		}
		if len(m.maps) > 0 || m.exe != nil {
			units = append(units, unit{m.pid, m.tid, kcmpVM, func(j *job) { j.mem = m }})
		}
	}
	for _, p := range x.e.order {
		mine := slices.DeleteFunc(slices.Clone(units), func(u unit) bool { return u.pid != p.pid })
		for len(mine) > 0 && p.alive() {
			j, rest, err := assign(p, mine)
			if err != nil {
				return nil, err
			}
			if err := x.collectLocks(j); err != nil {
				return nil, err
			}
			jobs = append(jobs, j)
			mine = rest
		}
	}
	if len(jobs) == 1 {
		jobs[0].alone = true
	}
	return jobs, nil
}

// assign finds the thread that can exchange most of the units.
func assign(p *process, units []unit) (*job, []unit, error) {
	var best *thread
	var bestHas []bool
	score := -1
	var why error
	for _, t := range p.order {
		if t.gone || !t.stopped || pc(&t.regs) == 0 {
			// A worker thread of the kernel (PF_USER_WORKER: io_uring) is a thread of the
			// process, but never runs its code, and has no place to go on at (copy_thread).
			continue
		}
		if err := codeModel(&t.regs); err != nil {
			why = fmt.Errorf("process %d (%s): %w", p.pid, p.comm, err)
			continue
		}
		has, n := make([]bool, len(units)), 0
		for i, u := range units {
			if u.tid == t.tid || kcmp(t.tid, u.tid, u.kcmp, 0, 0) == 0 {
				has[i] = true
				n++
			}
		}
		if n == 0 {
			continue
		}
		if err := checkSeccomp(p, t); err != nil {
			why = err
			continue
		}
		if s := 10*n + preference(t); s > score {
			best, bestHas, score = t, has, s
			if n == len(units) && preference(t) == bestPreference {
				break
			}
		}
	}
	if best == nil {
		if why == nil {
			why = fmt.Errorf("process %d (%s) has no thread left that can swap its files", p.pid, p.comm)
		}
		return nil, nil, why
	}
	j := &job{p: p, t: best, cwd: -1}
	var rest []unit
	for i, u := range units {
		if bestHas[i] {
			u.take(j)
		} else {
			rest = append(rest, u)
		}
	}
	return j, rest, nil
}

const bestPreference = 2

// preference is for threads in a system call: they are in no restartable
// sequence (rseq), and hold no state that our code could disturb. One with a
// restart block comes second.
func preference(t *thread) int {
	nr, ret, in := inSyscall(&t.regs)
	switch {
	case !in || nr < 0:
		return 0
	case ret == -eRestartBlock:
		return 1
	}
	return bestPreference
}

// inject prepares the job's thread.
func (j *job) inject(x *transaction) error {
	if j.fs != nil && j.fs.root != nil && j.cwd < 0 {
		fd, err := unix.Open(procPath(j.fs.tid, "cwd"), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("working directory of process %d (%s): %w", j.p.pid, j.p.comm, err)
		}
		j.cwd = fd
	}
	room := func() ([]int, error) { return j.makeRoom(x.o.NeverEmpty) }
	in := injection{scratch: j.scratch(), stage: j.stageBytes(), free: room}
	if j.alone && !j.back {
		in.lines = j.p.lines
	}
	r, err := x.e.inject(j.p, j.t, in)
	if err != nil {
		return err
	}
	j.r = r
	return nil
}

// finish takes the code out of the job's thread.
func (j *job) finish() error {
	if j.cwd >= 0 {
		_ = unix.Close(j.cwd) // O_PATH
		j.cwd = -1
	}
	if j.r == nil {
		return nil
	}
	j.calls += j.r.calls
	err := j.r.finish()
	j.r = nil
	if errors.Is(err, errTargetGone) {
		j.gone = true
		return nil
	}
	return err
}

// putBack gives the process its old files again, with fresh code: what the
// failed batch did is unknown.
func (j *job) putBack(x *transaction) error {
	j.back = true
	if j.table != nil {
		now, err := numbers(procPath(j.t.tid, "fd"))
		if err != nil {
			if gone(err) {
				return errTargetGone
			}
			return err
		}
		before := newNumberSet(j.table.all)
		j.extra = slices.DeleteFunc(now, before.has)
		j.restored = j.table.slots
		changed := *j.table
		changed.slots = slices.DeleteFunc(slices.Clone(j.table.slots), func(s *slot) bool {
			return kcmp(j.t.tid, x.s.self, kcmpFile, s.fd, s.item.file) == 0
		})
		j.table = &changed
	}
	j.keepChangedDirs()
	j.keepChangedExecutable()
	if err := j.reopenMaps(x.o.MapsByPath); err != nil {
		return err
	}
	err := j.inject(x)
	if err != nil {
		return err
	}
	err = j.redo(x)
	return errors.Join(err, j.finish())
}

// keepChangedDirs leaves directories alone that are the old ones still: a thread
// that may not enter the new one may not enter the old one either.
func (j *job) keepChangedDirs() {
	if j.fs == nil {
		return
	}
	changed := *j.fs
	for _, p := range []**place{&changed.cwd, &changed.root} {
		if *p == nil {
			continue
		}
		o := &(*p).obj
		id, err := identify(procPath(changed.tid, o.Kind.String()))
		if err == nil && id.mountID == o.MountID && id.dev == o.Dev && id.ino == o.Ino {
			*p = nil
		}
	}
	j.fs = &changed
}

func (j *job) redo(x *transaction) error {
	b := j.r.batch()
	closeRuns(b, j.extra)
	if err := b.run(); err != nil {
		return err
	}
	if err := j.stage(oldFile, j.cwd); err != nil {
		return err
	}
	if err := j.commit(oldFile, false); err != nil {
		return err
	}
	if len(j.refused) > 0 {
		return fmt.Errorf("%s: %s", &j.refused[0].Object, j.refused[0].Reason)
	}
	if j.table != nil {
		j.table.slots = j.restored
	}
	return j.verify(x.s.self, oldFile)
}

// reopenMaps opens the old files of maps for real where only O_PATH
// descriptors of them are held.
func (j *job) reopenMaps(byPath bool) error {
	if !byPath || j.mem == nil {
		return nil
	}
	done := map[*item]bool{}
	all := slices.Clone(j.mem.maps)
	if j.mem.exe != nil {
		all = append(all, j.mem.exe)
	}
	for _, m := range all {
		if done[m.item] {
			continue
		}
		done[m.item] = true
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", m.item.file), m.obj.Flags|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the old file of %s again: %w", &m.obj, err)
		}
		_ = unix.Close(m.item.file) // O_PATH
		m.item.file = fd
	}
	return nil
}

// objects lists what the job exchanges.
func (j *job) objects() (r []*Object) {
	if j.table != nil {
		for _, s := range j.table.slots {
			r = append(r, &s.obj)
		}
	}
	if j.fs != nil {
		for _, p := range []*place{j.fs.cwd, j.fs.root} {
			if p != nil {
				r = append(r, &p.obj)
			}
		}
	}
	if j.mem != nil {
		for _, m := range j.mem.maps {
			r = append(r, &m.obj)
		}
		if j.mem.exe != nil {
			r = append(r, &j.mem.exe.obj)
		}
	}
	return r
}
