package tracer

import (
	"cmp"
	"slices"

	"golang.org/x/sys/unix"
)

// groups spreads the processes that have matching objects over groups that can
// be stopped one after another, by what was found while they ran. With Together
// there is one; with nothing found there is none.
func (x *transaction) groups() [][]*process {
	var all []*process
	for _, p := range x.sortedKnown() {
		if x.found[p.pid] != nil {
			all = append(all, p)
		}
	}
	if len(all) < 2 || x.o.Together || slices.ContainsFunc(x.s.items, (*item).mappedToWrite) {
		if len(all) == 0 {
			return nil
		}
		return [][]*process{all}
	}
	u := union{}
	u.joinHolders(x.s.items)
	u.joinTasks(x.found)
	u.joinExiting(all)
	byRoot := map[int][]*process{}
	for _, p := range all {
		r := u.root(p.pid)
		byRoot[r] = append(byRoot[r], p)
	}
	var r [][]*process
	for _, g := range byRoot {
		r = append(r, g)
	}
	// One that will hardly stop comes first: as long as no group is exchanged, to give up costs nothing.
	stuck := map[int]int{}
	for _, g := range r {
		if slices.ContainsFunc(g, uninterruptible) {
			stuck[g[0].pid] = -1
		}
	}
	slices.SortFunc(r, func(a, b []*process) int {
		return cmp.Or(stuck[a[0].pid]-stuck[b[0].pid], a[0].pid-b[0].pid)
	})
	return r
}

// mappedToWrite reports a map through which a file may be changed. The old and the new
// file may have pages of their own, and the write-back of such a page takes away what was
// written to it through the other file. By the scan one sees who has the file, not who
// opens it a moment later, by a directory that it has: so nobody runs with the one while
// somebody has the other.
func (it *item) mappedToWrite() bool {
	return it.Kind == Map && len(it.Holders) > 0 && it.Flags&unix.O_ACCMODE == unix.O_RDWR
}

// uninterruptible reports that a thread of p sleeps so that no signal wakes it.
func uninterruptible(p *process) bool {
	tids, _ := numbers(procPath(p.pid, "task")) // one that ended has none
	return slices.ContainsFunc(tids, func(tid int) bool {
		st, err := readStatus(tid)
		return err == nil && st.state == 'D'
	})
}

// union joins processes to sets, by PID.
type union map[int]int

func (u union) root(pid int) int {
	for {
		up, ok := u[pid]
		if !ok || up == pid {
			return pid
		}
		pid = up
	}
}

func (u union) join(a, b int) {
	if a, b = u.root(a), u.root(b); a != b {
		u[max(a, b)] = min(a, b)
	}
}

// joinHolders joins those that hold one description; all that have a file open of
// which there are maps and that somebody writes to, because the pages of the old
// and the new file may not be the same; and all that have one open on which there
// is a POSIX lock, because for a moment the lock is free.
func (u union) joinHolders(items []*item) {
	type id struct{ dev, ino uint64 }
	type file struct {
		mapped, written, locked bool
		users                   []int
	}
	files := map[id]*file{}
	for _, it := range items {
		if len(it.Holders) == 0 || it.Mode&unix.S_IFMT != unix.S_IFREG && it.Kind != Descriptor {
			continue
		}
		f := files[id{it.Dev, it.Ino}]
		if f == nil {
			f = &file{}
			files[id{it.Dev, it.Ino}] = f
		}
		f.mapped = f.mapped || it.Kind == Map
		f.locked = f.locked || it.locked
		f.written = f.written || it.Flags&unix.O_PATH == 0 && it.Flags&unix.O_ACCMODE != unix.O_RDONLY
		for _, h := range it.Holders {
			f.users = append(f.users, h.PID)
			if it.Kind == Descriptor {
				u.join(h.PID, it.Holders[0].PID)
			}
		}
	}
	for _, f := range files {
		if f.locked || f.mapped && f.written {
			for _, pid := range f.users {
				u.join(pid, f.users[0])
			}
		}
	}
}

// joinExiting joins those that are ending with one that is not: such a process has let go
// of its descriptors, by which it would be joined, before its directories (do_exit in
// kernel/exit.c), and is no reason to stop the others apart.
func (u union) joinExiting(all []*process) {
	i := slices.IndexFunc(all, func(p *process) bool { return !exiting(p.pid) })
	if i < 0 {
		return
	}
	for _, p := range all {
		if exiting(p.pid) {
			u.join(p.pid, all[i].pid)
		}
	}
}

// joinTasks joins processes that have a descriptor table, directories or memory
// in common (clone(2) without CLONE_THREAD).
func (u union) joinTasks(all map[int]*found) {
	type task struct{ pid, tid int }
	sets := [3]kcmpSet[task]{}
	kinds := [3]int{kcmpFiles, kcmpFS, kcmpVM}
	add := func(kind, pid, tid int) {
		t, isNew := sets[kind].find(func(o task) int { return kcmp(tid, o.tid, kinds[kind], 0, 0) }, func() task { return task{pid, tid} })
		if !isNew {
			u.join(pid, t.pid)
		}
	}
	for pid, f := range all {
		for _, t := range f.tables {
			add(0, pid, t.tid)
		}
		for _, d := range f.fs {
			add(1, pid, d.tid)
		}
		if f.mem != nil {
			add(2, pid, f.mem.tid)
		}
	}
}
