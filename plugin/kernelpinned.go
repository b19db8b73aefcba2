package plugin

import (
	"context"
	"errors"
	"log/slog"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin/wire"
)

// endPinned ends a fault that nobody in particular holds.
func (k *kernelFaults) endPinned(id, who string) (KernelFault, error) {
	pinned, err := k.outliving()
	if err != nil {
		return KernelFault{}, err
	}
	for _, p := range pinned {
		if p.ID != id {
			continue
		}
		return k.endFound(p, endAsked, who)
	}
	return KernelFault{}, NoKernelFault(id)
}

// endFound ends a fault that was found in the kernel.
func (k *kernelFaults) endFound(p kernel.Pinned, why, who string) (KernelFault, error) {
	f := pinnedFault(p)
	if err := p.End(); err != nil {
		return f, err
	}
	atKernelFound.Pass("ended")
	k.log.Info("kernel fault ended", "fault", p.ID, "cgroup", p.Cgroup.Path, "rule", p.Rule.FullName(), "why", why, "injected", p.Counters.Injected)
	k.events.ended(f, why, who)
	atKernelFound.Pass("logged")
	return f, nil
}

// heldBy is the state directory of an agent that holds a pinned fault, if it is another one than this; empty: none
// does. Only the one that armed it is looked for, by what is kept of the fault. It holds what it armed as long as it lives.
func (k *kernelFaults) heldBy(p kernel.Pinned) string {
	if p.Owner == "" || p.Owner == k.events.dir {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	if _, err := NewClient(p.Owner).Health(ctx); errors.Is(err, ErrNoAgent) {
		return ""
	}
	return p.Owner // one that does not answer is there
}

// found describes a fault that was found in the kernel, and who holds it.
func (k *kernelFaults) found(p kernel.Pinned) KernelFault {
	f := pinnedFault(p)
	f.Kernel.HeldBy = k.heldBy(p)
	return f
}

// foreign lists the faults that another version of faultgraft pinned, and that this one cannot take over.
func (k *kernelFaults) foreign() []KernelFault {
	pinned, err := k.outliving()
	if err != nil {
		k.log.Warn("kernel faults that outlived who armed them", "err", err)
	}
	var out []KernelFault
	for _, p := range pinned {
		if p.Foreign != nil && !p.Expired() {
			out = append(out, k.found(p))
		}
	}
	return out
}

// Direct works on kernel faults without an agent: those that are pinned in the
// kernel until their ttl is over.
type Direct struct {
	// StateDir is where the event log is; empty means DefaultStateDir.
	StateDir string
	// PinDir is where faults are pinned; empty means kernel.DefaultPinDir.
	PinDir string
	Log    *slog.Logger
}

func (d Direct) faults() *kernelFaults {
	if d.StateDir == "" {
		d.StateDir = DefaultStateDir
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return newKernelFaults(runningKernel(kernel.Options{PinDir: d.PinDir, Log: d.Log}), d.StateDir, d.Log)
}

// Inject arms faults that outlive this process: all of them, or none.
func (d Direct) Inject(ctx context.Context, req KernelRequest) (made []KernelFault, err error) {
	req.Outlive = true
	k := d.faults()
	defer func() { err = errors.Join(err, k.close()) }()
	return k.inject(ctx, req, wire.Self())
}

// List gives the faults that outlived who armed them.
func (d Direct) List() ([]KernelFault, error) {
	k := d.faults()
	pinned, err := k.outliving()
	out := make([]KernelFault, 0, len(pinned))
	for _, p := range pinned {
		out = append(out, k.found(p))
	}
	return out, err
}

// End ends one of them.
func (d Direct) End(id string) (f KernelFault, err error) {
	k := d.faults()
	defer func() { err = errors.Join(err, k.close()) }()
	return k.endPinned(id, wire.Self())
}

// Sweep ends faults that are over or that were never armed to their end, because
// who held them was killed.
func (d Direct) Sweep() (ended []KernelFault, err error) {
	k := d.faults()
	defer func() { err = errors.Join(err, k.close()) }()
	pinned, err := k.outliving()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range pinned {
		if !p.Expired() && !k.gone(p.Cgroup) {
			continue
		}
		f, err := k.endFound(p, endExpired, wire.Self())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ended = append(ended, f)
	}
	return ended, errors.Join(errs...)
}
