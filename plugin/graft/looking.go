package graft

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// looking is a row of looks that a thread of its own takes, one after the other.
type looking struct {
	n    int
	back atomic.Int64           // looks that have come back; orders what they have left, too
	task atomic.Pointer[string] // the thread's folder in procfs; nil: it has not come to run
	over atomic.Bool            // nobody waits for the next one any more
	done chan struct{}          // closed at the end
}

// lookAt starts n looks.
func lookAt(n int, look func(i int)) *looking {
	l := &looking{n: n, done: make(chan struct{})}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(l.done)
		task, _ := os.Readlink("/proc/thread-self") // proc(5); by the ids that this procfs shows. Without one the clock alone counts
		l.task.Store(&task)
		for i := range n {
			if l.over.Load() {
				return
			}
			look(i)
			l.back.Add(1)
		}
	}()
	return l
}

// wait returns how many looks have come back: all, or those before one that has waited in the kernel for lookPatience.
func (l *looking) wait() int {
	tick := time.NewTicker(lookTick)
	defer tick.Stop()
	last, waited := int64(-1), time.Duration(0)
	for {
		select {
		case <-l.done:
			return int(l.back.Load())
		case <-tick.C:
		}
		if now := l.back.Load(); now != last || !l.waits() {
			last, waited = now, 0
			continue
		}
		if waited += lookTick; waited >= lookPatience {
			l.over.Store(true)
			return int(l.back.Load())
		}
	}
}

// waits tells whether the thread waits within a system call, rather than for a processor, or to be chosen by Go's scheduler, which
// has it wait in futex(2). A FUSE server is waited for in an interruptible sleep, so the state of the thread alone does not tell.
func (l *looking) waits() bool {
	task := l.task.Load()
	if task == nil {
		return false
	}
	b, err := os.ReadFile(filepath.Join("/proc", *task, "syscall")) // proc_pid_syscall(5): "running", or the number and more
	call, _, _ := strings.Cut(string(b), " ")
	return err != nil || call != "running\n" && call != fmt.Sprint(unix.SYS_FUTEX)
}
