package fusefs

import (
	"errors"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Restore is New for a layer that another process served until it died: Options.State is the state that it kept,
// Options.Device and Options.Root are taken from it and need not be set. take gives this process's duplicate of what
// was descriptor fd in the process State.Owner (pidfd_getfd(2) from one that shares its descriptor table); the layer owns
// it. That process must be gone, with all its system calls. When Restore fails, it has closed what it took, and State is as
// it was: Restore can be tried again, by any process.
//
// Rules are not restored, but what they have counted is: SetRules, called before Resume, gives a rule that is equal
// to one that was in force its counters and its start. What kept the old descriptors open (the holder) has to be gone
// before Resume: a lock that was let go of may still be held by a descriptor that nobody knows any more.
func Restore(o Options, take func(fd int) (int, error)) (*Layer, error) {
	if o.State == nil {
		return nil, errors.New("restore a fault layer: no state of it was kept")
	}
	return nil, fmt.Errorf("fault layer of %q: restore: %w", o.Prefix, errors.ErrUnsupported)
}

// Resume is Serve without the handshake, for a layer made by Restore: it asks the kernel to send again what was not answered.
func (l *Layer) Resume() error {
	if !l.state.CompareAndSwap(stateNew, stateServing) {
		return errors.New("fault layer: served already")
	}
	return fmt.Errorf("fault layer of %q: resume: %w", l.o.Prefix, errors.ErrUnsupported)
}

// CanResume tells whether the layer, which is served, can be served on by another process: its state is kept, and the kernel can send again what was not answered (FUSE_HAS_RESEND, Linux 6.9).
func (l *Layer) CanResume() bool {
	return l.o.State != nil && l.device != nil && l.device.init.Flags64()&fuse.CAP_HAS_RESEND != 0
}
