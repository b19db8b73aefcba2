package kernel

import (
	"fmt"

	"github.com/cilium/ebpf/asm"
)

// The program's registers. R6 and R9 are kept by all parts; the others are
// theirs to change.
const (
	regContext = asm.R6 // the program's context
	regTarget  = asm.R9 // the target's value in the map, from the scope on
)

// Where the parts of a program that run at the same time keep things on its
// stack: 512 bytes below the frame pointer.
const (
	slotKey    = -8  // a key for a map, or a number that was read
	slotHandle = -16 // the handle that the target had when it was found
	slotCgroup = -24 // the id under which it was found
	slotComm   = -40 // the thread's name, 16 bytes
	slotFree   = -40 // what predicates and chains may use is below
)

const labelMiss = "miss"

// recipe is all that decides on the instructions of a program that fails one
// kernel function.
type recipe struct {
	layout *layout
	// arguments are those of the function, as the program's kind gives them.
	arguments arguments
	// override: the program is a kprobe, else it returns the value.
	override bool
	// value is what the function is to return.
	value int32
	scope scope
	guard guard
	// caller, where and within give the filters' code; nil for none. They jump to
	// labelMiss and may use the stack below slotFree.
	caller, where, within asm.Instructions
	targets, levels       int // file descriptors of the maps
	record                record
}

// assemble gives the program. The cheapest question comes first: what is
// outside all scopes pays for the lookups of its ancestors only.
func (r *recipe) assemble() (asm.Instructions, error) {
	ins := asm.Instructions{asm.Mov.Reg(regContext, asm.R1)}
	if r.scope == scopeBio {
		ins = append(ins, r.arguments.load(r.layout, asm.R7, 0)...)
	}
	ins = append(ins, r.scope.find(r.layout, r.targets, r.levels, slotKey, labelMiss, "scope")...)
	ins = append(ins,
		asm.Mov.Reg(regTarget, asm.R0),
		asm.LoadMem(asm.R1, regTarget, atHandle, asm.DWord),
		asm.StoreMem(asm.RFP, slotHandle, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.RFP, slotKey, asm.DWord),
		asm.StoreMem(asm.RFP, slotCgroup, asm.R1, asm.DWord),
	)
	ins = append(ins, r.guard.code(r.layout, r.arguments)...)
	ins = append(ins, count(atEvaluated)...)
	ins = append(ins, awake()...)
	ins = append(ins, r.caller...)
	ins = append(ins, r.where...)
	ins = append(ins, r.within...)
	ins = append(ins, trigger()...)
	ins = append(ins, r.record.code()...)
	ins = append(ins, r.fail()...)
	if r.layout.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, r.layout.err)
	}
	return ins, nil
}

// fail ends the program, in both ways.
func (r *recipe) fail() asm.Instructions {
	if r.override {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, regContext),
			asm.Mov.Imm(asm.R2, r.value), // extended by its sign
			asm.FnOverrideReturn.Call(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol(labelMiss),
			asm.Return(),
		}
	}
	return asm.Instructions{
		asm.Mov.Imm(asm.R0, r.value),
		asm.Return(),
		// To return 0 lets the function run (Documentation/bpf/prog_lsm.rst, and
		// BPF_TRAMP_MODIFY_RETURN in arch/*/net/bpf_jit_comp.c).
		asm.Mov.Imm(asm.R0, 0).WithSymbol(labelMiss),
		asm.Return(),
	}
}

// count adds one to a counter of the target.
func count(at int16) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(regTarget, asm.R1, asm.DWord, at),
	}
}

// fetchAdd adds a register to 8 bytes and gives it what was there before.
// cilium/ebpf 0.22 marshals asm.FetchAdd as an addition that fetches nothing,
// unless the constant has the flag already.
func fetchAdd(address, register asm.Register, at int16) asm.Instruction {
	const fetch = 0x01 // BPF_FETCH, include/uapi/linux/bpf.h
	ins := asm.FetchAdd.Mem(address, register, asm.DWord, at)
	ins.Constant = fetch
	return ins
}

