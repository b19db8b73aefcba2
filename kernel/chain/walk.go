package chain

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

const (
	// maxDepth is how many return addresses the kernel gives at most: the
	// default of the sysctl kernel.perf_event_max_stack. It gives the innermost.
	maxDepth = 127
	// maxChecks is how many hook programs may share a chain: each has a buffer
	// of its own on each CPU, so that one that is preempted by another (programs
	// run with migration off, not with preemption off) keeps what it read.
	maxChecks = 8
)

func bufferSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: "fg_chain_walk", Type: ebpf.PerCPUArray,
		KeySize: 4, ValueSize: 8 * maxDepth, MaxEntries: maxChecks,
	}
}

// walk reads the kernel stack of the program in R6 and looks for the frames
// from the innermost to the outermost; others may lie between. It falls through
// if all are there in that order, goes to absent if they are not, and to failed
// if the stack could not be read: bpf_get_stack(ctx, buf, size, flags), see
// bpf-helpers(7), returns an error when its buffers are in use on this CPU.
//
// It uses fp[stack-4, stack), R0 to R5, R7 and R8.
func walk(frames []function, buffer *ebpf.Map, slot int, absent, failed, prefix string, stack int16) asm.Instructions {
	ins := asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(slot)),
		asm.StoreMem(asm.RFP, stack-4, asm.R1, asm.Word),
		asm.LoadMapPtr(asm.R1, buffer.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, int32(stack-4)),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, failed),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 8*maxDepth),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnGetStack.Call(),
		asm.JSLE.Imm(asm.R0, 0, failed),
		asm.Mov.Reg(asm.R8, asm.R0), // bytes
		asm.Mov.Reg(asm.R0, asm.R7), // the buffer
		asm.Mov.Imm(asm.R7, 0),      // how far we are, in bytes
	}
	for i := len(frames) - 1; i >= 0; i-- {
		next := fmt.Sprintf("%s_walk_%d", prefix, i)
		found := fmt.Sprintf("%s_found_%d", prefix, i)
		ins = append(ins,
			asm.JGE.Reg(asm.R7, asm.R8, absent).WithSymbol(next),
			asm.JGT.Imm(asm.R7, 8*(maxDepth-1), absent), // R8 is not bounded enough for the verifier
			asm.Mov.Reg(asm.R1, asm.R0),
			asm.Add.Reg(asm.R1, asm.R7),
			asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord),
			asm.Add.Imm(asm.R7, 8),
		)
		for _, code := range frames[i].code {
			ins = append(ins,
				// A return address is one instruction behind the call: it is
				// the end of the function if the call was its last one.
				asm.LoadImm(asm.R2, int64(code.start+1), asm.DWord),
				asm.Mov.Reg(asm.R3, asm.R1),
				asm.Sub.Reg(asm.R3, asm.R2),
				asm.JLT.Imm(asm.R3, int32(code.end-code.start), found),
			)
		}
		ins = append(ins,
			asm.Ja.Label(next),
			asm.Mov.Imm(asm.R1, 0).WithSymbol(found),
		)
	}
	return ins
}
