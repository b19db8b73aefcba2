package tracer

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// found is what a look at one process found.
type found struct {
	tids   []int // its threads at the start of the look
	tables []*table
	fs     []*fsInfo
	mem    *memory   // of one process
	mems   []*memory // of all, where several are joined
}

// matches reports that there is something to be swapped that can be.
func (f *found) matches() bool {
	some := false
	f.each(func(_ *Object, it *item) { some = some || it.err == nil })
	return some
}

// each calls do for every object.
func (f *found) each(do func(*Object, *item)) {
	for _, t := range f.tables {
		for _, s := range t.slots {
			do(&s.obj, s.item)
		}
	}
	var places []*place
	for _, d := range f.fs {
		places = append(places, d.cwd, d.root)
	}
	if f.mem != nil {
		places = append(append(places, f.mem.maps...), f.mem.exe)
	}
	for _, p := range places {
		if p != nil {
			do(&p.obj, p.item)
		}
	}
}

// scanProcess looks at all tables, directories and maps of a process.
func (s *scanner) scanProcess(pid, pidfd int, remember bool) (*found, error) {
	f := &found{}
	s.o.Progress()
	s.forget(pid)
	tids, err := numbers(procPath(pid, "task"))
	if err != nil {
		if gone(err) {
			return f, nil
		}
		return nil, fmt.Errorf("threads of process %d: %w", pid, err)
	}
	f.tids = tids
	// the leader first: its table is everybody's, mostly
	for _, tid := range tids {
		if !sameAs(tid, kcmpFiles, f.tables, func(t *table) int { return t.tid }) {
			t, err := s.scanTable(pid, tid, pidfd, remember)
			if err != nil {
				return nil, err
			}
			f.tables = append(f.tables, t)
		}
		if !sameAs(tid, kcmpFS, f.fs, func(d *fsInfo) int { return d.tid }) {
			d, err := s.scanFS(pid, tid)
			if err != nil {
				return nil, err
			}
			f.fs = append(f.fs, d)
		}
	}
	for _, tid := range tids { // a leader that is a zombie has no memory
		if st, err := readStatus(tid); err == nil && st.state != 'Z' && st.state != 'X' {
			if f.mem, err = s.scanMaps(pid, tid, st.locked, remember); err == nil && f.mem.aio {
				s.lookAIO(f, pid)
			}
			return f, err
		}
	}
	return f, nil
}

// sameAs reports that one of the list holds the same as tid.
func sameAs[T any](tid, typ int, list []T, of func(T) int) bool {
	for _, x := range list {
		if of(x) == tid || kcmp(of(x), tid, typ, 0, 0) == 0 {
			return true
		}
	}
	return false
}

// candidate opens a process, nil if it is none that can be swapped: our own, a
// kernel thread, a zombie, or gone.
func (x *transaction) candidate(pid int) (*process, error) {
	if pid == x.s.self || pid <= 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if gone(err) || errors.Is(err, syscall.EINVAL) { // EINVAL: a thread, not a process
			return nil, nil
		}
		return nil, fmt.Errorf("pidfd_open of process %d: %w", pid, err)
	}
	p := &process{pid: pid, pidfd: fd, threads: map[int]*thread{}}
	st, err := readStatus(pid)
	if err != nil || isKernelThread(pid) {
		p.close()
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		return nil, nil
	}
	p.comm = st.name
	return p, nil
}

// refresh asks for the candidates, and drops those that ended. It returns how many
// ended between the list and our look at them.
func (x *transaction) refresh() (lost int, err error) {
	pids, err := x.o.Processes()
	if err != nil {
		return lost, fmt.Errorf("list processes: %w", err)
	}
	listed := map[int]bool{}
	for _, pid := range pids {
		listed[pid] = true
		if p := x.known[pid]; p != nil {
			if p.same() {
				continue
			}
			if !p.since.IsZero() { // being stopped: the stop loop sees its end
				continue
			}
			p.close()
			delete(x.known, pid)
			x.s.ended(pid)
		}
		p, err := x.candidate(pid)
		if err != nil {
			return lost, err
		}
		if p != nil {
			x.known[pid] = p
		}
		if p == nil && errors.Is(unix.Kill(pid, 0), syscall.ESRCH) {
			lost++
		}
	}
	for pid, p := range x.known {
		if !listed[pid] && p.since.IsZero() {
			p.close()
			delete(x.known, pid)
			x.s.ended(pid)
		}
	}
	return lost, nil
}

