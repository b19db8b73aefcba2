// Command withpid runs a command under a process id that another process had,
// as the kernel may do when that has ended:
//
//	withpid ID COMMAND ARGUMENT…
//
// It waits until the id is free, and ends with the command, which ends with it.
// It needs clone3(2) with set_tid (Linux 5.5) and CAP_SYS_ADMIN.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long the process that has the id may take to be gone, with those whose session or group it leads.
const patience = 20 * time.Second

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: withpid ID COMMAND ARGUMENT…")
		os.Exit(2)
	}
	status, err := run(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "withpid:", err)
		os.Exit(1)
	}
	os.Exit(status)
}

func run(id string, command []string) (int, error) {
	pid, err := strconv.Atoi(id)
	if err != nil {
		return 0, err
	}
	c, err := prepare(command)
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread() // the child ends with the thread that made it (PR_SET_PDEATHSIG)
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := c.start(int32(pid))
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EEXIST) || time.Now().After(end) {
			return 0, fmt.Errorf("start %s as process %d: %w", command[0], pid, err)
		}
	}
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if ws.Signaled() {
			return 128 + int(ws.Signal()), err
		}
		return ws.ExitStatus(), err
	}
}

// call is what the child needs, made before there is one.
type call struct {
	path      *byte
	args, env []*byte
}

func prepare(command []string) (c call, err error) {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return c, err
	}
	if c.path, err = syscall.BytePtrFromString(path); err != nil {
		return c, err
	}
	if c.args, err = syscall.SlicePtrFromStrings(command); err != nil {
		return c, err
	}
	c.env, err = syscall.SlicePtrFromStrings(os.Environ())
	return c, err
}

// cloneArgs is struct clone_args, see clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
	setTID                                                               *int32
	setTIDSize, cgroup                                                   uint64
}

// start makes the child. What it does until its execve is system calls: it has one thread of a runtime of many.
func (c call) start(pid int32) error {
	args := cloneArgs{exitSignal: uint64(syscall.SIGCHLD), setTID: &pid, setTIDSize: 1}
	argv, envv := unsafe.Pointer(&c.args[0]), unsafe.Pointer(&c.env[0])
	if e := clone(&args, c.path, argv, envv); e != 0 {
		return e
	}
	runtime.KeepAlive(c)
	return nil
}

//go:nosplit
//go:norace
//go:noinline
func clone(args *cloneArgs, path *byte, argv, envv unsafe.Pointer) syscall.Errno {
	child, _, e := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if e != 0 || child != 0 {
		return e
	}
	_, _, _ = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0)
	_, _, _ = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(argv), uintptr(envv))
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}
