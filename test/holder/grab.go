package main

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// grabber tries to get a record lock on a whole file all the time.
type grabber struct {
	over atomic.Bool
	wg   sync.WaitGroup
	got  int
	try  int
	err  error
}

var contender grabber

// start begins; again opens the file anew for each try.
func (g *grabber) start(path string, again bool, kind string) error {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if kind == "read" {
		l.Type = unix.F_RDLCK
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	g.over.Store(false)
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		defer func() { _ = unix.Close(fd) }() // locks of ours go with it
		for ; !g.over.Load(); g.try++ {
			if again {
				_ = unix.Close(fd)
				if fd, g.err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); g.err != nil {
					return
				}
			}
			k := l
			switch err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &k); {
			case err == nil:
				g.got++
				k.Type = unix.F_UNLCK
				g.err = unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &k)
			case !errors.Is(err, unix.EAGAIN):
				g.err = err
			}
			if g.err != nil {
				return
			}
		}
	}()
	return nil
}

// stop ends it, and tells how often it got the lock.
func (g *grabber) stop() (string, error) {
	g.over.Store(true)
	g.wg.Wait()
	return fmt.Sprintf("got it %d times (tried: %v)", g.got, g.try > 100), g.err
}
