package tracer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// thread is one thread of a process that is being stopped.
type thread struct {
	tid        int
	regs       registers // valid while stopped
	before     beforeStop
	stopped    bool
	gone       bool
	noSeccomp  bool // its seccomp filters are off while it is traced
	left       bool // could not be detached: let go when the tracing thread ends
	again      int  // not 0: on its way through a system call that will be restarted
	resendStop bool // a SIGSTOP came while it ran our code: send it again afterwards
}

// process is one process (thread group) that is being stopped.
type process struct {
	pid     int
	pidfd   int
	comm    string
	threads map[int]*thread
	order   []*thread    // as found
	since   time.Time    // first thread seized
	mem     *os.File     // /proc/PID/mem, opened when all threads are stopped
	limit   *unix.Rlimit // RLIMIT_NOFILE as it was, if it must be raised
	raised  unix.Rlimit
	slack   []span    // places of code in its executable memory
	avoid   []span    // maps that are exchanged: no place for code
	lines   []mapLine // its memory map, as it was when all stood
	dead    bool
	over    bool // a zombie without threads, which holds nothing any more
}

type span struct{ start, end uint64 }

// engine stops processes. All its methods must run on one OS thread, which is
// the tracer for the kernel.
type engine struct {
	restartErrnos []syscall.Errno
	procs         map[int]*process
	order         []*process
	lent          *lenders   // nil: no priority is lent
	left          []*process // that are still to be stopped
	remotes       []*remote  // threads with code of ours, in the order in which they got it
	insideSince   time.Time  // when a thread was first found in code of a dead tracer
	pulse         *pulse
}

func (x *transaction) newEngine() *engine {
	return &engine{restartErrnos: x.o.RestartErrnos, lent: x.lent, procs: map[int]*process{}, pulse: &x.pulse}
}

// seizeProcess seizes each thread of p that it does not hold yet, and asks it to
// stop. It does not wait. It returns how many were new.
func (e *engine) seizeProcess(p *process) (int, error) {
	if !p.same() {
		p.dead = true // another one may have its number
		return 0, nil
	}
	tids, err := numbers(procPath(p.pid, "task"))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			p.dead = true
			return 0, nil
		}
		return 0, fmt.Errorf("threads of process %d (%s): %w", p.pid, p.comm, err)
	}
	n := 0
	r := newReaper(p)
	defer func() {
		for _, tid := range r.end() {
			if t := p.threads[tid]; t != nil && !t.gone {
				e.lost(p, t)
			}
		}
	}()
	for _, tid := range tids {
		if t := p.threads[tid]; t != nil && !t.gone {
			continue
		}
		e.pulse.beat()
		r.watch()
		t, err := e.seizeThread(p, tid)
		if err != nil {
			return n, err
		}
		if t == nil {
			continue
		}
		if !p.has(tid) { // its number, or the process's, was given away before we seized it
			letBack(tid)
			continue
		}
		if p.since.IsZero() {
			p.since = time.Now()
		}
		if p.threads[tid] == nil {
			p.order = append(p.order, t)
		} else {
			p.order[slices.Index(p.order, p.threads[tid])] = t
		}
		p.threads[tid] = t
		r.hold(tid)
		n++
		t.before = lookBefore(tid)
		if err := ptraceValue(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil && !errors.Is(err, syscall.ESRCH) {
			return n, fmt.Errorf("interrupt thread %d (%s): %w", tid, p.comm, err)
		}
		if len(p.order) <= lentThreads { // it stops now: with a priority it could go on for long otherwise
			e.lent.lend(tid)
		}
	}
	return n, nil
}

// seizeTries: a leader that has ended cannot be seized, and in the next moment its
// number may be that of a thread which called execve and can.
const seizeTries = 10

