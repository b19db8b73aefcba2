package kernel

// syscallPrefix begins the names of the functions behind system calls
// (arch/arm64/include/asm/syscall_wrapper.h).
const syscallPrefix = "__arm64_sys_"

// syscallsHere is empty: the architecture has no older system calls.
var syscallsHere map[string]int32
