package tracer

import (
	"fmt"
	"sync/atomic"
	"time"
)

// What the tracing thread itself waits in while a target stands has an end, but for looks at processes that run: one that is
// within an execve(2) lets nobody look at it (exec_update_lock, fs/exec.c), and whoever does sleeps so that only its own death wakes
// it. Then the death of the whole process is what lets the targets go. That is for the caller to decide (Options.Hung), who is told by the watchdog.

// watchTick is how often the watchdog looks, silentTicks for how many of these the tracing thread must not have come on, and
// hungAfter by how much the deadline must be over. It counts its own looks, so that a process that was stopped for a while is not taken for one that hangs.
const (
	watchTick   = 50 * time.Millisecond
	silentTicks = 60
	hungAfter   = silentTicks * watchTick
)

// pulse is what the watchdog sees of the tracing thread.
type pulse struct {
	beats    atomic.Uint64
	standing atomic.Bool // processes are being stopped
	passing  atomic.Bool // locks go over from file to file: our death would take some away
	step     atomic.Pointer[string]
	looking  atomic.Pointer[process] // at which running process is looked; nil for none
	tid      int
}

// beat is called by the tracing thread wherever it comes on.
func (p *pulse) beat() {
	if p != nil {
		p.beats.Add(1)
	}
}

// watch starts the watchdog; it ends when over is closed.
func (x *transaction) watch(over <-chan struct{}) {
	deadline := x.deadline
	go func() {
		tick := time.NewTicker(watchTick)
		defer tick.Stop()
		var seen uint64
		silent := 0
		for {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			now := time.Now()
			until := x.asides.until.Load()
			if until != 0 && now.UnixNano() > until {
				select {
				case x.asides.late <- struct{}{}:
				default: // told already
				}
			}
			if n := x.pulse.beats.Load(); n != seen || until != 0 || !x.pulse.standing.Load() {
				seen, silent = n, 0
				continue
			}
			if silent++; silent < silentTicks || now.Before(deadline.Add(hungAfter)) || x.pulse.passing.Load() || x.o.Hung == nil {
				continue
			}
			where, _ := readProc(procPath(x.pulse.tid, "wchan"))
			at := "step " + *x.pulse.step.Load()
			if p := x.pulse.looking.Load(); p != nil {
				at = fmt.Sprintf("a look at process %d (%s)", p.pid, p.comm)
			}
			x.o.Hung(fmt.Sprintf("%s has come no further for %v while processes stood still%s", at, time.Duration(silent)*watchTick, waiting(x.pulse.tid, string(where))))
			silent = 0
		}
	}()
}
