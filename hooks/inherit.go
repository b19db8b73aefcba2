package hooks

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// SealDescriptors keeps what the runtime left open in this process from the
// keepers that it starts: they outlive the container, and a lock or a pipe of
// the runtime in their hands would hang it. Standard input, output and error are
// not passed on to keepers anyway. CLOSE_RANGE_CLOEXEC is of Linux 5.11.
func SealDescriptors() error {
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark the runtime's descriptors close-on-exec: %w; Linux 5.12 or newer is needed", err)
	}
	return nil
}
