package plugin

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// lateEvents is how long events of a fault that has ended are still expected.
const lateEvents = 2 * time.Second

// kernelEvents writes what happens with kernel faults to the node's event log,
// beside what keepers write of I/O faults. The log is open only as long as there
// is something to write, so that it can be purged and rotated in between.
type kernelEvents struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex
	file   *keeper.EventLog
	known  map[string]*liveFault
	lost   uint64
	closed bool
}

func newKernelEvents(stateDir string, log *slog.Logger) *kernelEvents {
	return &kernelEvents{dir: stateDir, log: log, known: map[string]*liveFault{}}
}

// expect says whose events a fault's will be.
func (k *kernelEvents) expect(f *liveFault) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known[f.id] = f
}

// forget ends that, and closes the log after the last fault.
func (k *kernelEvents) forget(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.known, id)
	if len(k.known) == 0 {
		k.closeFile()
	}
}

// injected writes one injection. It runs in the goroutine that empties the
// kernel's buffer: while it waits for the disk, the kernel counts what does not fit.
func (k *kernelEvents) injected(e kernel.Event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var t keeper.Target
	var from string
	if f := k.known[e.Fault]; f != nil {
		t, from = f.target, f.rule.Policy
	}
	k.write(keeper.Event{
		Time: e.Time, Type: keeper.EventFault, Graft: e.Fault, Target: t.ID, Name: t.Name, Rule: e.Rule, Policy: from, Action: "error", Errno: e.Error, N: e.Seq,
		PID: uint32(e.PID), TID: uint32(e.TID), Comm: e.Comm, Cgroup: e.Cgroup, Hook: e.Hook, Function: e.Function, Backend: e.Backend, Stack: e.Stack,
	})
	atKernelEvent.Pass("written")
}

func (k *kernelEvents) armed(f *liveFault) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.about(keeper.EventArm, f)
	e.Who, e.Message = f.who, f.rule.Text
	k.write(e)
}

func (k *kernelEvents) disarmed(f *liveFault, why, who string, n kernel.Counters) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.about(keeper.EventDisarm, f)
	if why == endExpired {
		e.Type = keeper.EventExpired
	}
	e.Who, e.Message = who, countersText(why, n)
	k.write(e)
	if n.Dropped > 0 {
		e = k.about(keeper.EventLost, f)
		e.N, e.Message = n.Dropped, fmt.Sprintf("%d faults were injected but not logged: the kernel's buffer was full", n.Dropped)
		k.write(e)
	}
	time.AfterFunc(lateEvents, func() { k.forget(f.id) })
}

// ended writes the end of a fault that nobody held.
func (k *kernelEvents) ended(f KernelFault, why, who string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.write(keeper.Event{
		Type: keeper.EventDisarm, Graft: f.ID, Target: f.Target.ID, Name: f.Target.Name, By: f.Origin, Who: who, Rule: f.Rules[0].Name, Policy: f.Rules[0].Policy, Hook: f.Kernel.Hook,
		Backend: f.Kernel.Backend, Cgroup: f.Kernel.Cgroup.ID, Message: countersText(why, f.Kernel.Counters),
	})
	if len(k.known) == 0 {
		k.closeFile()
	}
}

func countersText(why string, n kernel.Counters) string {
	return fmt.Sprintf("%s; %d of %d matching calls were failed", why, n.Injected, n.Matched)
}

// refused writes that something was not done.
func (k *kernelEvents) refused(t keeper.Target, by keeper.Origin, who string, rule policy.Rule, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.write(keeper.Event{Type: keeper.EventRefused, Target: t.ID, Name: t.Name, By: by, Who: who, Rule: rule.Name, Policy: rule.Policy, Message: err.Error()})
	if len(k.known) == 0 {
		k.closeFile()
	}
}

func (k *kernelEvents) about(t keeper.EventType, f *liveFault) keeper.Event {
	return keeper.Event{
		Type: t, Graft: f.id, Target: f.target.ID, Name: f.target.Name, By: f.origin, Rule: f.rule.Name, Policy: f.rule.Policy,
		Hook: hookOf(f.rule), Backend: f.armed.Backend(), Cgroup: f.cgroup.ID,
	}
}

// write appends an event; k.mu is held. What cannot be written is counted, and told once.
func (k *kernelEvents) write(e keeper.Event) {
	if k.closed {
		return
	}
	var err error
	if k.file == nil {
		k.file, err = keeper.OpenEventLog(k.dir)
	}
	if err == nil {
		err = k.file.Write(e)
	}
	if err != nil {
		if k.lost++; k.lost == 1 {
			k.log.Error("the event log cannot be written; events of kernel faults are lost", "err", err)
		}
	}
}

// closeFile closes the log until the next event; k.mu is held.
func (k *kernelEvents) closeFile() {
	if k.file == nil {
		return
	}
	if err := k.file.Close(); err != nil {
		k.log.Error("close the event log", "err", err)
	}
	k.file = nil
}

func (k *kernelEvents) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	k.closeFile()
	if k.lost > 0 {
		return fmt.Errorf("%d events of kernel faults could not be written to the event log", k.lost)
	}
	return nil
}
