package kernel

import (
	"github.com/cilium/ebpf/asm"
	"github.com/faultgraft/faultgraft/kernel/predicate"
)

// arguments are the failed function's, as a kind of program finds them.
type arguments struct {
	// registers is there for a kprobe; nil is for a tracing or LSM program, whose
	// context is an array of 64 bits each.
	registers predicate.Arguments
}

// load loads an argument, without a helper where it can: package predicate's way
// for typed contexts calls one.
func (a arguments) load(l *layout, dst asm.Register, index int) asm.Instructions {
	if a.registers == nil {
		return asm.Instructions{asm.LoadMem(dst, regContext, int16(8*index), asm.DWord)}
	}
	ins, err := a.registers.Load(dst, index, slotKey+8, labelMiss)
	if err != nil {
		l.fail("%w", err)
	}
	return ins
}

// callerRegisters is the context that the current system call's arguments are
// behind: argument 0 is the address of the registers of user space. With it, a
// program on an LSM hook that stands for a system call sees that call's own
// parameters.
type callerRegisters struct{}

func (callerRegisters) Load(dst asm.Register, index int, stack int16, _ string) (asm.Instructions, error) {
	return asm.Instructions{
		asm.FnGetCurrentTaskBtf.Call(),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.FnTaskPtRegs.Call(),
		asm.Mov.Reg(dst, asm.R0),
	}, nil
}
