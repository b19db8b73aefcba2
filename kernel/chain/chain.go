// Package chain makes a kernel fault depend on where in the kernel a thread is:
// the hook fires only while the thread runs inside the functions of a call
// chain, each of which may carry a predicate over its parameters.
//
// There are two ways. [Stack] has the hook program read the kernel stack and
// look for the functions in it: nothing is attached to them, so it costs nothing
// until the hook is hit, then some microseconds. [State] attaches programs to
// the entry and the return of each function, which keep a state for each
// thread: each call of the functions costs something on the whole machine, a
// hook that is hit outside of them next to nothing. Only State can look at
// parameters. docs/kernel.md, "Call chains", has the figures behind [Auto].
package chain

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// MaxFrames is how many functions a call chain may name.
const MaxFrames = 8

// StackSize is how many bytes of the program's stack [Chain.Check] uses.
const StackSize = 24

// ScopeStack is how many bytes of an entry program's stack Options.InScope may use.
const ScopeStack = 64

// Frame is one function of a call chain.
type Frame struct {
	Function string
	// Predicate over the function's parameters, see package predicate; empty
	// for any call.
	Predicate string
	// Parameters is accepted for rules that were written for KernelChaos: the
	// function's parameters in C. Their names and types come from BTF.
	Parameters string
}

// Method is how a chain is found out.
type Method int

const (
	// Auto takes State if a frame has a predicate, or if the hook is hot and
	// each frame can be traced by a trampoline; else Stack.
	Auto Method = iota
	State
	Stack
)

func (m Method) String() string {
	switch m {
	case State:
		return "state"
	case Stack:
		return "stack"
	}
	return "auto"
}

// Options describe a chain.
type Options struct {
	// Spec is the kernel's BTF; nil for that of the running kernel, which takes
	// some time to read.
	Spec *btf.Spec
	// Cache has the kernel's types for the load of programs; it saves decoding
	// them again for each chain. Nil for one of the chain's own.
	Cache *btf.Cache
	// Frames, the outermost first: the hook runs inside the last one, that
	// inside the one before it, directly or not.
	Frames []Frame
	Method Method
	// Hot says that the hook is hit much more often than the frames.
	Hot bool
	// Hook names the hook's own functions. They are no frames of their own calls.
	Hook []string
	// Name starts the names that the programs have in the kernel.
	Name string
	// InScope gives code that falls through if the current task is to be looked
	// at and jumps to fail if not. R6 is the context and R9 is kept; it may
	// change R0 to R5, R7, R8 and fp[stack-ScopeStack, stack). Nil: all tasks.
	InScope func(fail, prefix string, stack int16) (asm.Instructions, error)
}

// FrameError says which frame of a chain cannot be, and why.
type FrameError struct {
	Index    int // in Options.Frames
	Function string
	Err      error // a *predicate.Error if the predicate is wrong
}

func (e *FrameError) Error() string {
	return fmt.Sprintf("call chain, function %s: %v", e.Function, e.Err)
}

func (e *FrameError) Unwrap() error { return e.Err }

// Chain is one call chain with a state of its own. Its methods are not for
// concurrent use.
type Chain struct {
	options Options
	method  Method
	layout  layout
	frames  []*frame
	hidden  bool // the addresses of the functions are not known

	buffer *ebpf.Map // what walk reads
	state  *ebpf.Map
	ended  *ebpf.Program
	checks int
	links  []link.Link
}

// Compile finds the functions in the running kernel and checks the predicates.
// It loads nothing and needs no privileges. Errors about one frame are [*FrameError]s.
func Compile(o Options) (*Chain, error) {
	if len(o.Frames) == 0 {
		return nil, errors.New("the call chain is empty")
	}
	if len(o.Frames) > MaxFrames {
		return nil, fmt.Errorf("the call chain has %d functions, it may have %d at most", len(o.Frames), MaxFrames)
	}
	if o.Cache == nil {
		o.Cache = btf.NewCache()
	}
	if o.Spec == nil {
		spec, err := o.Cache.Kernel()
		if err != nil {
			return nil, fmt.Errorf("types of the kernel: %w", err)
		}
		o.Spec = spec
	}
	known, err := readKnown()
	if err != nil {
		return nil, err
	}
	c := &Chain{options: o, hidden: known.symbols.hidden}
	if c.layout, err = readLayout(o.Spec); err != nil {
		return nil, err
	}
	traced := traceable{o.Spec, o.Cache, known}
	for i, f := range o.Frames {
		compiled, err := compileFrame(f, o, known.symbols, traced)
		if err != nil {
			return nil, &FrameError{Index: i, Function: f.Function, Err: err}
		}
		c.frames = append(c.frames, compiled)
	}
	if c.method, err = choose(o, c.frames); err != nil {
		return nil, err
	}
	return c, nil
}

