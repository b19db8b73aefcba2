package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// What the runtime says of a container goes into the event log beside the faults
// on it, so that a fault and its effect stand together: that the kernel killed
// something in it for want of memory, and that it ended, and how.

// oom notes that the kernel's OOM killer was at work in a container.
func (r *reconciler) oom(k Key, at time.Time) {
	r.runtimeEvent(k, 0, keeper.Event{Type: keeper.EventOOM, Time: at, Message: "the kernel killed a process of the container: it was out of memory"})
}

// exited notes how the first process of a container ended.
func (r *reconciler) exited(k Key, pid int, status uint32, at time.Time) {
	message := fmt.Sprintf("exit status %d", status)
	if status > 128 && status < 128+65 { // as a shell has it; signal(7)
		message += fmt.Sprintf(": signal %d, if one ended it", status-128)
	}
	r.runtimeEvent(k, pid, keeper.Event{Type: keeper.EventExit, Time: at, PID: uint32(pid), ExitStatus: &status, Message: message})
}

func (r *reconciler) runtimeEvent(k Key, pid int, e keeper.Event) {
	r.mu.Lock()
	name, faulted := "", false
	if rec := r.records[k]; rec != nil {
		name, faulted = rec.c.DisplayName(), rec.c.State != StateNone
		if pid == 0 {
			pid = rec.c.PID
		}
	}
	r.mu.Unlock()
	if !faulted && !r.touched(k, pid) {
		return // others are nobody's business here, and many
	}
	e.Target, e.Name = k.ID, name
	if err := keeper.WriteEvent(r.stateDir, e); err != nil {
		r.metrics.problems.WithLabelValues("event").Inc()
		r.log.Error("what the runtime said is not in the event log", "container", k.String(), "type", e.Type, "err", err)
	}
}

// touched: faults were put on the container by a person, who asks its keeper and
// not the agent. A keeper leaves when its target has ended; what it counted stays longer.
func (r *reconciler) touched(k Key, pid int) bool {
	if len(r.faults.where(func(f *liveFault) bool { return f.of(k, pid, 0) || f.target.PID == pid && pid != 0 })) > 0 || r.ledger.knows(k) {
		return true
	}
	if pid == 0 {
		return false
	}
	dirs, err := filepath.Glob(filepath.Join(r.stateDir, "keepers", fmt.Sprintf("pid-%d-*", pid)))
	if err == nil && len(dirs) > 0 {
		if _, err := os.Stat(dirs[0]); err == nil {
			return true
		}
	}
	return false
}

// knows reports whether a container has had a fault lately.
func (l *faultLedger) knows(k Key) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.containers {
		if c.Key == k {
			return true
		}
	}
	if source, ok := l.grafts.(endedGrafts); ok {
		ended, err := source.Ended()
		if err != nil {
			l.log.Warn("counts of ended grafts", "err", err)
		}
		for _, e := range ended {
			if (Key{e.Target.Namespace, e.Target.ID}) == k {
				return true
			}
		}
	}
	return false
}
