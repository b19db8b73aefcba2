package chain

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// The state of a thread is one entry of a hash map: the key is the address of
// its task_struct, the value has a mark for each frame of the chain: where on
// the thread's kernel stack the outermost invocation that counts was entered,
// in bytes from the lowest address of the stack; 0 if there is none.
//
// The stack grows downwards, so a mark is alive only while it is higher than
// the place where the thread is now: what is not has been left, whether its exit
// program has run or not. A mark also tells the invocations of a recursive
// function apart, so that no depth has to be counted: the exit of an inner one
// is lower than the mark and changes nothing, and an exit whose entry was not
// seen finds no mark. What runs on another stack (interrupts, exceptions) is not
// the thread.
//
// The map is preallocated: task storage would allocate memory in a program that
// may run inside the allocator that is to be failed.

const (
	// maxThreads is how many threads may be inside the outermost frame at once.
	// What comes on top has no state: the chain does not hold for it.
	maxThreads = 8192

	markBytes = 4

	// In entry and exit programs:
	keyAt    = -8  // the task, the key of the map
	baseAt   = -16 // the lowest address of its stack
	marksAt  = -16 - MaxFrames*markBytes
	recordAt = marksAt - 8 // the thread's entry in the map, spilled
	ownBytes = -recordAt
)

func stateSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: "fg_chain_state", Type: ebpf.Hash,
		KeySize: 8, ValueSize: MaxFrames * markBytes, MaxEntries: maxThreads,
	}
}

// tracer is how a frame's entry and exit are seen.
type tracer int

const (
	trampoline tracer = iota // fentry and fexit, which cannot be missed
	kprobe                   // kprobe and kretprobe
)

// assembler makes the programs of the state machine.
type assembler struct {
	layout layout
	state  *ebpf.Map
	frames int
}

// here gives R9, the program's place on the thread's stack, and goes to fail if
// it runs on another stack. fp[keyAt] is the task, R6 the context.
func (a assembler) here(t tracer, left bool, fail string) asm.Instructions {
	ins := a.base(baseAt, keyAt, fail)
	if t == trampoline {
		// The context of entry and exit is the same array on the stack of the
		// trampoline that both run in. The lower half of its address is enough.
		ins = append(ins, asm.Mov.Reg32(asm.R9, asm.R6))
	} else {
		ins = append(ins, asm.LoadMem(asm.R9, asm.R6, a.layout.sp, asm.DWord))
		if left {
			ins = append(ins, asm.Sub.Imm(asm.R9, returnSlot))
		}
	}
	return append(ins,
		asm.LoadMem(asm.R1, asm.RFP, baseAt, asm.DWord),
		asm.Sub.Reg32(asm.R9, asm.R1), // the upper half becomes 0
		asm.JGT.Imm(asm.R9, a.layout.stackBytes-1, fail),
	)
}

// task puts the task into fp[at].
func task(at int16) asm.Instructions {
	return asm.Instructions{
		asm.FnGetCurrentTask.Call(),
		asm.StoreMem(asm.RFP, at, asm.R0, asm.DWord),
	}
}

// base reads the lowest address of the task's stack into fp[at].
func (a assembler) base(at, taskAt int16, fail string) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R3, asm.RFP, taskAt, asm.DWord),
		asm.Add.Imm(asm.R3, a.layout.stack),
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, int32(at)),
		asm.Mov.Imm(asm.R2, 8),
		asm.FnProbeReadKernel.Call(),
		asm.JNE.Imm(asm.R0, 0, fail),
	}
}

// lookup gives R0, the entry of the task in fp[taskAt] or 0.
func (a assembler) lookup(taskAt int16) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, a.state.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, int32(taskAt)),
		asm.FnMapLookupElem.Call(),
	}
}

func (a assembler) forget(taskAt int16) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, a.state.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, int32(taskAt)),
		asm.FnMapDeleteElem.Call(),
	}
}

const out = "out"

func leave() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, 0).WithSymbol(out), asm.Return()}
}

// clear zeroes the marks of the frames from one on, in the entry at R0.
func (a assembler) clear(from int) asm.Instructions {
	ins := asm.Instructions{asm.Mov.Imm(asm.R2, 0)}
	for i := from; i < a.frames; i++ {
		ins = append(ins, asm.StoreMem(asm.R0, int16(i*markBytes), asm.R2, asm.Word))
	}
	return ins
}