// stop stops the members of a group, and every process with a matching object
// that turns up while they stop: all their threads, until there is no new one.
func (x *transaction) stop(members []*process) error {
	x.e.left = members
	missed := 0
	var patience pause
	for first := true; ; first = false {
		if err := x.alive(); err != nil {
			return err
		}
		caught, deferred, lost, err := x.catch(first)
		if err != nil {
			return err
		}
		seized, err := x.seizeAll()
		if err != nil {
			return err
		}
		if first && x.o.Seized != nil {
			if err := x.early("release what waits in a file system", func(*atomic.Bool) error { return x.o.Seized() }); err != nil {
				return fmt.Errorf("after seizing: %w", err)
			}
		}
		if err := x.waitAll(); err != nil {
			return err
		}
		inside, err := x.comeOut(&patience)
		if err != nil {
			return err
		}
		if !first && caught+seized+deferred+inside == 0 {
			if missed++; lost == 0 || missed > chases || time.Since(x.stopping) > x.o.Deadline/4 {
				return nil
			}
		}
		if time.Now().After(x.deadline) {
			return x.neverEnding()
		}
	}
}

func (x *transaction) neverEnding() error {
	if len(x.e.order) == 0 {
		return fmt.Errorf("processes that share their memory, or change their threads, could not be looked at for %v", x.waited())
	}
	last := x.e.order[len(x.e.order)-1]
	return fmt.Errorf("new threads and processes with objects to be swapped turned up for %v, the last of %d stopped is process %d (%s)",
		x.waited(), len(x.e.order), last.pid, last.comm)
}

// offspring lists what belongs to a group that is being stopped beside those
// that are: who had to wait, and children that were not there when all were
// looked at. Where the kernel does not list children (CONFIG_PROC_CHILDREN) they
// are found after the last group.
func (x *transaction) offspring() ([]*process, error) {
	r := x.e.left
	for _, p := range x.e.order {
		for _, t := range p.order {
			text, err := readProc(procPath(p.pid, fmt.Sprintf("task/%d/children", t.tid)))
			if err != nil {
				continue // ended
			}
			for _, f := range strings.Fields(string(text)) {
				pid, err := strconv.Atoi(f)
				if err != nil || x.known[pid] != nil && x.known[pid].same() {
					continue
				}
				c, err := x.candidate(pid)
				if err != nil {
					return nil, err
				}
				if c != nil {
					if was := x.known[pid]; was != nil {
						was.close()
					}
					x.known[pid] = c
					r = append(r, c)
				}
			}
		}
	}
	return r, nil
}

func (x *transaction) seizeAll() (n int, err error) {
	for _, p := range x.e.order {
		if p.dead {
			continue
		}
		k, err := x.e.seizeProcess(p)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// slowStop is how long a thread takes to stop by when it is worth to see whether it
// ended in a way that wait(2) does not tell.
const slowStop = 2 * time.Millisecond

// waitAll waits until every thread that was seized is stopped or gone. One that
// sleeps in vfork is not waited for beyond what its child, which runs on, needs.
func (x *transaction) waitAll() error {
	for w := (wait{pulse: &x.pulse}); ; w.rest() {
		waiting := 0
		for _, p := range x.e.order {
			before := waiting
			for _, t := range p.order {
				if t.stopped || t.gone {
					continue
				}
				if err := x.e.poll(p, t); err != nil {
					return err
				}
				if !t.stopped && !t.gone {
					waiting++
				}
			}
			if waiting > before {
				x.e.bury(p, w.took() >= slowStop)
			}
		}
		if waiting == 0 {
			return nil
		}
		if err := x.alive(); err != nil {
			return err
		}
		if time.Now().After(x.deadline) {
			for _, p := range x.e.order {
				if t := p.running(); t != nil {
					return notStopping(t.tid, x.waited())
				}
			}
		}
	}
}

// waited is how long the present group has been stopped for, for messages.
func (x *transaction) waited() time.Duration {
	return time.Since(x.stopping).Round(100 * time.Millisecond)
}

// alive is an error once the caller gave up.
func (x *transaction) alive() error {
	if err := x.ctx.Err(); err != nil {
		return fmt.Errorf("given up by the caller: %w", err)
	}
	return nil
}

// checkSeccomp refuses a thread that seccomp would kill for our calls.
func checkSeccomp(p *process, t *thread) error {
	if t.noSeccomp {
		return nil
	}
	st, err := readStatus(t.tid)
	if err != nil {
		if gone(err) || errors.Is(err, os.ErrNotExist) {
			return errTargetGone
		}
		return err
	}
	if st.seccomp != 0 {
		return fmt.Errorf("process %d (%s) is under a seccomp filter that cannot be suspended: CAP_SYS_ADMIN in the initial user namespace is needed", p.pid, p.comm)
	}
	return nil
}