// awake lets pass what comes after the delay, before the end of the ttl, and in
// a pulse.
func awake() asm.Instructions {
	return asm.Instructions{
		asm.FnKtimeGetBootNs.Call(),
		asm.LoadMem(asm.R1, regTarget, atEnd, asm.DWord),
		asm.JSGE.Reg(asm.R0, asm.R1, labelMiss),
		asm.LoadMem(asm.R1, regTarget, atBegin, asm.DWord),
		asm.JSLT.Reg(asm.R0, asm.R1, labelMiss),
		asm.LoadMem(asm.R2, regTarget, atPeriod, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, "awake"),
		asm.Sub.Reg(asm.R0, asm.R1),
		asm.Mod.Reg(asm.R0, asm.R2),
		asm.LoadMem(asm.R1, regTarget, atActive, asm.DWord),
		asm.JGE.Reg(asm.R0, asm.R1, labelMiss),
		asm.Mov.Imm(asm.R1, 0).WithSymbol("awake"),
	}
}

// trigger numbers the matching operation and decides whether it fires, just as
// policy.Counter.Fire does; its number stays in R8. Each `times` is given away
// by one atomic addition, so no more than that many fire.
func trigger() asm.Instructions {
	ins := asm.Instructions{
		asm.Mov.Imm(asm.R8, 1),
		fetchAdd(regTarget, asm.R8, atMatched),
		asm.Add.Imm(asm.R8, 1), // n

		asm.LoadMem(asm.R1, regTarget, atAfter, asm.DWord),
		asm.JLE.Reg(asm.R8, asm.R1, labelMiss),
		asm.Mov.Reg(asm.R7, asm.R8),
		asm.Sub.Reg(asm.R7, asm.R1),
		asm.Sub.Imm(asm.R7, 1), // how many were past `after` before this one

		asm.LoadMem(asm.R2, regTarget, atEvery, asm.DWord),
		asm.JLE.Imm(asm.R2, 1, "each"),
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.Mod.Reg(asm.R3, asm.R2),
		asm.JNE.Imm(asm.R3, 0, labelMiss),
		asm.Div.Reg(asm.R7, asm.R2),

		asm.LoadMem(asm.R4, regTarget, atTimes, asm.DWord).WithSymbol("each"),
		asm.LoadMem(asm.R3, regTarget, atAlways, asm.DWord),
		asm.JEq.Imm(asm.R3, 0, "draw"),
		asm.JEq.Imm(asm.R4, 0, "fires"),
		asm.JGE.Reg(asm.R7, asm.R4, labelMiss),
		asm.Ja.Label("fires"),

		asm.LoadImm(asm.R1, wrap(gamma), asm.DWord).WithSymbol("draw"),
		asm.Mul.Reg(asm.R1, asm.R8),
		asm.LoadMem(asm.R2, regTarget, atStream, asm.DWord),
		asm.Add.Reg(asm.R1, asm.R2),
	}
	for _, step := range []struct {
		shift  int32
		factor int64
	}{{30, wrap(mix1)}, {27, wrap(mix2)}} {
		ins = append(ins,
			asm.Mov.Reg(asm.R2, asm.R1), asm.RSh.Imm(asm.R2, step.shift), asm.Xor.Reg(asm.R1, asm.R2),
			asm.LoadImm(asm.R2, step.factor, asm.DWord), asm.Mul.Reg(asm.R1, asm.R2),
		)
	}
	return append(ins,
		asm.Mov.Reg(asm.R2, asm.R1), asm.RSh.Imm(asm.R2, 31), asm.Xor.Reg(asm.R1, asm.R2),
		asm.RSh.Imm(asm.R1, 64-mantissa),
		asm.LoadMem(asm.R2, regTarget, atThreshold, asm.DWord),
		asm.JGE.Reg(asm.R1, asm.R2, labelMiss),
		asm.JEq.Imm(asm.R4, 0, "fires"),
		asm.Mov.Imm(asm.R1, 1),
		fetchAdd(regTarget, asm.R1, atTaken),
		asm.JGE.Reg(asm.R1, asm.R4, labelMiss),

		// The value's memory may have been given to another target since it was
		// found (kernel/bpf/hashtab.c reuses elements at once): not for that one.
		asm.LoadMem(asm.R1, regTarget, atHandle, asm.DWord).WithSymbol("fires"),
		asm.LoadMem(asm.R2, asm.RFP, slotHandle, asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, labelMiss),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(regTarget, asm.R1, asm.DWord, atInjected),
	)
}
