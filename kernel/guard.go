package kernel

import (
	"encoding/binary"
	"slices"

	"github.com/cilium/ebpf/asm"
)

// guard says what is never failed, whatever the rule says.
type guard struct {
	// task: nothing outside of task context, that is no interrupt and no NMI. A
	// system call needs no such guard.
	task bool
	// user: no thread of the kernel, and no process that is still the container
	// runtime's or is faultgraft's.
	user bool
	// flags is the index of a gfp_t parameter, -1 for none: no allocation with
	// __GFP_NOFAIL, whose caller does not look at the answer.
	flags int
	// syscalls, if there are any: nothing outside of these system calls. It makes
	// an LSM hook stand for a system call.
	syscalls []int32
}

// Flags of task_struct, include/linux/sched.h: the same numbers since Linux 5.0.
const (
	processForkNoExec = 0x00000040 // PF_FORKNOEXEC
	processKernel     = 0x00200000 // PF_KTHREAD
)

// noFailBefore is __GFP_NOFAIL up to Linux 6.9 (include/linux/gfp_types.h). From
// 6.10 on an enum has the number of its bit.
const noFailBefore = 0x8000

// preemptNotTask are the bits of the preemption count that are set outside of
// task context, include/linux/preempt.h: in a softirq (0x100; 0x200 and above
// only say that softirqs are off), in a hard interrupt and in an NMI (the bits
// from 16 on, wherever a version has the line between them). Bit 31 is not a count:
// PREEMPT_NEED_RESCHED of x86.
const preemptNotTask = 0x7fff0100

// softirqServing is the bit of current->softirq_disable_cnt, PREEMPT_RT's own
// count of softirqs.
const softirqServing = 0x100

func (g guard) code(l *layout, args arguments) asm.Instructions {
	var ins asm.Instructions
	if g.flags >= 0 {
		ins = append(ins, args.load(l, asm.R1, g.flags)...)
		ins = append(ins, asm.JSet.Imm(asm.R1, noFail(), labelMiss))
	}
	if g.task {
		ins = append(ins, preemptCount(l)...)
		ins = append(ins, asm.JSet.Imm(asm.R1, preemptNotTask, labelMiss))
	}
	if g.task || g.user || len(g.syscalls) > 0 {
		ins = append(ins, asm.FnGetCurrentTaskBtf.Call(), asm.Mov.Reg(asm.R8, asm.R0))
	}
	if g.task && l.has("task_struct", "softirq_disable_cnt") {
		ins = append(ins,
			asm.LoadMem(asm.R1, asm.R8, l.offset("task_struct", "softirq_disable_cnt"), asm.Word),
			asm.JSet.Imm(asm.R1, softirqServing, labelMiss),
		)
	}
	if g.user {
		ins = append(ins, userProcess(l)...)
	}
	if len(g.syscalls) > 0 {
		ins = append(ins, inSyscall(l, g.syscalls)...)
	}
	return ins
}

func noFail() int32 {
	if bit, ok := noFailBit(); ok {
		return 1 << bit
	}
	return noFailBefore
}

// userProcess lets pass what runs the container's own program. R8 is the task.
// The thread's name is in its slot afterwards.
func userProcess(l *layout) asm.Instructions {
	ins := asm.Instructions{
		asm.LoadMem(asm.R7, asm.R8, l.offset("task_struct", "flags"), asm.Word),
		asm.JSet.Imm(asm.R7, processKernel, labelMiss),
	}
	ins = append(ins, entered(l)...)
	ins = append(ins, loadComm()...)
	for _, name := range ownNames {
		ins = append(ins, startsWith(slotComm, name, labelMiss, "not_"+name[:4])...)
	}
	ins = append(ins, asm.And.Imm(asm.R7, processForkNoExec), asm.JEq.Imm(asm.R7, 0, "executed"))
	for _, name := range runtimeNames {
		ins = append(ins, startsWith(slotComm, name, labelMiss, "not_"+name[:4])...)
	}
	return append(ins, asm.Mov.Imm(asm.R1, 0).WithSymbol("executed"))
}

// loadComm puts the thread's name, up to 15 bytes and a NUL, into its slot.
func loadComm() asm.Instructions {
	return asm.Instructions{
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, slotComm, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, slotComm+8, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, slotComm),
		asm.Mov.Imm(asm.R2, 16),
		asm.FnGetCurrentComm.Call(),
	}
}

// startsWith jumps to yes if the bytes in a slot begin with text. The label no
// is its own, behind it.
func startsWith(slot int16, text, yes, no string) asm.Instructions {
	var ins asm.Instructions
	for at := 0; at < len(text); {
		size, n := asm.Byte, 1
		for _, s := range []asm.Size{asm.DWord, asm.Word, asm.Half} {
			if w := s.Sizeof(); w <= len(text)-at {
				size, n = s, w
				break
			}
		}
		ins = append(ins,
			asm.LoadMem(asm.R1, asm.RFP, slot+int16(at), size),
			asm.LoadImm(asm.R2, wrap(little(text[at:at+n])), asm.DWord),
			asm.JNE.Reg(asm.R1, asm.R2, no),
		)
		at += n
	}
	return append(ins, asm.Ja.Label(yes), asm.Mov.Imm(asm.R1, 0).WithSymbol(no))
}

// little reads up to 8 bytes as amd64 and arm64 do.
func little(text string) uint64 {
	return binary.LittleEndian.Uint64(append([]byte(text), make([]byte, 8-len(text))...))
}

// inSyscall lets pass what runs in one of the system calls. R8 is the task. The
// registers of user space, with the call's number, are at the bottom of its stack.
func inSyscall(l *layout, numbers []int32) asm.Instructions {
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.FnTaskPtRegs.Call(),
		asm.LoadMem(asm.R1, asm.R0, l.offset("pt_regs", syscallRegister), asm.Word),
	}
	sorted := slices.Sorted(slices.Values(numbers))
	for _, n := range sorted {
		ins = append(ins, asm.JEq.Imm(asm.R1, n, "syscall"))
	}
	return append(ins, asm.Ja.Label(labelMiss), asm.Mov.Imm(asm.R1, 0).WithSymbol("syscall"))
}
