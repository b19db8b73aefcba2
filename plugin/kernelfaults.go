package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

// ErrNoKernelFault says that no kernel fault has the id.
var ErrNoKernelFault = errors.New("no such kernel fault")

// NoKernelFault is the ErrNoKernelFault of an id.
func NoKernelFault(id string) error {
	return fmt.Errorf("%w: %s (see faultgraft ps)", ErrNoKernelFault, id)
}

// lookAgain is how often a fault's cgroup is looked at: when it is gone, so is the fault.
const lookAgain = 5 * time.Second

// Why a kernel fault ended.
const (
	endAsked    = "asked for"
	endExpired  = "its ttl is over"
	endNoCgroup = "its cgroup was removed"
	endTakenOut = "another process of faultgraft has ended it"
	endTask     = "the container's task has ended"
	endLabels   = "the container's labels no longer ask for it"
	endExcluded = "enable" + domain + "=false"
	endFailed   = "another rule of the same request failed"
)

// kernelFaults holds the kernel faults of this process. They live in programs
// that only this process holds: when it ends, they do, but for those that outlive.
type kernelFaults struct {
	kernelSide
	log    *slog.Logger
	events *kernelEvents
	// ended is told of a fault that is over, why, outside of all locks; may be nil.
	ended func(f *liveFault, why string)
	// counted is told what a fault did that is over; may be nil.
	counted func(KernelFault)

	mu     sync.Mutex
	in     injector // nil until the first fault
	closed bool
	faults map[string]*liveFault
}

// liveFault is a fault in force.
type liveFault struct {
	armed   armedFault
	id      string
	target  keeper.Target
	origin  keeper.Origin
	who     string // asked for it; empty: nobody did
	since   time.Time
	cgroup  kernel.Cgroup
	rule    policy.Rule
	outlive bool
	timer   *time.Timer
	ending  bool
}

// armSpec is a fault to be armed.
type armSpec struct {
	target  keeper.Target
	cgroup  kernel.Cgroup
	rule    policy.Rule
	age     time.Duration
	origin  keeper.Origin
	who     string
	outlive bool
}

func newKernelFaults(k kernelSide, stateDir string, log *slog.Logger) *kernelFaults {
	return &kernelFaults{kernelSide: k, log: log, events: newKernelEvents(stateDir, log), faults: map[string]*liveFault{}}
}

// of a container: also those that a person asked for by its first process.
func (f *liveFault) of(k Key, pid int, start uint64) bool {
	t := f.target
	return t.Namespace == k.Namespace && t.ID == k.ID || t.Namespace == "" && pid != 0 && t.PID == pid && t.StartTime == start
}

// injector opens the injector when it is needed first.
func (k *kernelFaults) injector() (injector, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errors.New("the agent is ending: no more kernel faults")
	}
	if k.in == nil {
		in, err := k.open(k.events.injected)
		if err != nil {
			return nil, err
		}
		k.in = in
	}
	return k.in, nil
}

// arm puts one fault in force.
func (k *kernelFaults) arm(ctx context.Context, s armSpec) (*liveFault, error) {
	if err := keeper.CheckStopped(k.events.dir); err != nil {
		return nil, err
	}
	in, err := k.injector()
	if err != nil {
		return nil, fmt.Errorf("rule %s: %w", s.rule.FullName(), err)
	}
	atKernelArm.Pass("opened")
	f := &liveFault{
		id: newKernelFaultID(), target: s.target, origin: s.origin, who: s.who, since: time.Now(), cgroup: s.cgroup, rule: s.rule, outlive: s.outlive,
	}
	k.events.expect(f) // before the first event can come
	f.armed, err = in.Arm(ctx, kernel.Fault{ID: f.id, Rule: s.rule, Cgroup: s.cgroup, PID: s.target.PID, Age: s.age, Outlive: s.outlive, Owner: k.events.dir})
	if err != nil {
		k.events.forget(f.id)
		return nil, fmt.Errorf("rule %s: %w", s.rule.FullName(), err)
	}
	atKernelArm.Pass("armed")
	if !k.hold(f) {
		return nil, errors.Join(fmt.Errorf("rule %s: the agent is ending", s.rule.FullName()), f.armed.Disarm())
	}
	atKernelArm.Pass("held")
	// Once more, now that it is on the list: a stop ends what is there.
	if err := keeper.CheckStopped(k.events.dir); err != nil {
		_, derr := k.disarm(f.id, endStopped+"it had just been armed")
		if errors.Is(derr, ErrNoKernelFault) {
			derr = nil
		}
		return nil, errors.Join(err, derr)
	}
	k.log.Info("kernel fault armed", "fault", f.id, "container", displayOf(f.target), "pid", f.target.PID, "rule", s.rule.FullName(), "hook", hookOf(s.rule), "backend", f.armed.Backend(),
		"functions", strings.Join(f.armed.Functions(), ","), "cgroup", s.cgroup.Path, "origin", s.origin, "seed", s.rule.Trigger.Seed, "ends", f.armed.Ends().Format(time.RFC3339), "outlive", s.outlive)
	k.events.armed(f)
	atKernelArm.Pass("logged")
	return f, nil
}

