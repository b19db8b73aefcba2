package predicate

import "golang.org/x/sys/unix"

// userConstants are constants of the system calls that C defines with #define,
// which BTF does not have. Some differ by architecture.
var userConstants = map[string]uint64{
	"MS_RDONLY": unix.MS_RDONLY,
}
