package kernel

import "github.com/cilium/ebpf/asm"

// syscallRegister is the member of pt_regs with the number of the system call.
const syscallRegister = "syscallno"

// preemptCount loads the preemption count into R1: current->thread_info.preempt.count
// (arch/arm64/include/asm/thread_info.h).
func preemptCount(l *layout) asm.Instructions {
	return asm.Instructions{
		asm.FnGetCurrentTaskBtf.Call(),
		asm.LoadMem(asm.R1, asm.R0, l.offset("task_struct", "thread_info", "preempt", "count"), asm.Word),
	}
}
