package kernel

// syscallPrefix begins the names of the functions behind system calls
// (arch/x86/include/asm/syscall_wrapper.h).
const syscallPrefix = "__x64_sys_"
