package tracer

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// On a busy machine, or under a limit of its processor time (cpu.max), a target stands still
// mostly because its threads wait for a processor: to come to their stop, and to make our calls.
// So they are lent a real-time priority meanwhile, as long as they are traced. It is not set
// (sched_setattr(2)), because a death of ours would leave it there; it is inherited: threads of
// ours wait for locks whose owners the target's threads seem to be (priority inheritance, futex(2)).
// The kernel raises the owner of such a lock to the priority of who waits for it, and takes it for
// the owner that the lock's word says (attach_to_pi_owner in kernel/futex/pi.c, Linux 2.6.18 to
// 6.18). The scheduling policy of the target stays what it is, children that it forks inherit
// nothing (sched_fork in kernel/sched/core.c), and with the last of our threads all is over.

// Priorities of SCHED_FIFO, the two lowest, which go before every normal thread. A thread that was lent its priority
// goes before the tracing thread, which waits for it; so does a lender that is to end that.
const (
	tracingPriority = 1
	lentPriority    = 2
)

// lentThreads is how many threads of one process are lent priority while it is being stopped: those that
// are to make our calls get it in any case.
const lentThreads = 4

// lenderCount leaves some that are on their way back.
const lenderCount = 8

// Operations of futex(2) that x/sys/unix does not name.
const (
	futexWaitRequeuePI = 11
	futexCmpRequeuePI  = 12
)

// lenders lend their priority. A nil one lends nothing.
type lenders struct {
	words  []byte // of all locks, a shared map: their owners are threads of other processes
	all    []*lender
	next   int
	others scheduling // how the other threads of this process were scheduled, if they were made real-time ones
}

// lender is a thread of ours that waits, for a borrower or as one for whose lock it waits.
type lender struct {
	wait     *uint32 // where it waits for a borrower: 0, and 1 when it is to end
	lock     *uint32 // the lock: the TID of its owner, as in the futex of a mutex with priority inheritance
	tid      int
	borrower int
	ended    chan struct{}
}

// lendPriority makes the calling OS thread a real-time one, which must end afterwards, and starts
// those that lend. With all every other thread of this process becomes a real-time one as well, until close. An error says why no priority can be lent; the thread has the priority that it had then.
func lendPriority(all bool) (_ *lenders, err error) {
	before, err := beRealTime(tracingPriority)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, before.restore(0))
		}
	}()
	words, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("memory for locks: %w", err)
	}
	l := &lenders{words: words}
	ready := make(chan error, lenderCount)
	for i := range lenderCount {
		b := &lender{wait: (*uint32)(unsafe.Pointer(&words[64*i])), lock: (*uint32)(unsafe.Pointer(&words[64*i+4])), ended: make(chan struct{})}
		go b.serve(ready)
		l.all = append(l.all, b)
	}
	var errs error
	for range lenderCount {
		errs = cmp.Or(errs, <-ready) // all say the same
	}
	if errs != nil {
		l.close()
		return nil, errs
	}
	if all {
		l.raiseOthers()
	}
	return l, nil
}

// raiseOthers gives the other threads of this process the priority of the tracing one: those that do half of its work (spread), and
// that of Go's runtime which looks after system calls that take long. The latter marks the goroutine for a moment, and if a
// normal program gets its processor in that moment, the tracing thread spins until it has one again (setBlockOnExitSyscall
// in runtime/proc.go, Go 1.26).
func (l *lenders) raiseOthers() {
	tids, err := numbers("/proc/self/task")
	if err != nil {
		return // it takes longer without
	}
	for _, tid := range tids {
		if was, err := setRealTime(tid, tracingPriority, 0); err == nil && was.was != nil { // and those that they start
			l.others = was
		}
	}
}

// lowerOthers ends what raiseOthers did.
func (l *lenders) lowerOthers() {
	if l.others.was == nil {
		return
	}
	tids, _ := numbers("/proc/self/task")
	for _, tid := range tids {
		if now, err := unix.SchedGetAttr(tid, 0); err == nil && now.Policy == unix.SCHED_FIFO && now.Priority == tracingPriority && tid != unix.Gettid() {
			_ = l.others.restore(tid) // it may have ended
		}
	}
}

// scheduling is how a thread was scheduled before it became a real-time one; nil if nothing was changed.
type scheduling struct{ was *unix.SchedAttr }

// restore gives a thread that back, 0 for the calling one.
func (s scheduling) restore(tid int) error {
	if s.was == nil {
		return nil
	}
	was := *s.was
	was.Flags |= unix.SCHED_FLAG_RESET_ON_FORK // who may not have a priority may not take this off either (user_check_sched_setscheduler, kernel/sched/syscalls.c)
	if err := unix.SchedSetAttr(tid, &was, 0); err != nil {
		return fmt.Errorf("the tracing thread keeps a real-time priority: %w", err)
	}
	return nil
}

