package main

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// busy are threads that never let a file rest.
type busy struct {
	over  atomic.Bool
	calls atomic.Int64
	wg    sync.WaitGroup
	mu    sync.Mutex
	errs  []error
	pipe  [2]int
}

var crowd busy

// start has threads write and read the file at path, each a part of its own, and
// one that splices it into a pipe which is full most of the time.
func (b *busy) start(path string, threads int) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	const part = 512
	if err := unix.Ftruncate(fd, int64(part*threads)); err != nil {
		return err
	}
	if err := unix.Pipe2(b.pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	b.over.Store(false)
	for i := range threads {
		b.wg.Add(1)
		go func() {
			defer b.wg.Done()
			b.loop(func(n int) error {
				want, got := bytes.Repeat([]byte{byte(i + n)}, part), make([]byte, part)
				if k, err := unix.Pwrite(fd, want, int64(i*part)); err != nil || k != part {
					return fmt.Errorf("pwrite: %d, %w", k, err)
				}
				if k, err := unix.Pread(fd, got, int64(i*part)); err != nil || k != part {
					return fmt.Errorf("pread: %d, %w", k, err)
				}
				if !bytes.Equal(got, want) {
					return errors.New("a thread did not read what it wrote")
				}
				return nil
			})
		}()
	}
	b.wg.Add(1)
	go func() {
		defer b.wg.Done()
		defer func() { _ = unix.Close(b.pipe[1]) }()
		b.loop(func(int) error {
			var off int64
			_, err := unix.Splice(fd, &off, b.pipe[1], nil, part, 0)
			return err
		})
	}()
	return nil
}

func (b *busy) loop(call func(n int) error) {
	for n := 0; !b.over.Load(); n++ {
		if err := call(n); err != nil {
			b.mu.Lock()
			b.errs = append(b.errs, err)
			b.mu.Unlock()
			return
		}
		b.calls.Add(1)
	}
}

// stop ends the threads and returns how many calls they made.
func (b *busy) stop() (int64, error) {
	b.over.Store(true)
	go func() { // the pipe is full: its writer waits
		buf := make([]byte, 1<<16)
		for {
			if n, err := unix.Read(b.pipe[0], buf); err != nil || n == 0 {
				return
			}
		}
	}()
	b.wg.Wait()
	return b.calls.Load(), errors.Join(b.errs...)
}
