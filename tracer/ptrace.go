package tracer

import (
	"encoding/binary"
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests and options of ptrace(2) that x/sys/unix does not name.
const (
	ptraceGetSigMask  = 0x420a
	ptraceSetSigMask  = 0x420b
	ptraceGetRseq     = 0x420f // Linux 5.13
	ptraceEventStop   = 128
	optSysGood        = 1
	optSuspendSeccomp = 1 << 21 // needs CAP_SYS_ADMIN in the initial user namespace
	sigSetBytes       = 8
)

// ptrace requests must come from the OS thread that seized the target.
func ptrace(req, tid int, addr uintptr, data unsafe.Pointer) error {
	return ptraceValue(req, tid, addr, uintptr(data))
}

func ptraceValue(req, tid int, addr, data uintptr) error {
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, data, 0, 0); e != 0 {
		return e
	}
	return nil
}

// seize attaches to a thread without stopping it. suspended says whether the
// thread's seccomp filters are off while it is traced.
func seize(tid int) (suspended bool, err error) {
	err = ptraceValue(unix.PTRACE_SEIZE, tid, 0, optSysGood|optSuspendSeccomp)
	if err == nil {
		return true, nil
	}
	if errors.Is(err, syscall.ESRCH) {
		return false, err
	}
	// EINVAL: no CONFIG_SECCOMP; EPERM: no CAP_SYS_ADMIN, or not ours to trace
	return false, ptraceValue(unix.PTRACE_SEIZE, tid, 0, optSysGood)
}

func getSigMask(tid int) (mask uint64, err error) {
	err = ptrace(ptraceGetSigMask, tid, sigSetBytes, unsafe.Pointer(&mask))
	return mask, err
}

func setSigMask(tid int, mask uint64) error {
	return ptrace(ptraceSetSigMask, tid, sigSetBytes, unsafe.Pointer(&mask))
}

// faultSignal reports whether the signal a thread is stopped with was raised by
// the kernel for a memory access (si_code > 0), not sent.
func faultSignal(tid int) bool {
	var info [128]byte // siginfo_t
	if ptrace(unix.PTRACE_GETSIGINFO, tid, 0, unsafe.Pointer(&info[0])) != nil {
		return false
	}
	return int32(binary.LittleEndian.Uint32(info[8:])) > 0
}

// rseqAbort returns the address at which a thread that was stopped at ip inside
// a restartable sequence (rseq(2)) must go on, 0 if it was in none. The kernel
// aborts the sequence by itself only if the thread comes back to user mode
// within it, which a thread that ran other code does not.
func rseqAbort(tid int, ip uint64, mem readerAt) uint64 {
	var conf struct {
		ptr              uint64
		size, sig, flags uint32
		pad              uint32
	}
	if ptrace(ptraceGetRseq, tid, unsafe.Sizeof(conf), unsafe.Pointer(&conf)) != nil || conf.ptr == 0 {
		return 0
	}
	var b [8]byte
	if _, err := mem.ReadAt(b[:], int64(conf.ptr+8)); err != nil {
		return 0
	}
	cs := binary.LittleEndian.Uint64(b[:])
	if cs == 0 {
		return 0
	}
	var d [32]byte // struct rseq_cs
	if _, err := mem.ReadAt(d[:], int64(cs)); err != nil {
		return 0
	}
	start, length, abort := binary.LittleEndian.Uint64(d[8:]), binary.LittleEndian.Uint64(d[16:]), binary.LittleEndian.Uint64(d[24:])
	if ip-start < length {
		return abort
	}
	return 0
}

type readerAt interface {
	ReadAt(b []byte, off int64) (int, error)
}

// waitThread asks, without blocking, for the next state of a traced thread.
// none is true if there is nothing new. A thread that is gone gives ECHILD.
func waitThread(tid int) (ws syscall.WaitStatus, none bool, err error) {
	for {
		// __WNOTHREAD: the children of our other threads are not ours to reap
		r, err := syscall.Wait4(tid, &ws, unix.WALL|unix.WNOHANG|unix.WNOTHREAD, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		return ws, r == 0 && err == nil, err
	}
}

// eventStop reports a stop by PTRACE_INTERRUPT or by a group-stop.
func eventStop(ws syscall.WaitStatus) bool {
	return ws.Stopped() && int(ws)>>16 == ptraceEventStop
}

// syscallStop reports a stop at the entry or the exit of a system call.
func syscallStop(ws syscall.WaitStatus) bool {
	return ws.Stopped() && ws.StopSignal() == syscall.SIGTRAP|0x80
}
