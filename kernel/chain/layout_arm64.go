package chain

// Where the stack pointer is in the context of a kprobe, see
// arch/arm64/include/uapi/asm/bpf_perf_event.h.
const (
	contextType         = "user_pt_regs"
	contextStackPointer = "sp"
)

// returnSlot is by how many bytes the stack pointer is higher after a function
// has returned than when it was entered: the return address is in a register.
const returnSlot = 0
