package fusefs

import "golang.org/x/sys/unix"

// accessCalls are the system calls that op=access is about.
var accessCalls = []int{unix.SYS_ACCESS, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2}
