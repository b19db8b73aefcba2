package tracer

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// While code of ours runs in a stopped process, other processes run. One that may debug it
// (ptrace(2), access mode checking), as one of the same user may, can write to its memory and
// take its descriptors (process_vm_writev(2), pidfd_getfd(2)), and with that do anything that the
// process itself may. It must not be able to do more: nothing that comes from the target
// is used before it was checked, and no call on a file from there can wait.

// ours makes sure that a descriptor of the target is an end of a pair that the process made
// (socketpair(2) notes who did, SO_PEERCRED in unix(7)), and no file of its own: what is
// written there is written with our rights, and could wait without end.
func (r *remote) ours(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return r.meddled(fmt.Sprintf("in the place of its socket is something else (%v)", err))
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || domain != unix.AF_UNIX || kind != unix.SOCK_SEQPACKET {
		return r.meddled(fmt.Sprintf("in the place of its socket is one of family %d and type %d (%v)", domain, kind, err))
	}
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || int(peer.Pid) != r.p.pid {
		return r.meddled(fmt.Sprintf("in the place of its socket is one that another process made (%v)", err))
	}
	return nil
}

// tell sends a message to the code. It never waits: the code is not there yet, or waits for it.
func (r *remote) tell(msg []byte) error {
	r.told = time.Now()
	return unix.Sendto(r.control, msg, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
}

// idleLimit is how long code is left without a word: after 3 s of silence it gives its thread back.
const idleLimit = time.Second

// keepWaiting gives an empty batch to all code that has waited for long, but for that of busy, because others have their turn:
// where many threads have directories or descriptor tables of their own, that can take seconds.
func (e *engine) keepWaiting(busy *remote) {
	for _, r := range e.remotes {
		if r == busy || r.control < 0 || r.told.IsZero() || time.Since(r.told) < idleLimit {
			continue
		}
		var empty [16]byte
		if r.tell(empty[:]) == nil { // what is wrong with it shows when its turn comes
			r.unread++
		}
	}
}

// meddled is the error for what our code never does. Other processes run, and may write to the
// memory of this one, or take its sockets, as a debugger does (ptrace(2), access mode checking):
// what comes from there is checked before it is used.
func (r *remote) meddled(what string) error {
	if r.dying() {
		return errTargetGone
	}
	return fmt.Errorf("the code in thread %d (%s) is not itself any more: %s. Another process writes to its memory or its descriptors", r.t.tid, r.p.comm, what)
}

// leftOf reads a reply: how many calls the code left undone.
func (r *remote) leftOf(msg []byte) (int, error) {
	n, ok := leftIn(msg)
	if !ok {
		return 0, r.meddled(fmt.Sprintf("it left %d calls", uint64(n)))
	}
	return n, nil
}

func leftIn(msg []byte) (left int, ok bool) {
	n := binary.LittleEndian.Uint64(msg)
	return int(n), n <= math.MaxInt32
}
