package kernel

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/faultgraft/faultgraft/kernel/chain"
	"github.com/faultgraft/faultgraft/policy"
)

// filters are a rule's predicate and call chain, for one way.
type filters struct {
	spec            *btf.Spec
	rule            policy.Rule
	way             way
	chain           *chain.Chain // nil without one
	targets, levels int          // file descriptors of the maps, from load on
}

// newFilters checks both. It loads nothing.
func newFilters(spec *btf.Spec, rule policy.Rule, w way) (*filters, error) {
	f := &filters{spec: spec, rule: rule, way: w}
	k := rule.Kernel
	if k.Where != "" {
		return nil, errors.New("predicates are not there yet")
	}
	if len(k.Within) == 0 {
		return f, nil
	}
	o := chain.Options{
		Spec: spec, Hook: []string{w.function.name}, Name: "faultgraft",
		Hot: k.Hook.Kind == HookSlab || k.Hook.Kind == HookPage || k.Hook.Kind == HookBio,
	}
	for _, frame := range k.Within {
		o.Frames = append(o.Frames, chain.Frame(frame))
	}
	if w.scope == scopeTask { // whoever submits a block request may be in another cgroup than it
		o.InScope = func(fail, prefix string, stack int16) (asm.Instructions, error) {
			l := &layout{spec: spec}
			ins := scopeTask.find(l, f.targets, f.levels, stack-8, fail, prefix)
			return ins, l.err
		}
	}
	c, err := chain.Compile(o)
	if err != nil {
		return nil, fmt.Errorf("within: %w", err)
	}
	f.chain = c
	return f, nil
}

// load loads what the call chain needs beside the program.
func (f *filters) load(targets, levels int) error {
	f.targets, f.levels = targets, levels
	if f.chain == nil {
		return nil
	}
	return f.chain.Load()
}

// where and within give the program's code. They come after load.
func (f *filters) where() (asm.Instructions, error) { return nil, nil }

func (f *filters) within() (asm.Instructions, error) {
	if f.chain == nil {
		return nil, nil
	}
	return f.chain.Check(labelMiss, "within", slotFree)
}

// attach begins to watch the call chain; the program comes after it.
func (f *filters) attach() error {
	if f.chain == nil {
		return nil
	}
	return f.chain.Attach()
}

// links hold what attach attached.
func (f *filters) links() []link.Link {
	if f.chain == nil {
		return nil
	}
	return f.chain.Links()
}

// method says how the call chain is watched.
func (f *filters) method() string {
	if f.chain == nil {
		return ""
	}
	return f.chain.Method().String()
}

func (f *filters) close() error {
	if f.chain == nil {
		return nil
	}
	return f.chain.Close()
}
