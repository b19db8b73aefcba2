package kernel

import "github.com/cilium/ebpf/asm"

// arguments are the failed function's, as a kind of program finds them.
type arguments struct {
	// at are the places in the context, by index.
	at []int16
}

// typedArguments are those of a tracing or LSM program, whose context is an
// array of 64 bits each.
func typedArguments(n int) arguments {
	var a arguments
	for i := range n {
		a.at = append(a.at, int16(8*i))
	}
	return a
}

// load loads an argument.
func (a arguments) load(dst asm.Register, index int) asm.Instructions {
	return asm.Instructions{asm.LoadMem(dst, regContext, a.at[index], asm.DWord)}
}
