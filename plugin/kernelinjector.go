package plugin

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/policy"
)

// injector puts kernel faults in force; kernel.Injector does.
type injector interface {
	Arm(context.Context, kernel.Fault) (armedFault, error)
	// Adopt takes a fault over that has outlived who armed it.
	Adopt(kernel.Pinned) (armedFault, error)
	// Close ends all faults but those that outlive.
	Close() error
}

// armedFault is a fault in force; *kernel.Armed is one.
type armedFault interface {
	Fault() kernel.Fault
	Backend() string
	Functions() []string
	Note() string
	Counters() (kernel.Counters, error)
	Ends() time.Time
	// TakenOut: another process has ended it.
	TakenOut() bool
	Disarm() error
}

// kernelSide is the kernel as the agent uses it.
type kernelSide struct {
	// open makes an injector. It is called once, for the first fault.
	open func(onEvent func(kernel.Event)) (injector, error)
	// check says why the running kernel cannot carry a rule out.
	check func(policy.Rule) error
	// outliving lists the faults that nobody in particular holds.
	outliving func() ([]kernel.Pinned, error)
	// cgroup is where a fault on a process would hold, or why none may.
	cgroup func(pid int) (kernel.Cgroup, error)
	// gone reports whether a cgroup was removed.
	gone func(kernel.Cgroup) bool
}

// runningKernel is the real one.
func runningKernel(o kernel.Options) kernelSide {
	return kernelSide{
		open: func(onEvent func(kernel.Event)) (injector, error) {
			o.OnEvent = onEvent
			in, err := kernel.New(o)
			if err != nil {
				return nil, err
			}
			return realInjector{in}, nil
		},
		check: func(r policy.Rule) error {
			_, err := kernel.Check(r)
			return err
		},
		outliving: func() ([]kernel.Pinned, error) {
			if _, err := os.Stat(pinDir(o)); errors.Is(err, os.ErrNotExist) {
				return nil, nil // as on most machines, most of the time
			}
			return kernel.Outliving(pinDir(o))
		},
		cgroup: faultableCgroup,
		gone:   kernel.Cgroup.Gone,
	}
}

func pinDir(o kernel.Options) string {
	if o.PinDir == "" {
		return kernel.DefaultPinDir
	}
	return o.PinDir
}

// realInjector has the methods of a kernel.Injector answer with an interface.
type realInjector struct{ *kernel.Injector }

func (r realInjector) Arm(ctx context.Context, f kernel.Fault) (armedFault, error) {
	a, err := r.Injector.Arm(ctx, f)
	if err != nil {
		return nil, err // not a nil *kernel.Armed in an interface
	}
	return a, nil
}

func (r realInjector) Adopt(p kernel.Pinned) (armedFault, error) {
	a, err := r.Injector.Adopt(p)
	if err != nil {
		return nil, err
	}
	return a, nil
}
