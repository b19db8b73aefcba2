package tracer

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockWaiter is a process that waits for a POSIX or OFD lock.
type lockWaiter struct {
	pid        int // -1 for an OFD lock
	typ        int16
	ino        uint64
	start, end uint64 // first and last byte
}

// parseLockWaiters reads /proc/locks (proc_locks(5)): the lines that begin with "->" after the number.
func parseLockWaiters(text []byte) (all []lockWaiter) {
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 9 || f[1] != "->" || f[2] != "POSIX" && f[2] != "OFDLCK" {
			continue
		}
		w := lockWaiter{typ: unix.F_RDLCK, end: ^uint64(0)}
		if f[4] == "WRITE" {
			w.typ = unix.F_WRLCK
		}
		var errs [4]error
		w.pid, errs[0] = strconv.Atoi(f[5])
		w.ino, errs[1] = strconv.ParseUint(f[6][strings.LastIndexByte(f[6], ':')+1:], 10, 64)
		w.start, errs[2] = strconv.ParseUint(f[7], 10, 64)
		if f[8] != "EOF" {
			w.end, errs[3] = strconv.ParseUint(f[8], 10, 64)
		}
		if errs == [4]error{} {
			all = append(all, w)
		}
	}
	return all
}

// gets reports that the waiter would have the lock in the moment in which it is less than it was.
func (w lockWaiter) gets(l *heldLock) bool {
	last := ^uint64(0)
	if l.Len != 0 {
		last = uint64(l.Start + l.Len - 1)
	}
	return w.ino == l.obj.Ino && w.start <= last && uint64(l.Start) <= w.end && (w.typ == unix.F_RDLCK || !l.shared())
}

// waitersPatience is for requests that the stop has just interrupted.
const waitersPatience = 100 * time.Millisecond

// refuseWaiters refuses an exchange in which somebody who waits for a lock would
// get it. Reading /proc/locks takes 10 ms and more (percpu_down_write in
// fs/locks.c waits for RCU), so that only processes with write locks pay for it.
func (j *job) refuseWaiters() error {
	some := false
	for i := range j.locks {
		some = some || j.locks[i].Type == unix.F_WRLCK || !j.locks[i].shared()
	}
	if !some {
		return nil
	}
	for end := time.Now().Add(waitersPatience); ; briefly(5 * time.Millisecond) {
		text, err := os.ReadFile("/proc/locks")
		if err != nil {
			return fmt.Errorf("look who waits for locks: %w", err)
		}
		w, l := j.waiter(parseLockWaiters(text))
		if w == nil {
			return nil
		}
		if time.Now().Before(end) {
			continue
		}
		who := fmt.Sprintf("process %d", w.pid)
		if st, err := readStatus(w.pid); err == nil {
			who += " (" + st.name + ")"
		}
		if w.pid <= 0 {
			who = "a process (with an OFD lock)"
		}
		kind := map[int16]string{unix.F_RDLCK: "read", unix.F_WRLCK: "write"}[w.typ]
		return fmt.Errorf("%s waits for a %s lock at %s, where process %d (%s) has a lock that it would lose to it", who, kind, l.obj.Path, j.p.pid, j.p.comm)
	}
}

func (j *job) waiter(all []lockWaiter) (*lockWaiter, *heldLock) {
	for i := range all {
		for k := range j.locks {
			if all[i].gets(&j.locks[k]) {
				return &all[i], &j.locks[k]
			}
		}
	}
	return nil, nil
}
