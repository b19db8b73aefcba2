package fusefs

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// polling decides how a reader waits for the next request: asleep in read(2), or
// for a moment by looking again and again before that.
//
// A program that makes one call after the other sleeps while it is answered and
// sends its next request some microseconds later. On idle processors, waking the
// reader for it can take longer than everything else; on busy ones, looking
// takes time from the program. Nobody can tell beforehand which it is (virtual
// machines differ most), so both ways are tried in turn, and the one with which
// requests come faster is used. Where requests come seldom nothing is tried:
// an idle layer takes no processor time.
type polling struct {
	off   bool // there is one processor only
	mu    sync.Mutex
	spin  bool // this window looks
	count int  // requests in this window
	begun int64
	cycle [2]int64 // ns from request to request when last tried: asleep, looking
	turns int      // windows since the other way was tried
}

const (
	// pollFor is how long a reader looks before it sleeps.
	pollFor = 40 * time.Microsecond
	// pollWindow is how many requests one way is tried for.
	pollWindow = 48
	// pollRetry is after how many windows the other way is tried again.
	pollRetry = 24
	// pollBelow: with requests further apart than this nothing is gained.
	pollBelow = 150 * time.Microsecond
)

// wait returns when a request is there, or it is better to sleep until one is.
func (p *polling) wait(d *device, now int64) {
	if p.off || !p.mu.TryLock() {
		return
	}
	defer p.mu.Unlock()
	p.step(now)
	if !p.spin {
		return
	}
	for end := now + int64(pollFor); !d.pending() && nanotime() < end; {
		// Whoever is going to send the request may wait for this processor.
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // never fails
	}
}

// step counts a request and chooses the way at the end of a window.
func (p *polling) step(now int64) {
	if p.count++; p.count < pollWindow {
		return
	}
	cycle := (now - p.begun) / int64(p.count)
	p.begun, p.count = now, 0
	if cycle > int64(pollBelow) {
		p.spin, p.turns, p.cycle = false, 0, [2]int64{}
		return
	}
	p.choose(cycle)
}

// choose takes the cycle of the window that has ended and decides about the next.
func (p *polling) choose(cycle int64) {
	way := 0
	if p.spin {
		way = 1
	}
	if have := p.cycle[way]; have != 0 {
		cycle = (have + cycle) / 2
	}
	p.cycle[way] = cycle
	if p.cycle[1-way] == 0 { // not tried yet
		p.spin = !p.spin
		return
	}
	p.spin = p.cycle[1] < p.cycle[0]*9/10 // looking takes processor time: it has to be worth it
	if p.turns++; p.turns >= pollRetry {
		p.turns, p.spin = 0, !p.spin
	}
}
