package graft

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is an OS thread of this process that lives in another process's
// mount namespace: mounts can only be moved and removed from inside. Its root
// and working directory are those of the namespace, so nothing it is told uses
// a path: only descriptors opened outside.
type namespace struct {
	work chan func()
	done chan struct{}
	tid  int // its /proc/TID/root and mountinfo are those of the namespace
}

// enterNamespace starts the thread in the namespace that the path names, a file
// of nsfs. The goroutine never unlocks it, so that the thread ends with it and
// no other goroutine ever runs in there.
func enterNamespace(path string) (*namespace, error) {
	ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the mount namespace %s: %w", path, err)
	}
	defer func() { _ = unix.Close(ns) }()
	n := &namespace{work: make(chan func()), done: make(chan struct{})}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer close(n.done)
		// setns(2): a thread that shares its fs_struct cannot change its mount namespace.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			ready <- fmt.Errorf("unshare CLONE_FS: %w", err)
			return
		}
		if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
			ready <- fmt.Errorf("enter the mount namespace %s: %w", path, err)
			return
		}
		n.tid = unix.Gettid()
		ready <- nil
		for f := range n.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		return nil, err
	}
	return n, nil
}

// do runs f on the thread.
func (n *namespace) do(f func() error) error {
	result := make(chan error, 1)
	n.work <- func() { result <- f() }
	return <-result
}

func (n *namespace) close() {
	close(n.work)
	<-n.done
}
