package tracer

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How the code is taken out of a thread again, whatever the thread does.

// finish takes the code out again: the thread is left stopped, with registers
// and signal mask as they were.
func (r *remote) finish() error {
	// only when the thread is stopped: the end of the socket sets it free
	defer r.closeSockets()
	defer func() { r.e.remotes = slices.DeleteFunc(r.e.remotes, func(o *remote) bool { return o == r }) }()
	if r.t.gone {
		return errTargetGone
	}
	if !r.placed {
		r.p.freeSlack(r.code)
		return r.returnPage()
	}
	if !r.t.stopped && r.control >= 0 {
		if err := r.dismiss(); err != nil {
			return err
		}
	}
	for end := time.Now().Add(batchTimeout); ; {
		if !r.t.stopped {
			if err := r.interrupt(); err != nil {
				return err
			}
		}
		var regs registers
		if err := getRegs(r.t.tid, &regs); err != nil {
			return r.ptraceError("get registers", err)
		}
		at := pc(&regs)
		if !r.code.contains(at) {
			// it gave the thread back by itself: what it has now is its own. The code
			// stays, a signal handler may return into its end
			r.t.regs, r.placed = regs, false
			return r.e.restartRules(r.t)
		}
		// in the sleep at the end, or it ran nothing yet
		if at == r.code.start+paraHeader || at >= r.code.start+paraLast() {
			return r.restore()
		}
		if time.Now().After(end) {
			return fmt.Errorf("the code in thread %d (%s) does not come to its end", r.t.tid, r.p.comm)
		}
		if err := r.p.frozenNow(); err != nil { // it restores the thread by itself when it is thawed
			return err
		}
		// in the middle of something that took too long: on to the part that closes and unmaps
		if at < r.code.start+paraFini() && r.control >= 0 {
			regs = startRegs(regs, r.code.start+paraFini())
			if err := setRegs(r.t.tid, &regs); err != nil {
				return r.ptraceError("set registers", err)
			}
		}
		r.t.stopped = false
		if err := cont(unix.PTRACE_CONT, r.t.tid, 0); err != nil {
			return err
		}
		if err := r.parted(); err != nil {
			return err
		}
	}
}

// dismiss has the code clean up: a message that is no command ends its service.
func (r *remote) dismiss() error {
	if err := r.tell([]byte{0}); err != nil {
		return nil // it has ended already; finish looks where the thread is
	}
	return r.parted()
}

// partingLooks is for how many looks around the end is waited for.
const partingLooks = 5

// parted waits a while for the end of the control socket, which the code closes
// as the last thing it does.
func (r *remote) parted() error {
	if r.control < 0 {
		briefly(100 * time.Microsecond)
		return nil
	}
	var msg [8]byte
	w := wait{answer: true, socket: r.control, pulse: r.e.pulse}
	for looks := 0; looks < partingLooks; w.rest() {
		n, _, err := unix.Recvfrom(r.control, msg[:], unix.MSG_DONTWAIT)
		switch {
		case err == nil && n > 0: // the reply to a batch that was given up
			continue
		case err == nil, !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR):
			return nil
		}
		if w.long() {
			looks++
			if err := r.unstick(); err != nil {
				return err
			}
		}
	}
	return nil // it sleeps in what it was doing: finish sees to it
}

func (r *remote) closeSockets() {
	for _, s := range []*int{&r.control, &r.data} {
		if *s >= 0 {
			_ = unix.Close(*s) // a socket without data of ours
			*s = -1
		}
	}
}

func (r *remote) restore() error {
	if err := r.giveBack(); err != nil {
		return r.ptraceError("restore signal mask and registers", err)
	}
	r.t.regs, r.placed = r.saved, false
	return r.clear()
}

// clear wipes the code from where it was.
func (r *remote) clear() error {
	if _, err := r.p.mem.WriteAt(make([]byte, r.code.end-r.code.start), int64(r.code.start)); err != nil {
		return r.memError("write", err)
	}
	r.p.freeSlack(r.code)
	return r.returnPage()
}
