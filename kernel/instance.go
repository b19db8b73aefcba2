package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/faultgraft/faultgraft/kernel/predicate"
	"github.com/faultgraft/faultgraft/policy"
)

// maxTargets is how many cgroups one program serves.
const maxTargets = 4096

// instance is one program that fails a kernel function for the cgroups in its
// map. All faults that differ in their cgroup and trigger only share one, so
// that many containers with one label cost one program. Guarded by the
// Injector's lock.
type instance struct {
	shape   string
	way     way
	targets *ebpf.Map // cgroup id -> targetState
	levels  *ebpf.Map
	program *ebpf.Program
	link    link.Link
	filters *filters
	ring    *ring  // where its records go; nil for nowhere
	own     bool   // the ring is its own
	pins    string // the directory in bpffs of what outlives this process; else empty
	// members are the faults by the id of their cgroup.
	members map[uint64]*Armed
	deepest levels
}

// shapeOf is equal for rules whose programs do the same.
func shapeOf(k *policy.KernelFault) (string, error) {
	b, err := json.Marshal(k)
	return string(b), err
}

func newMaps() (targets, levelMap *ebpf.Map, err error) {
	targets, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "faultgraft_tgt", Type: ebpf.Hash, KeySize: 8, ValueSize: targetSize, MaxEntries: maxTargets,
		Flags: noPrealloc,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("map for the cgroups: %w", err)
	}
	levelMap, err = ebpf.NewMap(&ebpf.MapSpec{Name: "faultgraft_lvl", Type: ebpf.Array, KeySize: 4, ValueSize: 4 * maxLevels, MaxEntries: 1})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("map for the levels: %w", err), targets.Close())
	}
	return targets, levelMap, nil
}

// noPrealloc is BPF_F_NO_PREALLOC: few of the entries are ever used.
const noPrealloc = 1

// load makes the maps and the program, and attaches it. It fails nothing yet:
// the map is empty.
func (i *instance) load(spec *btf.Spec, k *policy.KernelFault) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, i.close())
		}
	}()
	if i.targets, i.levels, err = newMaps(); err != nil {
		return err
	}
	atLoad.Pass("maps")
	l := &layout{spec: spec}
	r := &recipe{
		layout: l, override: i.way.backend == Override, value: i.way.value, scope: i.way.scope, guard: i.way.guard,
		targets: i.targets.FD(), levels: i.levels.FD(),
	}
	if r.override {
		if r.arguments.registers, err = predicate.RegistersContext(spec, runtime.GOARCH); err != nil {
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
	}
	if i.ring != nil {
		r.record = record{ring: i.ring.buffer.FD(), stack: k.Stack, charged: i.way.scope == scopeBio}
	}
	if err := i.filters.load(i.targets.FD(), i.levels.FD()); err != nil {
		return err
	}
	r.caller = callerCode(l, k.Caller, i.way.guard.user)
	if r.where, err = i.filters.where(); err != nil {
		return err
	}
	if r.within, err = i.filters.within(); err != nil {
		return err
	}
	ins, err := r.assemble()
	if err != nil {
		return err
	}
	program := &ebpf.ProgramSpec{Name: "faultgraft_" + k.Hook.Kind, Instructions: ins, License: license}
	switch i.way.backend {
	case LSM:
		program.Type, program.AttachType, program.AttachTo = ebpf.LSM, ebpf.AttachLSMMac, i.way.attach
	case FmodRet:
		program.Type, program.AttachType, program.AttachTo = ebpf.Tracing, ebpf.AttachModifyReturn, i.way.attach
	case Override:
		program.Type = ebpf.Kprobe
	}
	if i.program, err = ebpf.NewProgram(program); err != nil {
		return &loadError{"load", err}
	}
	atLoad.Pass("loaded")
	if err := i.filters.attach(); err != nil {
		return err
	}
	atLoad.Pass("watched")
	switch i.way.backend {
	case LSM:
		i.link, err = link.AttachLSM(link.LSMOptions{Program: i.program})
	case FmodRet:
		i.link, err = link.AttachTracing(link.TracingOptions{Program: i.program})
	case Override:
		i.link, err = link.Kprobe(i.way.attach, i.program, nil)
	}
	if err != nil {
		return &loadError{"attach", err}
	}
	atLoad.Pass("attached")
	return nil
}