// armAll puts all faults in force, or none.
func (k *kernelFaults) armAll(ctx context.Context, specs []armSpec) ([]KernelFault, error) {
	var done []*liveFault
	for _, s := range specs {
		f, err := k.arm(ctx, s)
		if err != nil {
			for _, d := range done {
				_, derr := k.disarm(d.id, endFailed)
				err = errors.Join(err, derr)
			}
			return nil, err
		}
		done = append(done, f)
	}
	out := make([]KernelFault, 0, len(done))
	for _, f := range done {
		out = append(out, f.status())
	}
	return out, nil
}

// hold takes a fault into the list; false: there is none any more.
func (k *kernelFaults) hold(f *liveFault) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return false
	}
	k.faults[f.id] = f
	f.timer = time.AfterFunc(f.untilLook(), func() { k.look(f) })
	return true
}

// settle tells a fault that was armed before its task was there which one it is.
func (k *kernelFaults) settle(f *liveFault, t keeper.Target) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f.target.PID != 0 || k.faults[f.id] != f || f.ending {
		return
	}
	f.timer.Stop()
	next := &liveFault{ // others may be reading the old one
		armed: f.armed, id: f.id, target: t, origin: f.origin, who: f.who, since: f.since, cgroup: f.cgroup, rule: f.rule, outlive: f.outlive,
	}
	next.timer = time.AfterFunc(next.untilLook(), func() { k.look(next) })
	k.faults[f.id] = next
}

func (f *liveFault) untilLook() time.Duration {
	return min(max(time.Until(f.armed.Ends()), 0)+100*time.Millisecond, lookAgain)
}

