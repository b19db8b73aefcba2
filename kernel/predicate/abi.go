package predicate

import "golang.org/x/sys/unix"

// userConstants are constants of the system calls that C defines with #define,
// which BTF does not have. Some differ by architecture.
var userConstants = map[string]uint64{
	"MS_RDONLY": unix.MS_RDONLY, "MS_NOSUID": unix.MS_NOSUID, "MS_NODEV": unix.MS_NODEV, "S_IFMT": unix.S_IFMT, "S_IFDIR": unix.S_IFDIR,
}
