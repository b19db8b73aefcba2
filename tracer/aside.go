package tracer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A thread that waits for a FUSE server which has read its request, or for a lock whose owner does, is woken by no
// signal (request_wait_answer in fs/fuse/dev.c, fdget_pos in fs/file.c; Linux 6.18). If that is the tracing thread, nothing lets
// the targets go any more: they are detached by its end (exit_ptrace in kernel/ptrace.c), which does not come. So whatever
// may wait for a file system, a server or the caller while a target stands is done by another OS thread. The
// tracing one waits for that no longer than it has time, and then puts everything back.

// hangPatience is how long is waited for what is done when the deadline of the stop says nothing: after the first exchange, and in a rollback.
const hangPatience = 5 * time.Second

// helper is the other thread.
type helper struct {
	work chan func() error
	done chan error
	tid  atomic.Int64
}

func newHelper(realTime bool) *helper {
	h := &helper{work: make(chan func() error), done: make(chan error, 1)} // who gave it up does not read
	go func() {
		runtime.LockOSThread() // and never unlocked: it ends with its priority
		h.tid.Store(int64(unix.Gettid()))
		if realTime {
			_, _ = beRealTime(tracingPriority) // the tracing thread waits for it
		}
		for f := range h.work {
			h.done <- f()
		}
	}()
	return h
}

// asides is what a transaction has others do.
type asides struct {
	helper *helper
	until  atomic.Int64  // when what it does is given up (UnixNano); 0 while it does nothing
	late   chan struct{} // by the watchdog: that time has come
	left   <-chan error  // by what was given up, when it has come back
	hung   bool          // something was, before there were jobs: the scanner belongs to it
}

// errHung is something that was not done in time.
type errHung struct {
	what  string
	after time.Duration
	where string // what waits
}

func (e *errHung) Error() string {
	return fmt.Sprintf("%s: no answer within %v%s", e.what, e.after.Round(10*time.Millisecond), e.where)
}

// aside has f done elsewhere. After an errHung f may still be at work, and may begin nothing when over says so.
func (x *transaction) aside(what func() string, until time.Time, f func(over *atomic.Bool) error) error {
	a := &x.asides
	if a.helper == nil {
		a.helper = newHelper(x.lent != nil)
	}
	over := &atomic.Bool{}
	begun := time.Now()
	a.until.Store(until.UnixNano())
	a.helper.work <- func() error { return f(over) }
	var err error
	select {
	case err = <-a.helper.done:
	case <-a.late:
		over.Store(true)
		select {
		case err = <-a.helper.done: // just now
		default:
			err = &errHung{what(), time.Since(begun), a.helper.whoWaits()}
			close(a.helper.work) // it ends when it comes back
			a.left, a.helper = a.helper.done, nil
		}
	}
	a.until.Store(0)
	select {
	case <-a.late: // it was told, and came in time
	default:
	}
	x.pulse.beat()
	return err
}

func (a *asides) close() {
	if a.helper != nil {
		close(a.helper.work)
	}
}

// early is aside for what is done before there are jobs, and has no time but until the deadline of the stop.
func (x *transaction) early(what string, f func(over *atomic.Bool) error) error {
	err := x.aside(func() string {
		if o := x.settling.Load().stuck(); o != nil {
			return what + " of " + o.String()
		}
		return what
	}, x.deadline, f)
	if hung := new(errHung); errors.As(err, &hung) {
		x.asides.hung = true
	}
	return err
}

// patiently is aside for what is done when something is exchanged already, or put back.
func (x *transaction) patiently(what string, f func() error) error {
	return x.aside(func() string { return what }, time.Now().Add(hangPatience), func(*atomic.Bool) error { return f() })
}

// progress is which of the new files are being made what the old ones are.
type progress struct {
	items       []*item
	begun, done []atomic.Bool
}

// stuck is one that was begun and is not done; nil for none.
func (p *progress) stuck() *Object {
	if p == nil {
		return nil
	}
	for i := range p.items {
		if p.begun[i].Load() && !p.done[i].Load() {
			return &p.items[i].Holders[0]
		}
	}
	return nil
}

// whoWaits says, in words to append, where the helper waits, or a thread that does a part of its work (spread): empty if that cannot be told.
func (h *helper) whoWaits() string {
	tids, _ := numbers("/proc/self/task")
	for _, tid := range append([]int{int(h.tid.Load())}, tids...) {
		where, _ := readProc(procPath(tid, "wchan"))
		if w := string(where); w != "" && w != "0" && !slices.ContainsFunc(idle, func(p string) bool { return strings.HasPrefix(w, p) }) {
			return waiting(tid, w)
		}
	}
	return ""
}

// idle are the places in the kernel where threads of Go wait for each other, for time, and for what its poller tells.
var idle = []string{"futex", "ep_poll", "do_epoll", "hrtimer_nanosleep", "do_nanosleep", "do_sigtimedwait"}

// waiting says, in words to append, where a thread waits.
func waiting(tid int, where string) string {
	call := ""
	if s, ok := sleepsIn(tid); ok && s.nr >= 0 {
		if call = ownCalls[s.nr]; call == "" {
			call = "system call " + strconv.FormatInt(s.nr, 10)
		}
		call = " in " + call
	}
	return fmt.Sprintf(" (thread %d of process %d, which swaps, waits%s: %s)", tid, os.Getpid(), call, where)
}

// ownCalls names system calls of ours that may have to wait.
var ownCalls = map[int64]string{
	unix.SYS_STATX: "statx", unix.SYS_FCNTL: "fcntl", unix.SYS_LSEEK: "lseek", unix.SYS_IOCTL: "ioctl", unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2",
	unix.SYS_CLOSE: "close", unix.SYS_READ: "read", unix.SYS_PREAD64: "pread", unix.SYS_PWRITE64: "pwrite", unix.SYS_GETDENTS64: "getdents", unix.SYS_READLINKAT: "readlinkat",
	unix.SYS_SYNC_FILE_RANGE: "sync_file_range", unix.SYS_KCMP: "kcmp", unix.SYS_PIDFD_GETFD: "pidfd_getfd", unix.SYS_PTRACE: "ptrace", unix.SYS_WAIT4: "wait4",
	unix.SYS_UMOUNT2: "umount", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_FSTATFS: "fstatfs", unix.SYS_RECVMSG: "recvmsg", unix.SYS_SENDMSG: "sendmsg",
}
