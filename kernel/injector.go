package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cilium/ebpf/btf"
	"github.com/faultgraft/faultgraft/policy"
)

// DefaultPinDir is where faults that outlive their process are pinned.
const DefaultPinDir = "/sys/fs/bpf/faultgraft"

// Options are those of an Injector.
type Options struct {
	// Log gets what is worth a line; nil is slog.Default.
	Log *slog.Logger
	// PinDir is a directory in bpffs for faults that outlive this process. It is
	// made when the first is armed. Empty is DefaultPinDir.
	PinDir string
	// OnEvent is called for each injection, from one goroutine, in the order in
	// which the kernel wrote them. Nil: nobody wants to know.
	OnEvent func(Event)
}

// Fault is one kernel fault for one target.
type Fault struct {
	// ID names the fault among those of an Injector, and in its events.
	ID string
	// Rule has Kernel set. Its seed was chosen (policy.Rule.EnsureSeed).
	Rule policy.Rule
	// Cgroup is where the fault holds, with all below. The root is refused.
	Cgroup Cgroup
	// PID is a process of the target. If it has a mount namespace of its own, what is
	// in the cgroup and still in the one that the container's runtime comes from is
	// spared. 0: nobody knows of any, and nothing is.
	PID int
	// Age is how long the rule's clock (delay, pulses, ttl) has run already.
	Age time.Duration
	// Outlive keeps the fault in the kernel when the Injector is closed or its
	// process dies, until the rule's ttl ends. It is found again by Outliving.
	Outlive bool
	// Owner says whose it is, in words that mean something to the caller. It is kept with a fault that outlives.
	Owner string
}

// Counters are what happened under one fault in its cgroup.
type Counters struct {
	// Evaluated is how often the hook point was reached in the cgroup, where it may be failed at all.
	Evaluated uint64 `json:"evaluated"`
	// Matched is how many of them the rule is about: awake, caller, predicate and call chain fit.
	Matched uint64 `json:"matched"`
	// Injected is on how many of those the rule fired.
	Injected uint64 `json:"injected"`
	// Dropped is how many injections have no event, because the buffer was full.
	Dropped uint64 `json:"dropped,omitempty"`
}

// Injector holds kernel faults. It may be used from any number of goroutines.
type Injector struct {
	options Options

	mu        sync.Mutex
	closed    bool
	host      *host // read with the first fault
	spec      *btf.Spec
	ring      *ring // of all faults but those that outlive
	armed     map[string]*Armed
	instances []*instance
	handles   uint64
}

// New makes an Injector. It loads nothing until the first fault.
func New(o Options) (*Injector, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.PinDir == "" {
		o.PinDir = DefaultPinDir
	}
	return &Injector{options: o, armed: map[string]*Armed{}}, nil
}

// Close ends all faults but those that outlive. OnEvent has had their last
// injections when it returns.
func (in *Injector) Close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return nil
	}
	in.closed = true
	var errs []error
	for _, a := range in.armed {
		if !a.fault.Outlive {
			errs = append(errs, a.end())
		}
	}
	for _, i := range in.instances {
		errs = append(errs, i.release())
	}
	in.instances, in.armed = nil, nil
	if in.ring != nil {
		errs = append(errs, in.ring.close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("kernel faults: %w", err)
	}
	return nil
}

var errClosed = errors.New("the injector is closed")

// Arm puts a fault in force. Either all of it is, when Arm returns, or nothing
// is and the error says why: a *policy.SyntaxError if a predicate is wrong,
// ErrUnsupported if this kernel cannot do it.
func (in *Injector) Arm(ctx context.Context, f Fault) (*Armed, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("kernel fault %s: %w", f.ID, err)
	}
	a, err := in.arm(f)
	if err != nil {
		return nil, fmt.Errorf("kernel fault %s: %w", f.ID, err)
	}
	in.armed[f.ID] = a
	return a, nil
}

