package kernel

import "golang.org/x/sys/unix"

// syscallPrefix begins the names of the functions behind system calls
// (arch/x86/include/asm/syscall_wrapper.h).
const syscallPrefix = "__x64_sys_"

// syscallsHere are the older system calls, which newer architectures do not have.
var syscallsHere = map[string]int32{
	"mkdir":    unix.SYS_MKDIR,
	"rmdir":    unix.SYS_RMDIR,
	"unlink":   unix.SYS_UNLINK,
	"rename":   unix.SYS_RENAME,
	"link":     unix.SYS_LINK,
	"symlink":  unix.SYS_SYMLINK,
	"mknod":    unix.SYS_MKNOD,
	"open":     unix.SYS_OPEN,
	"creat":    unix.SYS_CREAT,
	"chmod":    unix.SYS_CHMOD,
	"chown":    unix.SYS_CHOWN,
	"lchown":   unix.SYS_LCHOWN,
	"stat":     unix.SYS_STAT,
	"lstat":    unix.SYS_LSTAT,
	"access":   unix.SYS_ACCESS,
	"readlink": unix.SYS_READLINK,
	"fork":     unix.SYS_FORK,
	"vfork":    unix.SYS_VFORK,
}