// beRealTime gives the calling thread a priority, which those that it starts do not get.
func beRealTime(priority uint32) (before scheduling, err error) {
	return setRealTime(0, priority, unix.SCHED_FLAG_RESET_ON_FORK)
}

// setRealTime gives a thread of ours, 0 for the calling one, a priority, unless it has that or a higher one, and says what it had before.
func setRealTime(tid int, priority uint32, flags uint64) (before scheduling, err error) {
	now, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return before, fmt.Errorf("how this thread is scheduled (sched_getattr): %w", err)
	}
	if (now.Policy == unix.SCHED_FIFO || now.Policy == unix.SCHED_RR) && now.Priority >= priority {
		return before, nil
	}
	a := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority, Flags: flags}
	if err := unix.SchedSetAttr(tid, a, 0); err != nil {
		return before, fmt.Errorf("no real-time priority (sched_setattr): %w; CAP_SYS_NICE is needed, and real-time processor time for the control group where the kernel has CONFIG_RT_GROUP_SCHED", err)
	}
	return scheduling{now}, nil
}

// serve is the thread. It can only lend while it sleeps in the one call, where lend moves it
// from the place where it waits to the lock.
func (b *lender) serve(ready chan<- error) {
	defer close(b.ended)
	runtime.LockOSThread() // and never unlocked: it ends with a real-time priority
	b.tid = unix.Gettid()
	_, err := beRealTime(lentPriority)
	ready <- err
	for err == nil && atomic.LoadUint32(b.wait) == 0 {
		_, _, e := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(b.wait)), futexWaitRequeuePI, 0, 0, uintptr(unsafe.Pointer(b.lock)), 0)
		switch e {
		case 0: // the borrower has ended, and we are given its lock
			atomic.StoreUint32(b.lock, 0)
		case syscall.EAGAIN, syscall.EINTR: // a signal: it was taken back, or is to end
		default: // no priority inheritance in this kernel (CONFIG_FUTEX_PI): nothing is lent
			return
		}
	}
}

// lend lends a thread priority until it is taken back. With as many borrowers as there are
// lenders the oldest one has to give it back.
func (l *lenders) lend(tid int) {
	if l == nil {
		return
	}
	for _, b := range l.all {
		if b.borrower == tid {
			return
		}
	}
	for range 2 { // one may not have come back yet
		b := l.all[l.next]
		l.next = (l.next + 1) % len(l.all)
		l.all[(l.next+1)%len(l.all)].takeBack() // it is ready when its turn comes
		if b.lendTo(tid) {
			return
		}
	}
}

// lendTo reports whether the lender was there. It makes no promise: who ends has no priority.
func (b *lender) lendTo(tid int) bool {
	b.takeBack()
	atomic.StoreUint32(b.lock, uint32(tid))
	n, _, e := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(b.wait)), futexCmpRequeuePI, 1, 0, uintptr(unsafe.Pointer(b.lock)), 0)
	if e != 0 || n == 0 {
		atomic.StoreUint32(b.lock, 0)
		return e == syscall.ESRCH // it has ended
	}
	b.borrower = tid
	return true
}

// takeBack ends what a thread was lent.
func (l *lenders) takeBack(tid int) {
	if l == nil {
		return
	}
	for _, b := range l.all {
		if b.borrower == tid {
			b.takeBack()
		}
	}
}

// takeBack interrupts the lender's wait for the lock, which ends the inheritance. The signal is the one that Go's
// runtime sends to its threads, and wants nothing.
func (b *lender) takeBack() {
	if b.borrower == 0 {
		return
	}
	b.borrower = 0
	atomic.StoreUint32(b.lock, 0)
	_ = unix.Tgkill(os.Getpid(), b.tid, unix.SIGURG) // it is there as long as it is not told to end
}

// close ends the lenders, and with them what they have lent.
func (l *lenders) close() {
	if l == nil {
		return
	}
	l.lowerOthers()
	for _, b := range l.all {
		b.borrower = 0
		atomic.StoreUint32(b.wait, 1) // it does not sleep again
		atomic.StoreUint32(b.lock, 0)
		_ = unix.Tgkill(os.Getpid(), b.tid, unix.SIGURG) // ESRCH: it has ended
	}
	for _, b := range l.all {
		<-b.ended
	}
	_ = unix.Munmap(l.words) // a map of ours
}