// loadError is what the kernel said to a program. Another backend may do.
type loadError struct {
	what string
	err  error
}

func (e *loadError) Error() string { return e.what + ": " + e.err.Error() }
func (e *loadError) Unwrap() error { return e.err }

// fits reports whether the program can serve the cgroup too: none of its
// members is the same, above or below, since the nearest one would hide the
// others, and there is room for its level.
func (i *instance) fits(c Cgroup) bool {
	if len(i.members) >= maxTargets {
		return false
	}
	for _, a := range i.members {
		m := a.fault.Cgroup
		if m.ID == c.ID || within(m.Path, c.Path) || within(c.Path, m.Path) {
			return false
		}
	}
	return slices.Contains(i.deepest[:], uint32(c.Level)) || slices.Contains(i.deepest[:], 0)
}

// within reports whether a path is below another.
func within(path, parent string) bool {
	return strings.HasPrefix(path, strings.TrimSuffix(parent, "/")+"/")
}

// join puts a fault in force.
func (i *instance) join(a *Armed, v targetState) error {
	c := a.fault.Cgroup
	before := i.deepest
	i.members[c.ID] = a
	err := i.setLevels()
	if err == nil {
		err = i.targets.Update(c.ID, &v, ebpf.UpdateNoExist)
	}
	if err != nil {
		delete(i.members, c.ID)
		i.deepest = before
		return errors.Join(fmt.Errorf("enter cgroup %s: %w", c.Path, err), i.setLevels())
	}
	return nil
}

// leave ends a fault and gives what was counted.
func (i *instance) leave(a *Armed) (Counters, error) {
	var v targetState
	c := a.fault.Cgroup
	if err := i.targets.LookupAndDelete(c.ID, &v); errors.Is(err, ebpf.ErrKeyNotExist) && i.pins != "" {
		v = targetState{} // another process has ended it, see Pinned.End; it has the counts
	} else if err != nil {
		return Counters{}, fmt.Errorf("take cgroup %s out: %w", c.Path, err)
	}
	delete(i.members, c.ID)
	return v.counters(), i.setLevels()
}

// setLevels tells the program at which levels there are members.
func (i *instance) setLevels() error {
	var used levels
	n := 0
	for _, a := range i.members {
		level := uint32(a.fault.Cgroup.Level)
		if slices.Contains(used[:n], level) {
			continue
		}
		if n == len(used) {
			return fmt.Errorf("more than %d levels", len(used))
		}
		used[n] = level
		n++
	}
	slices.Sort(used[:n])
	i.deepest = used
	return i.levels.Put(uint32(0), used[:])
}

// close takes all out of the kernel, the program that fails first.
func (i *instance) close() error {
	var err error
	if i.pins != "" {
		err = unpin(i.pins)
		i.pins = ""
	}
	return errors.Join(err, i.release())
}

// release closes all that this process holds. What is pinned stays.
func (i *instance) release() error {
	var errs []error
	if i.link != nil {
		errs = append(errs, i.link.Close())
	}
	if i.program != nil {
		errs = append(errs, i.program.Close())
	}
	if i.filters != nil {
		errs = append(errs, i.filters.close())
	}
	for _, m := range []*ebpf.Map{i.targets, i.levels} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	if i.own && i.ring != nil {
		errs = append(errs, i.ring.close())
		i.ring = nil
	}
	i.link, i.program, i.targets, i.levels = nil, nil, nil, nil
	return errors.Join(errs...)
}