// seizeThread returns nil for a thread that has ended.
func (e *engine) seizeThread(p *process, tid int) (*thread, error) {
	for try := 1; ; try++ {
		suspended, err := seize(tid)
		if err == nil {
			return &thread{tid: tid, noSeccomp: suspended}, nil
		}
		s, serr := readStatus(tid)
		switch {
		case errors.Is(err, syscall.ESRCH), gone(serr):
			return nil, nil
		case serr != nil:
			return nil, fmt.Errorf("seize thread %d (%s) of process %d: %w", tid, p.comm, p.pid, errors.Join(err, serr))
		case s.state == 'Z' || s.state == 'X': // a zombie cannot be traced and runs no code (ptrace_attach, kernel/ptrace.c)
			return nil, nil
		case s.tracer == unix.Gettid():
			// one that we hold called execve, and got the number of its leader
			held := slices.ContainsFunc(p.order, func(t *thread) bool { return t.noSeccomp })
			return &thread{tid: tid, noSeccomp: held}, nil
		case s.tracer != 0:
			by, _ := readStatus(s.tracer) // only for its name
			return nil, fmt.Errorf("thread %d (%s) of process %d is traced by process %d (%s) already; detach that and try again", tid, s.name, p.pid, s.tracer, by.name)
		case !errors.Is(err, syscall.EPERM):
			return nil, fmt.Errorf("seize thread %d (%s) of process %d: %w", tid, p.comm, p.pid, err)
		case try == seizeTries:
			return nil, fmt.Errorf("thread %d (%s) of process %d may not be traced: %w; CAP_SYS_PTRACE is needed, and kernel.yama.ptrace_scope below 3", tid, p.comm, p.pid, err)
		}
		briefly(time.Duration(try) * 20 * time.Microsecond)
	}
}

// poll looks once at a thread that is running, and takes in what it did.
func (e *engine) poll(p *process, t *thread) error {
	ws, none, err := waitThread(t.tid)
	switch {
	case none:
		return nil
	case err != nil: // ECHILD: gone, or its number went to a thread that called execve
		e.lost(p, t)
		return nil
	case ws.Exited() || ws.Signaled():
		e.lost(p, t)
		return nil
	case eventStop(ws):
		t.stopped = true
		if err := stopRegs(t); err != nil {
			if errors.Is(err, syscall.ESRCH) { // killed in this moment; the next wait tells
				t.stopped = false
				return nil
			}
			return fmt.Errorf("registers of thread %d: %w", t.tid, err)
		}
		return e.restartRules(t)
	case syscallStop(ws) && t.again != 0:
		if err := calledAgain(t); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("restart the system call of thread %d: %w", t.tid, err)
		}
		return nil
	case ws.Stopped():
		if t.again != 0 {
			if err := notCalledAgain(t); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("registers of thread %d: %w", t.tid, err)
			}
		}
		// a signal was on its way: let it in, our interrupt is still pending and
		// stops the thread before the handler's first instruction
		sig := ws.StopSignal()
		if syscallStop(ws) || sig == syscall.SIGBUS && len(e.restartErrnos) > 0 && faultSignal(t.tid) {
			sig = 0
		}
		return cont(unix.PTRACE_CONT, t.tid, sig)
	}
	return nil
}

// bury reaps the stopped threads of p that were killed: by one of its threads that
// calls execve(2), which sleeps until its tracer has reaped all others (de_thread,
// fs/exec.c; ptrace(2), execve(2) under ptrace). With leader it also gives up a
// leader that ended before it stopped, which wait(2) tells only when all its threads
// have ended.
func (e *engine) bury(p *process, leader bool) {
	for _, t := range p.order {
		switch {
		case t.gone:
		case t.stopped:
			if ws, none, err := waitThread(t.tid); err != nil || !none && (ws.Exited() || ws.Signaled()) {
				e.lost(p, t)
			}
		case leader && t.tid == p.pid && ended(t.tid):
			e.lost(p, t)
		}
	}
}

// lost takes note that a thread is gone. Its leader's number may belong to
// another thread now, which called execve: that one is not stopped yet.
func (e *engine) lost(p *process, t *thread) {
	t.gone, t.stopped = true, false
	e.lent.takeBack(t.tid)
	if l := p.threads[p.pid]; l != nil && l.stopped {
		if err := getRegs(l.tid, &l.regs); err != nil {
			l.stopped = false
		}
	}
}

func cont(req, tid int, sig syscall.Signal) error {
	if err := ptraceValue(req, tid, 0, uintptr(sig)); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("continue thread %d: %w", tid, err)
	}
	return nil
}

// alive reports whether the process still has a thread.
func (p *process) alive() bool {
	if p.dead {
		return false
	}
	for _, t := range p.order {
		if !t.gone {
			return true
		}
	}
	return false
}

func (p *process) running() *thread {
	for _, t := range p.order {
		if !t.stopped && !t.gone {
			return t
		}
	}
	return nil
}

