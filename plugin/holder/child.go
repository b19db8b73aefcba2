package holder

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What follows runs in the child, on the one thread that clone(2) left, with all
// signals blocked: system calls, no stack growth, no write barrier, no race
// detector. It must not allocate, lock, panic or call anything that may.

// cloneSharingFiles makes the child and returns in the parent.
//
//go:nosplit
//go:norace
//go:noinline
//go:nocheckptr
func cloneSharingFiles(w *will) (uintptr, syscall.Errno) {
	pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_FILES|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e == 0 && pid == 0 {
		hold(w)
	}
	return pid, e
}

// hold is the life of the holder.
//
//go:nosplit
//go:norace
//go:noinline
//go:nocheckptr
func hold(w *will) {
	disguise(w)
	await(w.server)
	generation, guard := w.claimed, w.guard
	for {
		await(guard)
		if !claim(w, generation) || generation == LastGeneration {
			exit(0)
		}
		generation++
		if w.generation != nil {
			*w.generation = generation
		}
		guard = successor(w)
		_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(w.claimWrite), uintptr(unsafe.Pointer(&generation)), 1) // nobody is left who could be told
		if guard < 0 {
			pause(1e9)
		}
	}
}

// disguise drops what belongs to the program that the memory is a copy of.
//
//go:nosplit
//go:norace
//go:noinline
//go:nocheckptr
func disguise(w *will) {
	var ignored [4]uint64 // struct kernel_sigaction with SIG_DFL
	for sig := uintptr(1); sig <= 64; sig++ {
		_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&ignored)), 0, 8, 0, 0)
	}
	_, _, _ = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	if w.title == nil {
		return
	}
	for i := uintptr(0); i < w.titleSize; i++ {
		var c byte
		if i < 16 {
			c = w.name[i]
		}
		*(*byte)(unsafe.Add(unsafe.Pointer(w.title), i)) = c
	}
}

// await returns when the process of a pidfd has ended, all its threads: then all its
// system calls have (pidfd_open(2), poll). It returns at once for what is no descriptor.
//
//go:nosplit
//go:norace
//go:noinline
//go:nocheckptr
func await(pidfd int32) {
	for {
		p := unix.PollFd{Fd: pidfd, Events: unix.POLLIN}
		n, _, e := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, 0, 0, 0, 0)
		if e == 0 && n == 1 {
			return
		}
		pause(1e8) // EINTR cannot be; ENOMEM can
	}
}

// claim takes the claim of a generation.
//
//go:nosplit
//go:norace
//go:noinline
//go:nocheckptr
func claim(w *will, generation byte) bool {
	for try := int32(0); try <= w.patience; try++ {
		var b byte
		n, _, e := syscall.RawSyscall(unix.SYS_READ, uintptr(w.claimRead), uintptr(unsafe.Pointer(&b)), 1)
		if e == 0 && n == 1 {
			if b == generation {
				return true
			}
			_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(w.claimWrite), uintptr(unsafe.Pointer(&b)), 1)
		}
		pause(1e8)
	}
	return false
}

// successor starts the program, which gets a copy of the table, and gives its pidfd; -1: it could not.
//
//go:nosplit
//go:norace
//go:noinline
//go:nocheckptr
func successor(w *will) int32 {
	pidfd := int32(-1)
	pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PIDFD|uintptr(unix.SIGCHLD), 0, uintptr(unsafe.Pointer(&pidfd)), 0, 0, 0)
	if e != 0 {
		return -1
	}
	if pid != 0 {
		return pidfd
	}
	var none uint64
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
	_, _, _ = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	_, _, _ = syscall.RawSyscall(unix.SYS_EXECVE, w.path, w.args, w.env)
	exit(127)
	return -1
}

//go:nosplit
//go:norace
//go:noinline
//go:nocheckptr
func pause(nanoseconds int64) {
	t := unix.Timespec{Nsec: nanoseconds % 1e9, Sec: nanoseconds / 1e9}
	_, _, _ = syscall.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&t)), 0, 0)
}

//go:nosplit
//go:norace
//go:noinline
//go:nocheckptr
func exit(status uintptr) {
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, status, 0, 0)
	}
}
