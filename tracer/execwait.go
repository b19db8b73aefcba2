package tracer

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A thread that calls execve(2) takes its process's cred_guard_mutex, kills all other
// threads, and sleeps until they are reaped: those that we hold, by us (de_thread,
// fs/exec.c). PTRACE_SEIZE of a further thread waits for that mutex (ptrace_attach,
// kernel/ptrace.c): each would wait for the other without end. So while a thread is
// being seized another OS thread of ours, which wait(2) lets do so, reaps those that
// are held.

// seizePatience is how long a seize takes before somebody looks why.
const seizePatience = 2 * time.Millisecond

// reaper reaps threads that are held, once a seize takes long.
type reaper struct {
	mu    sync.Mutex
	held  []int // thread ids
	dead  []int // of these, reaped by now
	over  bool
	timer *time.Timer
}

func newReaper(p *process) *reaper {
	r := &reaper{}
	for _, t := range p.order {
		if !t.gone {
			r.held = append(r.held, t.tid)
		}
	}
	return r
}

// watch is called before a thread is seized. As long as none of the process is held, there is
// none to be reaped, and no timer, which costs wake-ups of two OS threads while a target stands.
func (r *reaper) watch() {
	if r.timer == nil && len(r.held) > 0 {
		r.timer = time.AfterFunc(seizePatience, r.work)
	}
}

func (r *reaper) hold(tid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = append(r.held, tid)
}

func (r *reaper) work() {
	for r.pass() {
		briefly(time.Millisecond)
	}
}

func (r *reaper) pass() (again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return false
	}
	var left []int
	for _, tid := range r.held {
		if reap(tid) {
			r.dead = append(r.dead, tid)
		} else {
			left = append(left, tid)
		}
	}
	r.held = left
	return true
}

// end returns the threads that were reaped.
func (r *reaper) end() []int {
	if r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	return r.dead
}

// reap reaps a thread if it has ended. Its stops are for the tracing thread, and
// wait(2) tells of them whatever it is asked for (wait_task_stopped, kernel/exit.c):
// so it looks first.
func reap(tid int) bool {
	const exited, killed, dumped = 1, 2, 3 // CLD_EXITED …, include/uapi/asm-generic/siginfo.h
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, tid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
	if err != nil || info.Signo == 0 || info.Code != exited && info.Code != killed && info.Code != dumped {
		return false
	}
	return unix.Waitid(unix.P_PID, tid, nil, unix.WEXITED|unix.WNOHANG|unix.WALL, nil) == nil
}