// restartRules changes the results with which a system call would show that the
// thread was stopped. The kernel does the restart when the thread goes on: with
// its own rules, so that a signal that comes in this moment still gives EINTR.
func (e *engine) restartRules(t *thread) error {
	nr, ret, ok := inSyscall(&t.regs)
	if !ok || ret >= 0 {
		return nil
	}
	switch errno := syscall.Errno(-ret); {
	case slices.Contains(e.restartErrnos, errno):
		return e.restart(t, true)
	case errno == syscall.EINTR && interruptedCalls[nr]:
		return e.restart(t, false)
	}
	return nil
}

func (e *engine) restart(t *thread, always bool) error {
	if err := restartCall(t, always); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("restart the system call of thread %d: %w", t.tid, err)
	}
	return nil
}

// resume lets every thread of p go on as if it had not been stopped. A thread
// that never stopped stays traced until the tracing OS thread ends.
func (e *engine) resume(p *process) error {
	var errs []error
	for _, t := range p.order {
		if t.gone {
			continue
		}
		if !t.stopped {
			t.left = true
			continue
		}
		e.lent.takeBack(t.tid)
		switch err := ptraceValue(unix.PTRACE_DETACH, t.tid, 0, 0); {
		case errors.Is(err, syscall.ESRCH): // it was killed, or it runs: then it is let go when the tracing thread ends
			t.left = true
		case err != nil:
			errs = append(errs, fmt.Errorf("detach thread %d (%s): %w", t.tid, p.comm, err))
		}
		t.stopped = false
		if t.resendStop {
			// only SIGSTOP cannot be blocked while our code runs; sent again to the process it means the same
			if err := unix.PidfdSendSignal(p.pidfd, unix.SIGSTOP, nil, 0); err != nil && !errors.Is(err, syscall.ESRCH) {
				errs = append(errs, fmt.Errorf("SIGSTOP that came during the swap, for process %d (%s): %w", p.pid, p.comm, err))
			}
			t.resendStop = false
		}
	}
	return errors.Join(errs...)
}

// close frees what belongs to us.
func (p *process) close() {
	if p.mem != nil {
		_ = p.mem.Close() // only read and written by pread and pwrite: nothing is lost
		p.mem = nil
	}
	if p.pidfd >= 0 {
		_ = unix.Close(p.pidfd)
		p.pidfd = -1
	}
}

// openMem opens the memory of the stopped process through t: the leader may be
// a zombie that has none.
func (p *process) openMem(t *thread) error {
	if p.mem != nil {
		return nil
	}
	f, err := os.OpenFile(procPath(t.tid, "mem"), os.O_RDWR, 0)
	if gone(err) || err != nil && ended(t.tid) {
		return errTargetGone
	}
	if err != nil {
		return fmt.Errorf("memory of process %d (%s): %w", p.pid, p.comm, err)
	}
	p.mem = f
	return nil
}

// same reports that the process is still the one that pidfd was opened for.
func (p *process) same() bool {
	err := unix.PidfdSendSignal(p.pidfd, 0, nil, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// has reports that a thread is the process's, which is the one that pidfd was opened for.
func (p *process) has(tid int) bool {
	return !errors.Is(unix.Tgkill(p.pid, tid, 0), syscall.ESRCH) && p.same()
}

// letBackWait is how long a thread is waited for that was seized by mistake. It stops within microseconds, or sleeps where
// nothing reaches it: then it is let go when the tracing thread ends.
const letBackWait = 100 * time.Millisecond

// letBack lets go of a thread that is none of ours: only one that has stopped can be detached (ptrace(2)).
func letBack(tid int) {
	if ptraceValue(unix.PTRACE_INTERRUPT, tid, 0, 0) != nil {
		return // it has ended
	}
	for w := (wait{}); w.took() < letBackWait; w.rest() {
		ws, none, err := waitThread(tid)
		switch {
		case none:
		case err != nil || ws.Exited() || ws.Signaled():
			return
		case eventStop(ws):
			_ = ptraceValue(unix.PTRACE_DETACH, tid, 0, 0) // it may have been killed
			return
		default: // a signal goes in; our interrupt is pending still
			_ = cont(unix.PTRACE_CONT, tid, ws.StopSignal())
		}
	}
}
