package kernel

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf/asm"
	"github.com/faultgraft/faultgraft/policy"
)

// commSize is TASK_COMM_LEN of include/linux/sched.h.
const commSize = 16

// checkCaller says which filters cannot be decided in the kernel.
func checkCaller(c policy.Caller) error {
	if c.NeedsExe() {
		return fmt.Errorf("exe cannot be decided inside the kernel: use comm")
	}
	for _, glob := range c.Comm {
		if prefix := strings.TrimSuffix(glob, "*"); strings.ContainsAny(prefix, `*?[]{}\`) {
			return fmt.Errorf("comm=%s cannot be decided inside the kernel: only a name or a beginning with * after it can", glob)
		}
	}
	return nil
}

// callerCode lets pass the callers that the filters are about. loaded says that
// the thread's name is in its slot already.
func callerCode(l *layout, c policy.Caller, loaded bool) asm.Instructions {
	var ins asm.Instructions
	if c.NeedsComm() {
		if !loaded {
			ins = append(ins, loadComm()...)
		}
		for i, glob := range c.Comm {
			name, isPrefix := strings.CutSuffix(glob, "*")
			switch {
			case isPrefix && len(name) >= commSize:
				continue // longer than any name
			case !isPrefix && len(name) >= commSize:
				name = name[:commSize-1] + "\x00" // as the kernel cuts it
			case !isPrefix:
				name += "\x00"
			}
			ins = append(ins, startsWith(slotComm, name, "comm", fmt.Sprintf("comm_%d", i))...)
		}
		ins = append(ins, asm.Ja.Label(labelMiss), asm.Mov.Imm(asm.R1, 0).WithSymbol("comm"))
	}
	if c.NeedsUID() || c.NeedsPID() {
		ins = append(ins, asm.FnGetCurrentTaskBtf.Call(), asm.Mov.Reg(asm.R8, asm.R0))
	}
	if c.NeedsUID() {
		ins = append(ins,
			asm.LoadMem(asm.R7, asm.R8, l.offset("task_struct", "cred"), asm.DWord),
		)
		ins = append(ins, readKernel(asm.R7, l.offset("cred", "fsuid"), 4, slotKey, labelMiss)...)
		ins = append(ins, inRanges(c.UID, "uid")...)
	}
	if c.NeedsPID() {
		ins = append(ins, innermostPID(l)...)
		ins = append(ins, inRanges(c.PID, "pid")...)
	}
	return ins
}

// innermostPID puts the process id as the process itself sees it into the key's
// slot: that of the thread group's leader in its innermost namespace,
// pid->numbers[pid->level].nr (include/linux/pid.h). R8 is the task.
func innermostPID(l *layout) asm.Instructions {
	const upid = 16 // sizeof(struct upid): a number and a pointer
	var ins asm.Instructions
	ins = append(ins, asm.LoadMem(asm.R7, asm.R8, l.offset("task_struct", "group_leader"), asm.DWord))
	ins = append(ins, follow(asm.R7, l.offset("task_struct", "thread_pid"), slotKey, labelMiss)...)
	ins = append(ins, readKernel(asm.R7, l.offset("pid", "level"), 4, slotKey, labelMiss)...)
	ins = append(ins,
		asm.LoadMem(asm.R1, asm.RFP, slotKey, asm.DWord),
		asm.Mul.Imm(asm.R1, upid),
		asm.Add.Reg(asm.R7, asm.R1),
	)
	return append(ins, readKernel(asm.R7, l.offset("pid", "numbers"), 4, slotKey, labelMiss)...)
}

// inRanges lets pass if the number in the key's slot is in one of the ranges.
func inRanges(ranges []policy.Range, prefix string) asm.Instructions {
	ins := asm.Instructions{asm.LoadMem(asm.R1, asm.RFP, slotKey, asm.DWord)}
	for i, r := range ranges {
		next := fmt.Sprintf("%s_%d", prefix, i)
		ins = append(ins,
			asm.LoadImm(asm.R2, wrap(r.From), asm.DWord),
			asm.JLT.Reg(asm.R1, asm.R2, next),
			asm.LoadImm(asm.R2, wrap(r.To), asm.DWord),
			asm.JLE.Reg(asm.R1, asm.R2, prefix),
			asm.Mov.Imm(asm.R0, 0).WithSymbol(next),
		)
	}
	return append(ins, asm.Ja.Label(labelMiss), asm.Mov.Imm(asm.R1, 0).WithSymbol(prefix))
}