// entry is the program for the entry of frame k. scope and where fall through
// for what is to be seen and go to out for the rest.
func (a assembler) entry(k int, t tracer, scope, where asm.Instructions) asm.Instructions {
	ins := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	ins = append(ins, scope...)
	ins = append(ins, task(keyAt)...)
	ins = append(ins, a.lookup(keyAt)...)
	if k == 0 {
		ins = append(ins, asm.StoreMem(asm.RFP, recordAt, asm.R0, asm.DWord))
	} else {
		ins = append(ins,
			asm.JEq.Imm(asm.R0, 0, out), // not inside the outermost frame
			asm.StoreMem(asm.RFP, recordAt, asm.R0, asm.DWord))
	}
	ins = append(ins, a.here(t, false, out)...)
	ins = append(ins, asm.LoadMem(asm.R0, asm.RFP, recordAt, asm.DWord))
	if k == 0 {
		ins = append(ins, asm.JEq.Imm(asm.R0, 0, "first"))
	}
	for i := range k {
		ins = append(ins,
			asm.LoadMem(asm.R1, asm.R0, int16(i*markBytes), asm.Word),
			asm.JEq.Reg(asm.R1, asm.R9, out), // this very invocation is the outer frame: no recursion yet
			asm.JLT.Reg(asm.R1, asm.R9, dead(i)))
	}
	ins = append(ins,
		asm.LoadMem(asm.R1, asm.R0, int16(k*markBytes), asm.Word),
		asm.JGT.Reg(asm.R1, asm.R9, out)) // inside one that counts already
	// What was there is dead, also if this invocation does not count.
	ins = append(ins, a.clear(k)...)
	if k == 0 {
		ins = append(ins, asm.Mov.Imm(asm.R1, 0).WithSymbol("first"))
	}
	ins = append(ins, where...)
	if k == 0 {
		ins = append(ins, asm.StoreMem(asm.RFP, marksAt, asm.R9, asm.Word), asm.Mov.Imm(asm.R1, 0))
		for i := 1; i < MaxFrames; i++ {
			ins = append(ins, asm.StoreMem(asm.RFP, int16(marksAt+i*markBytes), asm.R1, asm.Word))
		}
		ins = append(ins,
			asm.LoadMapPtr(asm.R1, a.state.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, keyAt),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, marksAt),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnMapUpdateElem.Call(), // if the map is full, the chain does not hold
		)
		return append(ins, leave()...)
	}
	ins = append(ins,
		asm.LoadMem(asm.R0, asm.RFP, recordAt, asm.DWord),
		asm.StoreMem(asm.R0, int16(k*markBytes), asm.R9, asm.Word),
		asm.Ja.Label(out))
	ins = append(ins, a.bury(k)...)
	return append(ins, leave()...)
}

func dead(i int) string { return fmt.Sprintf("dead_%d", i) }

// bury is a ladder: from dead(i) on, the marks i and higher are removed. It ends
// by falling through. The entry is at R0.
func (a assembler) bury(frames int) asm.Instructions {
	var ins asm.Instructions
	for i := range frames {
		if i == 0 {
			ins = append(ins, asm.Mov.Imm(asm.R1, 0).WithSymbol(dead(0)))
			ins = append(ins, a.forget(keyAt)...)
			ins = append(ins, asm.Ja.Label(out))
			continue
		}
		ins = append(ins, asm.Mov.Imm(asm.R2, 0).WithSymbol(dead(i)), asm.StoreMem(asm.R0, int16(i*markBytes), asm.R2, asm.Word))
	}
	return ins
}

// exit is the program for the return from any frame: it removes what is dead.
// There is no scope check: looking up a task that has no state costs less.
func (a assembler) exit(t tracer) asm.Instructions {
	ins := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	ins = append(ins, task(keyAt)...)
	ins = append(ins, a.lookup(keyAt)...)
	ins = append(ins, asm.JEq.Imm(asm.R0, 0, out), asm.StoreMem(asm.RFP, recordAt, asm.R0, asm.DWord))
	ins = append(ins, a.here(t, true, out)...)
	ins = append(ins, asm.LoadMem(asm.R0, asm.RFP, recordAt, asm.DWord))
	for i := range a.frames {
		ins = append(ins,
			asm.LoadMem(asm.R1, asm.R0, int16(i*markBytes), asm.Word),
			asm.JLE.Reg(asm.R1, asm.R9, dead(i)))
	}
	ins = append(ins, asm.Ja.Label(out))
	ins = append(ins, a.bury(a.frames)...)
	return append(ins, leave()...)
}

// ended is the program for the end of a thread (tracepoint sched_process_exit):
// it may end inside a frame, such as do_exit.
func (a assembler) ended() asm.Instructions {
	ins := append(task(keyAt), a.forget(keyAt)...)
	return append(ins, leave()...)
}

// check asks in a hook program whether all frames are marked and alive; the
// verdict is then confirmed by confirm. It uses fp[stack-24, stack), see
// [Chain.Check].
func (a assembler) check(fail string, stack int16) asm.Instructions {
	ins := task(stack - 8)
	ins = append(ins, a.lookup(stack-8)...)
	ins = append(ins, asm.JEq.Imm(asm.R0, 0, fail), asm.Mov.Reg(asm.R7, asm.R0))
	ins = append(ins, a.base(stack-16, stack-8, fail)...)
	ins = append(ins,
		asm.LoadMem(asm.R1, asm.RFP, stack-16, asm.DWord),
		// The context of each kind of hook program is on the stack it interrupted.
		// If that is not the thread's, the difference is larger than any mark.
		asm.Mov.Reg32(asm.R8, asm.R6),
		asm.Sub.Reg32(asm.R8, asm.R1),
	)
	for i := range a.frames {
		ins = append(ins,
			asm.LoadMem(asm.R1, asm.R7, int16(i*markBytes), asm.Word),
			asm.JLE.Reg(asm.R1, asm.R8, fail))
	}
	return ins
}