// look ends a fault whose time is up or whose cgroup is gone.
func (k *kernelFaults) look(f *liveFault) {
	why := ""
	switch {
	case !time.Now().Before(f.armed.Ends()):
		why = endExpired
	case k.gone(f.cgroup):
		why = endNoCgroup
	case f.armed.TakenOut():
		why = endTakenOut
	}
	if why != "" {
		if _, err := k.disarm(f.id, why); err == nil || errors.Is(err, ErrNoKernelFault) {
			return
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.faults[f.id] == f && !k.closed {
		f.timer.Reset(f.untilLook())
	}
}

// disarm ends a fault. On an error it is still on the list, to be tried again.
func (k *kernelFaults) disarm(id, why string) (KernelFault, error) { return k.disarmFor(id, why, "") }

// disarmFor is disarm for somebody who asked for it.
func (k *kernelFaults) disarmFor(id, why, who string) (KernelFault, error) {
	k.mu.Lock()
	f := k.faults[id]
	if f == nil || f.ending {
		k.mu.Unlock()
		return KernelFault{}, NoKernelFault(id)
	}
	f.ending = true
	f.timer.Stop()
	k.mu.Unlock()
	err := f.armed.Disarm()
	atKernelEnd.Pass("disarmed")
	out := f.status()
	k.mu.Lock()
	f.ending = false
	if err == nil {
		delete(k.faults, id)
	} else if !k.closed {
		f.timer.Reset(lookAgain)
	}
	k.mu.Unlock()
	if err != nil {
		k.log.Error("a kernel fault cannot be ended", "fault", id, "container", displayOf(f.target), "why", why, "err", err)
		return out, fmt.Errorf("kernel fault %s: %w", id, err)
	}
	atKernelEnd.Pass("unlisted")
	n := out.Kernel.Counters
	k.log.Info("kernel fault ended", "fault", id, "container", displayOf(f.target), "rule", f.rule.FullName(), "why", why, "evaluated", n.Evaluated, "matched", n.Matched, "injected", n.Injected)
	k.events.disarmed(f, why, who, n)
	atKernelEnd.Pass("logged")
	if k.counted != nil {
		k.counted(out)
	}
	atKernelEnd.Pass("counted")
	if k.ended != nil {
		k.ended(f, why)
	}
	atKernelEnd.Pass("over")
	return out, nil
}

// disarmAll ends faults; those that ended by themselves meanwhile are no error.
func (k *kernelFaults) disarmAll(faults []*liveFault, why string) error {
	var errs []error
	for _, f := range faults {
		if _, err := k.disarm(f.id, why); err != nil && !errors.Is(err, ErrNoKernelFault) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// where gives the faults that a condition holds for, the oldest first.
func (k *kernelFaults) where(ok func(*liveFault) bool) []*liveFault {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*liveFault
	for _, f := range k.faults {
		if !f.ending && ok(f) {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b *liveFault) int { return a.since.Compare(b.since) })
	return out
}

// list describes all faults, the oldest first.
func (k *kernelFaults) list() []KernelFault {
	all := k.where(func(*liveFault) bool { return true })
	out := make([]KernelFault, 0, len(all))
	for _, f := range all {
		out = append(out, f.status())
	}
	return out
}

// adopt takes over what outlived an earlier agent or a command, and ends what is over.
func (k *kernelFaults) adopt() error {
	pinned, err := k.outliving()
	if err != nil {
		return fmt.Errorf("kernel faults that outlived who armed them: %w", err)
	}
	var errs []error
	for _, p := range pinned {
		if dir := k.heldBy(p); dir != "" {
			k.log.Info("a kernel fault is left to the agent that holds it", "fault", p.ID, "stateDir", dir)
			continue
		}
		if !time.Now().Before(p.Ends) || k.gone(p.Cgroup) {
			k.log.Info("a kernel fault is over that outlived who armed it", "fault", p.ID, "cgroup", p.Cgroup.Path, "rule", p.Rule.FullName())
			if err := p.End(); err != nil {
				errs = append(errs, fmt.Errorf("end kernel fault %s: %w", p.ID, err))
			}
			atKernelAdopt.Pass("ended")
			continue
		}
		in, err := k.injector()
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		f := &liveFault{id: p.ID, target: pinnedTarget(p.Cgroup), origin: keeper.OriginUser, since: p.Started, cgroup: p.Cgroup, rule: p.Rule, outlive: true}
		k.events.expect(f)
		if f.armed, err = in.Adopt(p); err != nil {
			k.events.forget(p.ID)
			errs = append(errs, fmt.Errorf("take kernel fault %s over: %w; faultgraft recover %s ends it", p.ID, err, p.ID))
			continue
		}
		atKernelAdopt.Pass("taken")
		if k.hold(f) {
			k.log.Info("kernel fault taken over", "fault", p.ID, "cgroup", p.Cgroup.Path, "rule", p.Rule.FullName(), "ends", p.Ends.Format(time.RFC3339))
		}
		atKernelAdopt.Pass("held")
	}
	return errors.Join(errs...)
}

// close ends all but what outlives.
func (k *kernelFaults) close() error {
	k.mu.Lock()
	k.closed = true
	in := k.in
	k.in = nil
	var ending []*liveFault
	for _, f := range k.faults {
		f.timer.Stop()
		if !f.outlive && !f.ending {
			ending = append(ending, f)
		}
	}
	k.faults = map[string]*liveFault{}
	k.mu.Unlock()
	var err error
	if in != nil {
		err = in.Close()
	}
	atKernelClose.Pass("closed")
	for _, f := range ending {
		n, cerr := f.armed.Counters()
		if cerr != nil {
			k.log.Debug("counters of a kernel fault that has ended", "fault", f.id, "err", cerr)
		}
		k.log.Info("kernel fault ended", "fault", f.id, "container", displayOf(f.target), "rule", f.rule.FullName(), "why", "the agent ends", "injected", n.Injected)
		k.events.disarmed(f, "the agent ends", "", n)
		atKernelClose.Pass("logged")
		if k.counted != nil {
			over := f.status()
			over.Kernel.Counters = n
			k.counted(over)
		}
		atKernelClose.Pass("counted")
	}
	return errors.Join(err, k.events.close())
}

// status describes a fault as it is now.
func (f *liveFault) status() KernelFault {
	n, err := f.armed.Counters()
	s := KernelFault{ID: f.id, Target: f.target, State: keeper.StateActive, Origin: f.origin, Since: f.since}
	s.Rules = []keeper.RuleStatus{ruleStatus(f.rule, n, f.armed.Ends())}
	s.Kernel = KernelStatus{
		Hook: hookOf(f.rule), Errno: errnoOf(f.rule), Backend: f.armed.Backend(), Functions: f.armed.Functions(), Note: f.armed.Note(), Cgroup: f.cgroup, Counters: n, Outlive: f.outlive,
	}
	if err != nil {
		s.Kernel.Note = strings.TrimPrefix(s.Kernel.Note+"; its counters cannot be read: "+err.Error(), "; ")
	}
	return s
}

func displayOf(t keeper.Target) string {
	if t.Name != "" {
		return t.Name
	}
	return t.ID
}