// choose takes the method and looks whether it can be.
func choose(o Options, frames []*frame) (Method, error) {
	method := o.Method
	if method == Auto {
		method = Stack
		if o.Hot {
			method = State
		}
		for _, f := range frames {
			if f.source.Predicate != "" {
				method = State
				break
			}
			if f.untraced != nil || f.tracer != trampoline {
				method = Stack
			}
		}
	}
	for i, f := range frames {
		if method == Stack && f.source.Predicate != "" {
			return method, &FrameError{i, f.source.Function, errors.New("the stack does not have the parameters that the predicate needs")}
		}
		if method == State && f.untraced != nil {
			return method, &FrameError{i, f.source.Function, f.untraced}
		}
	}
	return method, nil
}

// Method is State or Stack.
func (c *Chain) Method() Method { return c.method }

// Load makes the maps and loads the programs for the frames.
func (c *Chain) Load() (err error) {
	if c.hidden {
		return fmt.Errorf("call chain: %w", errHidden)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.buffer, err = ebpf.NewMap(bufferSpec()); err != nil {
		return fmt.Errorf("call chain: buffer for the stack: %w", err)
	}
	if c.method == Stack {
		return nil
	}
	if c.state, err = ebpf.NewMap(stateSpec()); err != nil {
		return fmt.Errorf("call chain: state of the threads: %w", err)
	}
	a := c.assembler()
	c.ended, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: programName(c.options.Name, "ended"), Type: ebpf.RawTracepoint, License: license, Instructions: a.ended(),
	})
	if err != nil {
		return fmt.Errorf("call chain: program for the end of threads: %w", err)
	}
	for i, f := range c.frames {
		if err := f.load(a, i, c.options); err != nil {
			return &FrameError{i, f.source.Function, err}
		}
	}
	return nil
}

func (c *Chain) assembler() assembler {
	return assembler{layout: c.layout, state: c.state, frames: len(c.frames)}
}

// Check gives the code for a hook program that falls through while the chain
// holds for the current thread and else jumps to fail. R6 is the program's
// context and is kept, as is R9; R0 to R5, R7, R8 and fp[stack-StackSize, stack)
// are changed. prefix makes its labels unique in the program. The chain must be
// loaded, and the program must have found out before that it is not in an
// interrupt.
func (c *Chain) Check(fail, prefix string, stack int16) (asm.Instructions, error) {
	if c.buffer == nil {
		return nil, errors.New("call chain: not loaded")
	}
	if c.checks == maxChecks {
		return nil, fmt.Errorf("call chain: used by more than %d programs", maxChecks)
	}
	slot := c.checks
	c.checks++
	var functions []function
	for _, f := range c.frames {
		functions = append(functions, f.function)
	}
	if c.method == Stack {
		return walk(functions, c.buffer, slot, fail, fail, prefix, stack), nil
	}
	a := c.assembler()
	stale, holds := prefix+"_stale", prefix+"_holds"
	ins := a.check(fail, stack)
	// An exit that was missed can leave a mark that looks alive once the stack
	// has grown over it. The stack itself knows better; it is asked only here.
	ins = append(ins, walk(functions, c.buffer, slot, stale, fail, prefix, stack-16)...)
	ins = append(ins, asm.Ja.Label(holds))
	forget := a.forget(stack - 8)
	forget[0] = forget[0].WithSymbol(stale)
	ins = append(ins, forget...)
	return append(ins, asm.Ja.Label(fail), asm.Mov.Imm(asm.R1, 0).WithSymbol(holds)), nil
}

// Attach attaches the programs of the frames, those for the return first: a
// thread that is inside a frame is not marked by a return it has no entry for.
func (c *Chain) Attach() (err error) {
	if c.method == Stack {
		return nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.detach())
		}
	}()
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exit", Program: c.ended})
	if err != nil {
		return fmt.Errorf("call chain: tracepoint sched_process_exit: %w", err)
	}
	c.links = append(c.links, l)
	for i, f := range c.frames {
		links, err := f.attach(c.assembler(), i, c.options)
		c.links = append(c.links, links...)
		if err != nil {
			return &FrameError{i, f.source.Function, err}
		}
	}
	return nil
}

// Links are what holds the programs of the frames in the kernel; none for Stack.
// They are there after Attach, for pinning.
func (c *Chain) Links() []link.Link { return c.links }

func (c *Chain) detach() error {
	var errs []error
	// The entries first: the links of a frame are its exit and its entry.
	for i := len(c.links) - 1; i >= 0; i-- {
		errs = append(errs, c.links[i].Close())
	}
	c.links = nil
	return errors.Join(errs...)
}

// Close detaches and unloads everything.
func (c *Chain) Close() error {
	errs := []error{c.detach()}
	for _, f := range c.frames {
		errs = append(errs, f.close())
	}
	if c.ended != nil {
		errs = append(errs, c.ended.Close())
	}
	for _, m := range []*ebpf.Map{c.state, c.buffer} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	c.ended, c.state, c.buffer = nil, nil, nil
	return errors.Join(errs...)
}
