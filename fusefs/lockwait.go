package fusefs

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lockWait is an owner of POSIX locks that waits for one.
type lockWait struct {
	owner uint64
	node  *node
	span  span
}

// waitTable knows which owners wait, to find deadlocks: below, they are
// descriptions, among which the kernel looks for none.
type waitTable struct {
	mu sync.Mutex
	m  map[uint64][]*lockWait // by owner, whose threads may each wait
}

// maxChain is how far the kernel follows who waits for whom (MAX_DEADLK_ITERATIONS in fs/locks.c).
const maxChain = 10

// begin reports false when the wait would close a circle.
func (t *waitTable) begin(w *lockWait) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.leads(w, w.owner, 0) {
		return false
	}
	if t.m == nil {
		t.m = map[uint64][]*lockWait{}
	}
	t.m[w.owner] = append(t.m[w.owner], w)
	return true
}

func (t *waitTable) end(w *lockWait) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rest := slices.DeleteFunc(t.m[w.owner], func(o *lockWait) bool { return o == w })
	if len(rest) == 0 {
		delete(t.m, w.owner)
	} else {
		t.m[w.owner] = rest
	}
}

// leads reports whether w waits, perhaps by way of others, for an owner.
func (t *waitTable) leads(w *lockWait, owner uint64, steps int) bool {
	if steps > maxChain {
		return false
	}
	for _, b := range w.node.locks.blockers(w.owner, w.span) {
		if b == owner {
			return true
		}
		for _, next := range t.m[b] {
			if t.leads(next, owner, steps+1) {
				return true
			}
		}
	}
	return false
}

// wake is a real-time signal that nothing else uses. It ends system calls of
// threads that wait.
const wake = 62

// wakes has the signal interrupt system calls. Go's handler, which ignores the
// signal, is there from the start (initsig in runtime/signal_unix.go), but has
// the kernel restart them.
var wakes = sync.OnceValue(func() error {
	var a struct { // struct sigaction of the kernel
		handler, flags, restorer uintptr
		mask                     uint64
	}
	const restart = 0x10000000 // SA_RESTART
	if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, wake, 0, uintptr(unsafe.Pointer(&a)), 8, 0, 0); e != 0 {
		return fmt.Errorf("read what signal %d does: %w", wake, e)
	}
	a.flags &^= restart
	if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, wake, uintptr(unsafe.Pointer(&a)), 0, 8, 0, 0); e != 0 {
		return fmt.Errorf("have signal %d interrupt system calls: %w", wake, e)
	}
	return nil
})

// interruptible makes one system call that may wait, and gets the thread out of
// it when cancel is closed: then the result is EINTR, unless the call was done first.
func interruptible(cancel <-chan struct{}, call func() error) error {
	if err := wakes(); err != nil {
		return err
	}
	runtime.LockOSThread() // it is this thread that gets the signal
	defer runtime.UnlockOSThread()
	pid, tid := unix.Getpid(), unix.Gettid()
	done, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		select {
		case <-done:
			return
		case <-cancel:
		}
		for { // the first signal may come before the thread waits
			_ = unix.Tgkill(pid, tid, wake) // the thread is ours until gone is closed
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	defer func() {
		close(done)
		<-gone
	}()
	for {
		err := call()
		if err != unix.EINTR {
			return err
		}
		select {
		case <-cancel:
			return unix.EINTR
		default:
		}
	}
}
