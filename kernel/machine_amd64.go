package kernel

import "github.com/cilium/ebpf/asm"

// syscallRegister is the member of pt_regs with the number of the system call.
const syscallRegister = "orig_ax"

// pseudoBTF makes a load of 64 bits the address of a kernel variable, given by
// its BTF id: BPF_PSEUDO_BTF_ID of include/uapi/linux/bpf.h.
const pseudoBTF = asm.R3

// preemptCount loads the preemption count into R1. It is a variable of each CPU:
// __preempt_count, or from Linux 6.2 to 6.14 a member of pcpu_hot
// (arch/x86/include/asm/preempt.h).
func preemptCount(l *layout) asm.Instructions {
	id, ok := l.variable("__preempt_count")
	var at int16
	if !ok {
		if id, ok = l.variable("pcpu_hot"); ok {
			at = l.offset("pcpu_hot", "preempt_count")
		}
	}
	if !ok {
		l.fail("the kernel's type information has neither __preempt_count nor pcpu_hot, so interrupts cannot be told from processes (was it made without variables of CPUs?)")
	}
	return asm.Instructions{
		asm.Instruction{OpCode: asm.LoadImmOp(asm.DWord), Dst: asm.R1, Src: pseudoBTF, Constant: int64(id)},
		asm.FnThisCpuPtr.Call(),
		asm.LoadMem(asm.R1, asm.R0, at, asm.Word),
	}
}
