package tracer

import (
	"encoding/binary"
	"math"
	"time"
)

// batchTimeout bounds how long a thread may take for one batch. A close or a
// page fault in it can wait for a file system.
const batchTimeout = 10 * time.Second

// closeTimeout bounds how long it may wait for the server of a FUSE file system to answer one close, and it waits for one in nothing else
// that we have it do: the other threads of the process stand still meanwhile. Others that are answered, one after the other, have batchTimeout.
const closeTimeout = 2 * time.Second

// notMade stands for the result of a call that was not made yet; the kernel gives none that is so.
const notMade = math.MaxInt64

// doing is the batch that a thread has.
type doing struct {
	calls int
	table uint64 // address of them
}

// lateness knows during one wait how long a thread has been in the same close.
type lateness struct {
	r     *remote
	since time.Time
	at    [2]int
}

// stuck reports that the thread has taken too long for what it was told to do.
func (l *lateness) stuck(took time.Duration) bool {
	if took > batchTimeout {
		return true
	}
	b, err := readProc(procPath(l.r.t.tid, "wchan"))
	if err != nil || string(b) != "request_wait_answer" { // fs/fuse/dev.c
		l.since = time.Time{}
		return false
	}
	if at := l.r.progress(); l.since.IsZero() || at != l.at {
		l.since, l.at = time.Now(), at
		return false
	}
	return time.Since(l.since) > closeTimeout
}

// progress is how far the thread has come with its batch: how many calls it has made, and, because one close_range(2) closes many
// files, how many descriptors it has.
func (r *remote) progress() (at [2]int) {
	table := make([]byte, callBytes*r.doing.calls)
	if _, err := r.p.mem.ReadAt(table, int64(r.doing.table)); err == nil { // else the process has ended, as is seen elsewhere
		for ; len(table) > 0; table = table[callBytes:] {
			if binary.LittleEndian.Uint64(table[callBytes-8:]) != notMade {
				at[0]++
			}
		}
	}
	open, _ := numbers(procPath(r.t.tid, "fd")) // as above
	at[1] = len(open)
	return at
}
