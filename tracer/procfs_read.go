package tracer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Readers of /proc.

func procPath(pid int, rest string) string { return "/proc/" + strconv.Itoa(pid) + "/" + rest }

func readStatus(tid int) (taskStatus, error) {
	b, err := readProc(procPath(tid, "status"))
	if err != nil {
		return taskStatus{}, err
	}
	return parseStatus(b)
}

func isKernelThread(pid int) bool {
	b, err := readProc(procPath(pid, "stat"))
	if err != nil {
		return false
	}
	flags, err := parseStatFlags(b)
	return err == nil && flags&pfKthread != 0
}

// sleepsIn returns in which system call a thread sleeps in the kernel.
func sleepsIn(tid int) (s sleeping, ok bool) {
	b, err := readProc(procPath(tid, "syscall"))
	if err != nil {
		return sleeping{}, false
	}
	return parseSyscall(b)
}

// maxProcText bounds what is read of one file of procfs. A program decides how long some of them get: it
// has 65,530 maps, with a path of up to 4 KiB each, and any number of locks, watches and epoll entries.
const maxProcText = 64 << 20

var errTooLong = fmt.Errorf("longer than %d MiB", maxProcText>>20)

// procBuffers are what procfs is read into. Nothing is collected while a target stands, so new
// memory would be faulted in for each look.
var procBuffers = sync.Pool{New: func() any { b := make([]byte, 1<<16); return &b }}

// readProc is os.ReadFile for procfs, with fewer system calls: no look at the
// size, which is 0, and no poller.
func readProc(path string) (text []byte, err error) {
	err = withProc(path, func(b []byte) error { text = bytes.Clone(b); return nil })
	return text, err
}

// withProc calls use with what a file of procfs says, which is good until use returns.
func withProc(path string, use func([]byte) error) error {
	buf := procBuffers.Get().(*[]byte)
	defer procBuffers.Put(buf)
	text, err := appendProc((*buf)[:0], path)
	if err != nil {
		return err
	}
	*buf = text[:cap(text)]
	return use(text)
}

func appendProc(b []byte, path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }() // read only
	for {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return b, nil
		}
		if b = b[:len(b)+n]; len(b) == cap(b) {
			if len(b) >= maxProcText {
				return nil, &os.PathError{Op: "read", Path: path, Err: errTooLong}
			}
			b = append(b, make([]byte, cap(b))...)[:len(b)]
		}
	}
}

// numbers lists the names of a folder that are numbers, ascending. os.Open would
// offer the folder to the poller: five system calls more, while a target stands.
func numbers(dir string) ([]int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(fd) }() // read only
	var r []int
	shared := procBuffers.Get().(*[]byte)
	defer procBuffers.Put(shared)
	buf := (*shared)[:1<<14]
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil {
			return nil, &os.PathError{Op: "getdents64", Path: dir, Err: err}
		}
		if n == 0 {
			break
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if i, err := strconv.Atoi(name); err == nil {
				r = append(r, i)
			}
		}
	}
	sort.Ints(r)
	return r, nil
}

// openFdInfo opens the folder for fdInfoText.
func openFdInfo(tid int) (dir int, err error) {
	return unix.Open(procPath(tid, "fdinfo"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// fdInfoText reads the fdinfo of a descriptor into buf, with no more system calls
// than it takes: there can be thousands.
func fdInfoText(dir, fd int, buf []byte) ([]byte, error) {
	f, err := unix.Openat(dir, strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(f) }() // read only
	n := 0
	for {
		k, err := unix.Read(f, buf[n:])
		if err != nil {
			return nil, err
		}
		if n += k; k == 0 {
			return buf[:n], nil
		}
		if n == len(buf) { // a file with many locks
			if n >= maxProcText {
				return nil, errTooLong
			}
			buf = append(buf, make([]byte, len(buf))...)
		}
	}
}

func readFdInfo(dir, fd int) (fdInfo, error) {
	var buf [1024]byte
	b, err := fdInfoText(dir, fd, buf[:])
	if err != nil {
		return fdInfo{}, err
	}
	return parseFdInfo(b)
}

// readLocks reads the POSIX locks of a process at a descriptor from its fdinfo.
// /proc/locks would tell for all at once, but to read it takes a semaphore that
// waits for an RCU grace period, 10 ms and more.
func readLocks(dir, fd int) ([]Lock, error) {
	var buf [1024]byte
	b, err := fdInfoText(dir, fd, buf[:])
	if err != nil || !bytes.Contains(b, []byte("\nlock:")) {
		return nil, err
	}
	fi, err := parseFdInfo(b)
	return fi.locks, err
}

// readLink reads a link of procfs. "/" stands for a path that is longer than the
// kernel shows (do_proc_readlink, fs/proc/base.c): following the link works all the same.
func readLink(path string) (string, error) {
	var b [4096]byte
	n, err := unix.Readlink(path, b[:])
	if errors.Is(err, unix.ENAMETOOLONG) {
		return tooLong, nil
	}
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// tooLong is what readLink has for a path that it cannot have.
const tooLong = "/"

// identity is what statx tells of a file without asking its file system anew: a
// server that is dead or slow must not hold us up.
type identity struct {
	mountID, dev, ino uint64
	mode              uint32
}

func identify(path string) (identity, error) {
	var x unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &x)
	if err != nil {
		return identity{}, err
	}
	return identity{mountID: x.Mnt_id, dev: unix.Mkdev(x.Dev_major, x.Dev_minor), ino: x.Ino, mode: uint32(x.Mode)}, nil
}
