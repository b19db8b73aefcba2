package main

import (
	"errors"

	"golang.org/x/sys/unix"
)

// fill writes a file until that fails, to the last byte, and returns why.
func fill(path string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	for size := 1 << 16; size > 0; {
		if _, err = unix.Write(fd, make([]byte, size)); err != nil {
			size /= 2
		}
	}
	return errors.Join(err, unix.Close(fd))
}
