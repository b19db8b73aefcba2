package fusefs

import "golang.org/x/sys/unix"

// accessCalls are the system calls that op=access is about.
var accessCalls = []int{unix.SYS_ACCESS, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2}

// statCalls are the system calls by which a program asks for attributes.
var statCalls = []int{unix.SYS_STAT, unix.SYS_FSTAT, unix.SYS_LSTAT, unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_IO_URING_ENTER}

// chownCalls change an owner.
var chownCalls = []int{unix.SYS_CHOWN, unix.SYS_LCHOWN, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT}
