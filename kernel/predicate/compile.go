package predicate

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// The stack below Options.Stack: one word for what is read, a few for numbers that
// wait for their other operand, and the string buffer.
const (
	maxWaiting   = 4
	stringBuffer = 64
	// StackSize is how many bytes of the stack the instructions use.
	StackSize = 8 + 8*maxWaiting + stringBuffer
)

// Options say for what a predicate is compiled.
type Options struct {
	// Spec is the BTF of the kernel, or of the module that has Function.
	Spec *btf.Spec
	// Function is the kernel function whose parameters the predicate is about.
	Function string
	// Params are its parameters, where they are not those that BTF has: of a system
	// call see [SyscallParams], of a list in C see [ParseParams].
	Params []btf.FuncParam
	// Arguments says where the program finds them.
	Arguments Arguments
	// Stack is where the stack that may be used begins: fp[Stack-StackSize, Stack).
	// It is 0 or below, a multiple of 8.
	Stack int16
	// Fail is the label to go to when the predicate is false, or a read fails.
	Fail string
	// Prefix begins the labels that the instructions define.
	Prefix string
}

// Compile gives instructions that fall through when the predicate is true and go
// to Options.Fail when it is false or something it needs cannot be read.
//
// R6 holds the program's context and is kept, as is R9. The other registers but
// R10 are lost. The error is an *[Error] when the predicate is wrong.
func Compile(e *Expr, o Options) (asm.Instructions, error) {
	switch {
	case o.Arguments == nil:
		return nil, errors.New("predicate: no Arguments to compile for")
	case o.Fail == "":
		return nil, errors.New("predicate: no Fail label")
	case o.Stack > 0 || o.Stack%8 != 0 || int(o.Stack)-StackSize < -512:
		return nil, fmt.Errorf("predicate: %d bytes do not fit on the stack at %d", StackSize, o.Stack)
	}
	c, err := newChecker(o)
	if err != nil {
		return nil, err
	}
	root, wrong := c.predicate(e)
	if wrong != nil {
		return nil, wrong
	}
	g := &generator{o: o}
	end := g.label()
	g.branch(root, end, o.Fail, end)
	g.place(end)
	g.finish()
	switch {
	case g.err != nil:
		return nil, g.err
	case g.tooDeep:
		return nil, e.root.pos().errorf("more than %d numbers wait for the result of parentheses", maxWaiting).fix("use fewer parentheses")
	case len(g.ins) > MaxInstructions:
		return nil, e.root.pos().errorf("the predicate takes %d eBPF instructions; %d are allowed", len(g.ins), MaxInstructions)
	}
	return g.ins, nil
}
