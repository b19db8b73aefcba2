package kernel

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/faultgraft/faultgraft/kernel/chain"
	"github.com/faultgraft/faultgraft/kernel/predicate"
	"github.com/faultgraft/faultgraft/policy"
)

// filters are a rule's predicate and call chain, for one way.
type filters struct {
	spec            *btf.Spec
	rule            policy.Rule
	way             way
	predicate       *predicate.Expr // nil without one
	options         predicate.Options
	chain           *chain.Chain // nil without one
	targets, levels int          // file descriptors of the maps, from load on
}

// newFilters checks both. It loads nothing.
func newFilters(spec *btf.Spec, rule policy.Rule, w way) (*filters, error) {
	f := &filters{spec: spec, rule: rule, way: w}
	k := rule.Kernel
	if k.Where != "" {
		var err error
		if f.predicate, err = predicate.Parse(k.Where); err == nil {
			err = f.predicateOptions()
		}
		if err == nil {
			err = predicate.Check(f.predicate, f.options)
		}
		if err != nil {
			return nil, predicateError(rule, inWhere, err)
		}
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
		var frame *chain.FrameError
		if errors.As(err, &frame) {
			return nil, predicateError(rule, frame.Index, err)
		}
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	f.chain = c
	return f, nil
}

// inWhere is the place of an error in the rule's where; frames have their index.
const inWhere = -1

// predicateError gives the error of a predicate its place in the rule's text.
// Others say that the kernel has no such function, or that it cannot be traced.
func predicateError(rule policy.Rule, which int, err error) error {
	var wrong *predicate.Error
	if errors.As(err, &wrong) {
		return rule.PredicateError(which, wrong.Line, wrong.Column, wrong.Message, wrong.Fix)
	}
	if which == inWhere {
		return fmt.Errorf("%w: where: %w", ErrUnsupported, err)
	}
	return fmt.Errorf("%w: %w", ErrUnsupported, err)
}

// predicateOptions says which parameters the rule's where is about, and where
// the program finds them.
func (f *filters) predicateOptions() (err error) {
	o := predicate.Options{
		Spec: f.spec, Function: f.way.function.name, Arguments: predicate.TypedContext(),
		Stack: slotFree, Fail: labelMiss, Prefix: "where",
	}
	if f.way.backend == Override {
		if o.Arguments, err = predicate.RegistersContext(f.spec, runtime.GOARCH); err != nil {
			return err
		}
	}
	if f.way.syscall {
		inner := o.Arguments
		if len(f.way.guard.syscalls) > 0 {
			inner = callerRegisters{}
		}
		if o.Params, err = predicate.SyscallParams(f.spec, f.rule.Kernel.Hook.Name, runtime.GOARCH); err != nil {
			return err
		}
		if o.Arguments, err = predicate.SyscallContext(inner, f.spec, runtime.GOARCH); err != nil {
			return err
		}
	}
	f.options = o
	return nil
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
func (f *filters) where() (asm.Instructions, error) {
	if f.predicate == nil {
		return nil, nil
	}
	return predicate.Compile(f.predicate, f.options)
}

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
