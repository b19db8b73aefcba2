package tracer

import (
	"fmt"
	"slices"
)

// catch seizes the processes with a matching object that are not seized yet: on the
// first pass the members of the group. Afterwards each at once when it is seen to
// have one, and the newest first: in a storm of short-lived processes the older ones
// are over when their turn comes. deferred counts what has to be looked at again: a
// child of vfork(2), which runs until it calls execve, or its parent, asleep till
// then, would never stop; and a process of which no look was steady. lost counts
// those that were on the list and ended before they were looked at: they may have
// left a child that was not.
func (x *transaction) catch(first bool) (caught, deferred, lost int, err error) {
	candidates := x.e.left
	switch {
	case first:
	case x.rolling:
		if candidates, err = x.offspring(); err != nil {
			return 0, 0, 0, err
		}
	default:
		if lost, err = x.refresh(); err != nil {
			return 0, 0, 0, err
		}
		candidates = x.sortedKnown()
	}
	members := candidates
	x.e.left = nil
	defer x.pulse.looking.Store(nil)
	for _, p := range slices.Backward(candidates) {
		if x.e.procs[p.pid] != nil || p.over {
			continue
		}
		x.pulse.beat()
		x.pulse.looking.Store(p)
		match, wait := first, false
		if !first {
			if match, wait, err = x.holds(p); err != nil {
				return caught, deferred, lost, err
			}
		}
		if match && !wait {
			if wait, err = x.inVfork(p, first, members); err != nil {
				return caught, deferred, lost, err
			}
		}
		switch {
		case wait:
			deferred++
			x.e.left = append(x.e.left, p)
		case p.over:
			lost++ // this once: it is passed over from here on
		case match:
			x.e.procs[p.pid] = p
			x.e.order = append(x.e.order, p)
			n, err := x.e.seizeProcess(p)
			caught += n
			if err != nil {
				return caught, deferred, lost, err
			}
		}
	}
	return caught, deferred, lost, nil
}

// inVfork says whether p, by its memory, may be a child of vfork(2) whose parent is
// to be stopped and is not yet.
func (x *transaction) inVfork(p *process, first bool, members []*process) (bool, error) {
	st, err := readStatus(p.pid)
	if err != nil || kcmp(p.pid, st.ppid, kcmpVM, 0, 0) != 0 {
		return false, nil // ended, or with memory of its own
	}
	if parent := x.e.procs[st.ppid]; parent != nil {
		return parent.running() != nil, nil
	}
	i := slices.IndexFunc(members, func(o *process) bool { return o.pid == st.ppid })
	if i < 0 || first {
		return i >= 0, nil
	}
	match, unsteady, err := x.holds(members[i])
	return match || unsteady, err
}

// chases bounds how often all are looked through again because some had ended
// before they were looked at, if that takes less than a quarter of the deadline. Programs that start others without end, without an
// object that matters, must not keep a swap from its own.
const chases = 50

// looks bounds how often a process is looked at whose threads come and go meanwhile.
const looks = 20

// holds says whether a running process has a matching object. Its threads may
// change while they are looked at: a leader that ends hands all to a thread that
// was not on the list, and one that calls execve(2) gets the leader's number. So a
// look that found nothing counts only if the threads are the same after it.
// unsteady: they never were.
func (x *transaction) holds(p *process) (match, unsteady bool, err error) {
	for range looks {
		f, err := x.s.scanProcess(p.pid, p.pidfd, false)
		if err != nil || f.matches() {
			return f != nil && f.matches(), false, err
		}
		tids, err := numbers(procPath(p.pid, "task"))
		if err != nil && !gone(err) {
			return false, false, fmt.Errorf("threads of process %d: %w", p.pid, err)
		}
		woken := func(t *table) bool { return t.dead && !ended(t.tid) }
		if slices.Equal(tids, f.tids) && !slices.ContainsFunc(f.tables, woken) {
			p.over = len(tids) == 0 || len(tids) == 1 && (ended(p.pid) || f.empty() && exiting(p.pid))
			return false, false, nil
		}
	}
	return false, true, nil
}

// empty reports that no table has anything in it.
func (f *found) empty() bool {
	return !slices.ContainsFunc(f.tables, func(t *table) bool { return len(t.all) > 0 })
}

// exiting: a process that has begun to end, and let its files go already.
func exiting(pid int) bool {
	b, err := readProc(procPath(pid, "stat"))
	if err != nil {
		return gone(err)
	}
	const pfExiting = 0x4 // include/linux/sched.h
	flags, err := parseStatFlags(b)
	return err == nil && flags&pfExiting != 0
}
