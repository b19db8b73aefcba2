package kernel

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"
)

// Armed is a fault that is in force.
type Armed struct {
	fault    Fault
	injector *Injector
	handle   uint64
	way      way
	instance *instance // guarded by the injector's lock; nil once it has ended
	ends     int64     // by bootTime

	mu    sync.Mutex
	final Counters // once it has ended
}

// enter puts the fault in force. Guarded by the injector's lock.
func (a *Armed) enter(i *instance) error {
	now, err := bootTime()
	if err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	v := newTarget(a.fault.Rule.Trigger, a.fault.Age, now, a.handle)
	if v.Runtime, err = runtimesOf(a.fault.PID, a.fault.Cgroup); err != nil {
		return fmt.Errorf("look at process %d: %w", a.fault.PID, err)
	}
	a.way, a.ends = i.way, v.End
	if i.ring != nil {
		i.ring.add(a.handle, a)
	}
	if err := i.join(a, v); err != nil {
		if i.ring != nil {
			i.ring.forget(a.handle)
		}
		return err
	}
	a.instance = i
	atArm.Pass("entered")
	return nil
}

// end takes the fault out of its program. Guarded by the injector's lock.
func (a *Armed) end() error {
	i := a.instance
	if i == nil {
		return nil
	}
	counters, err := i.leave(a)
	atDrop.Pass("left")
	a.instance = nil
	a.mu.Lock()
	a.final = counters
	a.mu.Unlock()
	if i.ring != nil {
		i.ring.forget(a.handle)
	}
	return err
}

// ID is the fault's.
func (a *Armed) ID() string { return a.fault.ID }

// Fault is what was armed.
func (a *Armed) Fault() Fault { return a.fault }

// Backend is the one that was taken.
func (a *Armed) Backend() string { return a.way.backend }

// Functions are the kernel functions that are failed.
func (a *Armed) Functions() []string { return []string{a.way.function.name} }

// Note says in words what the backend covers where it stands for another hook
// point, as sb_mount for the mount system call; else it is empty.
func (a *Armed) Note() string { return a.way.note }

// Counters are the fault's so far. They can be read after Disarm too.
func (a *Armed) Counters() (Counters, error) {
	a.injector.mu.Lock()
	defer a.injector.mu.Unlock()
	if a.instance == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.final, nil
	}
	if a.injector.closed { // it outlives
		return Counters{}, errClosed
	}
	var v targetState
	if err := a.instance.targets.Lookup(a.fault.Cgroup.ID, &v); err != nil {
		return Counters{}, fmt.Errorf("kernel fault %s: counters: %w", a.fault.ID, err)
	}
	return v.counters(), nil
}

// TakenOut reports whether another process has ended a fault that outlives.
func (a *Armed) TakenOut() bool {
	_, err := a.Counters()
	return a.fault.Outlive && errors.Is(err, ebpf.ErrKeyNotExist)
}

// Ends is when the rule's ttl is over, by a clock that runs on while the machine is suspended.
func (a *Armed) Ends() time.Time { return wallTime(a.ends) }

// Expired reports whether the ttl is over. The kernel injects nothing any more
// then; Disarm frees what the fault still occupies.
func (a *Armed) Expired() bool {
	now, err := bootTime()
	return err == nil && now >= a.ends
}

// Disarm ends the fault, also one that outlives. When it returns, no new
// operation is failed. It may be called more than once.
func (a *Armed) Disarm() error {
	in := a.injector
	in.mu.Lock()
	defer in.mu.Unlock()
	i := a.instance
	if i == nil {
		return nil
	}
	if in.closed { // it outlives
		return fmt.Errorf("kernel fault %s: %w: end it by Outliving", a.fault.ID, errClosed)
	}
	delete(in.armed, a.fault.ID)
	err := a.end()
	if len(i.members) == 0 {
		for n, other := range in.instances {
			if other == i {
				in.instances = append(in.instances[:n], in.instances[n+1:]...)
				break
			}
		}
		err = errors.Join(err, i.close())
	}
	if err != nil {
		return fmt.Errorf("kernel fault %s: end it: %w", a.fault.ID, err)
	}
	return nil
}