func (f *Fault) check() error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("kernel fault %s: "+format, append([]any{f.ID}, args...)...)
	}
	switch t := f.Rule.Trigger; {
	case f.Rule.Kernel == nil:
		return refuse("rule %q has no kernel fault", f.Rule.Name)
	case f.Cgroup.Level <= 0 || f.Cgroup.ID <= 1:
		return refuse("%w", errRootCgroup)
	case t.TTL <= f.Age:
		return refuse("its ttl of %v is over", t.TTL)
	case t.AfterBytes > 0:
		return refuse("afterBytes makes no sense for it: kernel functions transfer no bytes")
	}
	now, err := CgroupAt(f.Cgroup.Path)
	if err == nil && now.ID != f.Cgroup.ID {
		err = fmt.Errorf("cgroup %s is another one by now: it was removed and made again", f.Cgroup.Path)
	}
	if err == nil && f.Rule.Kernel.Hook.Kind == HookBio {
		err = now.needsIO()
	}
	if err != nil {
		return refuse("%w", err)
	}
	f.Cgroup = now
	return nil
}

func (in *Injector) arm(f Fault) (*Armed, error) {
	if in.closed {
		return nil, errClosed
	}
	if in.armed[f.ID] != nil {
		return nil, errors.New("there is a fault of that id already")
	}
	shape, err := shapeOf(f.Rule.Kernel)
	if err != nil {
		return nil, err
	}
	in.handles++
	a := &Armed{fault: f, injector: in, handle: in.handles}
	if f.Outlive {
		return a, in.armOutliving(a)
	}
	for _, i := range in.instances {
		if i.shape == shape && i.fits(f.Cgroup) {
			return a, a.enter(i)
		}
	}
	i, err := in.newInstance(f)
	if err != nil {
		return nil, err
	}
	i.shape = shape
	if err := a.enter(i); err != nil {
		return nil, errors.Join(err, i.close())
	}
	in.instances = append(in.instances, i)
	return a, nil
}

// newInstance takes the first way that the kernel accepts.
func (in *Injector) newInstance(f Fault) (*instance, error) {
	if err := in.look(); err != nil {
		return nil, err
	}
	k := f.Rule.Kernel
	all, err := ways(k, in.host, in.spec)
	if err != nil {
		return nil, err
	}
	why := map[string]string{}
	for _, w := range all {
		if w.no != "" {
			continue
		}
		filters, err := newFilters(in.spec, f.Rule, w)
		if err != nil {
			return nil, err
		}
		i := &instance{way: w, filters: filters, ring: in.ring, own: f.Outlive, members: map[uint64]*Armed{}}
		if i.own { // it is read by whoever adopts the fault
			if i.ring, err = in.newRing(); err != nil {
				return nil, err
			}
		}
		err = i.load(in.spec, k)
		if err == nil {
			return i, nil
		}
		var refused *loadError
		if !errors.As(err, &refused) {
			return nil, err
		}
		in.options.Log.Debug("kernel faults: a backend is not there", "hook", k.Hook, "backend", w.backend, "function", w.function.name, "error", err)
		w.function.config = "" // the function is there
		why[w.name()] = in.host.because(refused.what+": "+in.host.cut(refused.err), refused.err, in.host.needs(w))
	}
	return nil, noWay(k.Hook, all, func(w way) string { return w.because(why[w.name()]) })
}

// look reads what does not change while the machine is up, and makes the ring buffer.
func (in *Injector) look() (err error) {
	if in.host == nil {
		in.host = readSettings()
	}
	if in.spec == nil {
		if in.spec, err = kernelTypes(); err != nil {
			return errNoTypes(err)
		}
	}
	if in.ring == nil && in.options.OnEvent != nil {
		in.ring, err = in.newRing()
	}
	return err
}

func (in *Injector) newRing() (*ring, error) {
	m, err := newRingMap()
	if err != nil {
		return nil, err
	}
	return readRing(m, in.options.OnEvent, in.options.Log, map[uint64]*Armed{})
}
