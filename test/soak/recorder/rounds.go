package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	recordSize = 32
	// a log is read as a whole after so many records, and begun anew after perLog
	perCheck, perLog = 200, 2000
)

// appender appends numbered records to a log that stays open. One that is there twice, or not at all, is found.
func (r *recorder) appender() func(n int) error {
	path := filepath.Join(r.dir, "clean", "log")
	fd := -1
	return func(n int) error {
		i := n % perLog
		if i == 0 {
			if fd >= 0 {
				if err := errors.Join(unix.Close(fd), unix.Rename(path, path+".1")); err != nil {
					return err
				}
			}
			if err := unix.Unlink(path); err != nil && err != unix.ENOENT { // of an earlier life of the container
				return err
			}
			var err error
			if fd, err = unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644); err != nil {
				return fmt.Errorf("make the log: %w", err)
			}
		}
		if w, err := unix.Write(fd, record(n)); err != nil || w != recordSize {
			return fmt.Errorf("append: %d bytes, %w", w, err)
		}
		if (i+1)%perCheck != 0 {
			return nil
		}
		got, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if len(got) != (i+1)*recordSize {
			return fmt.Errorf("the log has %d bytes after %d records of %d", len(got), i+1, recordSize)
		}
		for j := range i + 1 {
			if want := record(n - i + j); !bytes.Equal(got[j*recordSize:(j+1)*recordSize], want) {
				return fmt.Errorf("record %d of the log is %q, want %q", j, got[j*recordSize:(j+1)*recordSize], want)
			}
		}
		return nil
	}
}

func record(n int) []byte { return fmt.Appendf(nil, "%0*d\n", recordSize-1, n) }

// names makes, renames and removes: calls that fail when they are carried out a second time.
func (r *recorder) names(n int) error {
	dir := filepath.Join(r.dir, "clean", fmt.Sprintf("d%d-%d", os.Getpid(), n))
	f, g, h := filepath.Join(dir, "f"), filepath.Join(dir, "g"), filepath.Join(dir, "h")
	if err := unix.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("mkdir: %w", err)
	}
	fd, err := unix.Open(f, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("open O_EXCL: %w", err)
	}
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"write", func() error { _, err := unix.Write(fd, record(n)); return err }},
		{"close", func() error { return unix.Close(fd) }},
		{"link", func() error { return unix.Link(f, g) }},
		{"rename", func() error { return unix.Rename(g, h) }},
		{"symlink", func() error { return unix.Symlink("h", g) }},
		{"RENAME_EXCHANGE", func() error { return unix.Renameat2(unix.AT_FDCWD, f, unix.AT_FDCWD, h, unix.RENAME_EXCHANGE) }},
		{"read through the link", func() error {
			got, err := os.ReadFile(g)
			if err == nil && !bytes.Equal(got, record(n)) {
				err = fmt.Errorf("%q", got)
			}
			return err
		}},
		{"list", func() error {
			entries, err := os.ReadDir(dir)
			if err == nil && (len(entries) != 3 || entries[0].Name() != "f" || entries[1].Name() != "g" || entries[2].Name() != "h") {
				err = fmt.Errorf("%v", entries)
			}
			return err
		}},
		{"unlink f", func() error { return unix.Unlink(f) }},
		{"unlink g", func() error { return unix.Unlink(g) }},
		{"unlink h", func() error { return unix.Unlink(h) }},
		{"rmdir", func() error { return unix.Rmdir(dir) }},
	} {
		if err := c.do(); err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
	}
	return nil
}

// mapped counts in a shared map, and reads the file beside it.
func (r *recorder) mapped() func(n int) error {
	path := filepath.Join(r.dir, "clean", "map")
	var page []byte
	fd := -1
	return func(n int) error {
		if page == nil {
			var err error
			if fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644); err != nil {
				return err
			}
			if err = unix.Ftruncate(fd, 8192); err != nil {
				return err
			}
			if page, err = unix.Mmap(fd, 4096, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
				return fmt.Errorf("mmap: %w", err)
			}
		}
		binary.LittleEndian.PutUint64(page, uint64(n))
		if n%10 != 0 {
			return nil
		}
		if err := unix.Msync(page, unix.MS_SYNC); err != nil {
			return fmt.Errorf("msync: %w", err)
		}
		var b [8]byte
		if _, err := unix.Pread(fd, b[:], 4096); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if got := binary.LittleEndian.Uint64(b[:]); got != uint64(n) {
			return fmt.Errorf("the file has %d, the map %d", got, n)
		}
		return nil
	}
}

// unlinked writes to a file without a name and to one that lost its name, and reads them.
func (r *recorder) unlinked(n int) (err error) {
	dir := filepath.Join(r.dir, "clean")
	name := filepath.Join(dir, fmt.Sprintf("gone%d-%d", os.Getpid(), n))
	var fds []int
	defer func() {
		for _, fd := range fds {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("O_TMPFILE: %w", err)
	}
	fds = append(fds, fd)
	if fd, err = unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	fds = append(fds, fd)
	if err := unix.Unlink(name); err != nil {
		return fmt.Errorf("unlink: %w", err)
	}
	for i := range 50 { // the files live for a while
		for _, fd := range fds {
			if _, err := unix.Write(fd, record(n+i)); err != nil {
				return fmt.Errorf("write to a file without a name: %w", err)
			}
			got := make([]byte, recordSize)
			if _, err := unix.Pread(fd, got, int64(i*recordSize)); err != nil || !bytes.Equal(got, record(n+i)) {
				return fmt.Errorf("a file without a name has %q as record %d, want %q; %w", got, i, record(n+i), err)
			}
		}
		pause()
	}
	return nil
}
