package chain

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/faultgraft/faultgraft/kernel/predicate"
)

// condition is a frame's predicate.
type condition struct {
	expr    *predicate.Expr
	options predicate.Options
	// syscall: the function is that of a system call, whose one parameter is the
	// registers of the caller; the predicate is over the system call's own.
	syscall bool
}

// syscallPrefixes are those of the kernel's functions for system calls.
var syscallPrefixes = []string{"__x64_sys_", "__arm64_sys_"}

func newCondition(f Frame, types func() (*btf.Spec, error)) (*condition, error) {
	expr, err := predicate.Parse(f.Predicate)
	if err != nil {
		return nil, err
	}
	spec, err := types()
	if err != nil {
		return nil, fmt.Errorf("types of its parameters: %w", err)
	}
	c := &condition{expr: expr, options: predicate.Options{
		Spec: spec, Function: f.Function, Stack: -ownBytes, Fail: out, Prefix: "where",
	}}
	for _, prefix := range syscallPrefixes {
		name, ok := strings.CutPrefix(f.Function, prefix)
		if !ok {
			continue
		}
		c.syscall = true
		c.options.Params, err = predicate.SyscallParams(spec, name, runtime.GOARCH)
		return c, err
	}
	if f.Parameters != "" {
		if c.options.Params, err = predicate.ParseParams(spec, f.Function, f.Parameters); err != nil {
			// Its place is in another text than the predicate's.
			return nil, fmt.Errorf("parameters %q: %s", f.Parameters, err)
		}
	}
	return c, nil
}

// code falls through when the predicate is true and else jumps to out. It uses
// the stack below an entry program's own part of it.
func (c *condition) code(t tracer) (asm.Instructions, error) {
	if c == nil {
		return nil, nil
	}
	o := c.options
	o.Arguments = predicate.TypedContext()
	var err error
	if t == kprobe {
		if o.Arguments, err = predicate.RegistersContext(o.Spec, runtime.GOARCH); err != nil {
			return nil, err
		}
	}
	if c.syscall {
		if o.Arguments, err = predicate.SyscallContext(o.Arguments, o.Spec, runtime.GOARCH); err != nil {
			return nil, err
		}
	}
	return predicate.Compile(c.expr, o)
}
