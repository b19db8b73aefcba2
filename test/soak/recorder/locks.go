package main

import (
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

func pause() { time.Sleep(5 * time.Millisecond) }

// locks holds a lock of one open file description and looks through another whether it is held.
func (r *recorder) locks() func(n int) error {
	path := filepath.Join(r.dir, "clean", "locked")
	held, other := -1, -1
	return func(int) error {
		if held < 0 {
			var err error
			if held, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644); err != nil {
				return err
			}
			if other, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
				return err
			}
			l := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 10}
			if err := unix.FcntlFlock(uintptr(held), unix.F_OFD_SETLK, &l); err != nil {
				return fmt.Errorf("lock: %w", err)
			}
			if err := unix.Flock(held, unix.LOCK_EX); err != nil {
				return fmt.Errorf("flock: %w", err)
			}
		}
		l := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 100}
		if err := unix.FcntlFlock(uintptr(other), unix.F_OFD_GETLK, &l); err != nil {
			return fmt.Errorf("F_OFD_GETLK: %w", err)
		}
		if l.Type == unix.F_UNLCK || l.Start != 10 || l.Len != 10 {
			return fmt.Errorf("the lock of bytes 10 to 19 is not held: %+v", l)
		}
		if err := unix.Flock(other, unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
			return fmt.Errorf("flock through another description: %v, want EWOULDBLOCK", err)
		}
		pause()
		return nil
	}
}
