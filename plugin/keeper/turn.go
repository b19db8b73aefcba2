package keeper

import (
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Each keeper swaps by itself, and hundreds may be asked at once. A swap keeps a processor busy, some of it with a real-time priority, and
// so does the start of a keeper and of its server: with more of them than processors none would be done earlier, and keepers would have no
// time to say that they run. So they take turns, over all processes of a state directory.

// turns is how many swaps and starts there may be at once, and for how long one waits for its turn.
type turns struct {
	// file is where each turn that is taken is locked: one byte, by the open file (F_OFD_SETLK of fcntl(2)).
	file string
	most int
	// patience ends a wait in which no turn is taken by anybody: swaps that hang, or commands that are suspended, hold others up that
	// long and no longer. A long queue is none of these.
	patience time.Duration
}

// turnPatience is several swaps of a target as they usually are.
const turnPatience = 20 * time.Second

func (d stateDir) turns() turns {
	return turns{filepath.Join(string(d), "turns"), max(4, 2*runtime.NumCPU()), turnPatience}
}

// take waits for a turn; back gives it back, as the end of the process does. It does nothing the second time.
func (t turns) take() (back func()) {
	q := t.queue()
	for pause := firstPause; ; pause = longer(pause) {
		if back, ok := q.try(); ok {
			return back
		}
		time.Sleep(pause)
	}
}

// firstPause is between two looks at what is waited for.
const firstPause = 10 * time.Millisecond

// longer is the pause after that, as many may wait for the same thing.
func longer(pause time.Duration) time.Duration { return min(2*pause, 100*time.Millisecond) }

// queued is one that waits for its turn.
type queued struct {
	turns
	// moved is when the last turn was taken, by the file system's clock; since is when that was seen.
	moved time.Time
	since time.Time
}

func (t turns) queue() *queued { return &queued{turns: t, since: time.Now()} }

// try takes a turn if there is one, or if patience is over; back does nothing then. Without a place to note turns there are none.
func (q *queued) try() (back func(), ok bool) {
	f, err := os.OpenFile(q.file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return func() {}, true
	}
	for n := range q.most {
		byteOf := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(n), Len: 1}
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &byteOf)
		if err == nil {
			now := time.Now()
			_ = os.Chtimes(q.file, now, now) // who waits looks at it, and would wait less long
			return func() { _ = f.Close() }, true
		}
	}
	is, err := f.Stat()
	_ = f.Close() // nothing was written
	if err != nil {
		return func() {}, true
	}
	if at := is.ModTime(); !at.Equal(q.moved) {
		q.moved, q.since = at, time.Now()
	}
	return func() {}, time.Since(q.since) >= q.patience
}
