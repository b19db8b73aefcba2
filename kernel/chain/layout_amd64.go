package chain

// Where the stack pointer is in the context of a kprobe, see
// arch/x86/include/asm/perf_event.h and include/uapi/linux/bpf_perf_event.h.
const (
	contextType         = "pt_regs"
	contextStackPointer = "sp"
)

// returnSlot is by how many bytes the stack pointer is higher after a function
// has returned than when it was entered: the return address lies there.
const returnSlot = 8
