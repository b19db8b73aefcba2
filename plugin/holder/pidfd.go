package holder

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Ended waits that long for the end of the process behind a pidfd, and reports whether it has come.
func Ended(pidfd int, wait time.Duration) (bool, error) {
	for end := time.Now().Add(wait); ; {
		p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(max(0, time.Until(end).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return n > 0, err
		}
	}
}

// Kill ends the process behind a pidfd, and waits that long until it is gone with all its threads, and so with all their system calls.
func Kill(pidfd int, wait time.Duration) (ended bool, err error) {
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, err
	}
	return Ended(pidfd, wait)
}
