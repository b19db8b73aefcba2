package main

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// loner is a thread with a descriptor table of its own.
type loner struct {
	leave chan struct{}
	left  chan error
}

var apart loner

// start begins it: a copy of the table of now, and a write lock of its own through one descriptor of it.
func (l *loner) start(fd int, lock unix.Flock_t) error {
	began := make(chan error)
	l.leave, l.left = make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its table
		err := unix.Unshare(unix.CLONE_FILES)
		if err == nil {
			err = unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lock)
		}
		began <- err
		<-l.leave
		l.left <- unix.CloseRange(3, 1<<30, 0) // before the answer, other than what the thread's end closes
	}()
	return <-began
}

func (l *loner) stop() error {
	close(l.leave)
	return <-l.left
}
