package tracer

import (
	"time"

	"golang.org/x/sys/unix"
)

// What the tracing thread waits for, that a thread of a target stops or that code of ours there
// answers, comes within some 50 µs, if that thread has a processor: which may be the very one
// that we look for it on. The kernel likes to wake a thread where its waker is (wake_affine in
// kernel/sched/fair.c), and lets who runs go on for a slice of milliseconds. So looking again
// and again is right for no longer than it takes to sleep and to be woken; then we sleep,
// which costs next to nothing if the other one was waiting for our processor. sched_yield(2)
// would do as well on an idle machine, and on a busy one gives up a whole slice each time.

// spin is how long an answer or a stop is looked for before we sleep: on the socket, or by the clock.
const spin = 30 * time.Microsecond

// lookAround is how often it is looked, in a wait that takes long, whether something is wrong.
const lookAround = 20 * time.Millisecond

// wait is one wait of the tracing thread. The zero value is one for a stop.
type wait struct {
	answer bool // comes on the socket
	socket int
	since  time.Time
	looked time.Time
	nap    pause
	pulse  *pulse // what waits comes on
}

// rest lets time pass before what is waited for is looked for again.
func (w *wait) rest() {
	w.pulse.beat()
	if w.since.IsZero() {
		w.since = time.Now()
		w.looked = w.since
	}
	if time.Since(w.since) < spin {
		return
	}
	if !w.answer {
		w.nap.sleep()
		return
	}
	ts := unix.NsecToTimespec(int64(lookAround))
	_, _ = unix.Ppoll([]unix.PollFd{{Fd: int32(w.socket), Events: unix.POLLIN}}, &ts, nil) // a signal may cut it short
}

// long reports, every now and then, that the wait takes long.
func (w *wait) long() bool {
	now := time.Now()
	if w.since.IsZero() || now.Sub(w.looked) < lookAround {
		return false
	}
	w.looked = now
	return true
}

// took is how long the wait has taken.
func (w *wait) took() time.Duration {
	if w.since.IsZero() {
		return 0
	}
	return time.Since(w.since)
}

// pause is a short sleep that grows: most threads stop within microseconds.
type pause time.Duration

func (d *pause) sleep() {
	*d = min(max(*d*3/2, pause(20*time.Microsecond)), pause(time.Millisecond))
	briefly(time.Duration(*d))
}

// briefly sleeps in the kernel: time.Sleep rounds up to a millisecond when the
// program is idle otherwise. A signal may cut it short.
func briefly(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil)
}
