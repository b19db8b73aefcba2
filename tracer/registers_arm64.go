package tracer

import (
	"errors"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// registers are those of a stopped thread. A system call in which the thread was
// stopped is shown as it is on x86: pc after the svc instruction, in x0 the
// result, also where the kernel has gone back to the instruction already.
type registers struct {
	unix.PtraceRegs
	call    int64  // number of the system call, -1 if the stop was in none
	arg0    uint64 // its first argument, which the result has overwritten
	compat  bool   // 32-bit code
	vectors []byte // scalable vector registers, where system calls would change them
}

const (
	syscallInsn      = 0xd4000001 // svc #0
	syscallInsnBytes = 4
	sysRestart       = unix.SYS_RESTART_SYSCALL
	flagStep         = 1 << 21    // PSTATE.SS
	flagBranchType   = 0b11 << 10 // PSTATE.BTYPE: our code has no landing pads
)

// getRegs gets the registers as they are. The call is set in a stop at a system
// call only: before the stops in the signal path the kernel forgets it.
func getRegs(tid int, r *registers) error {
	*r = registers{call: -1}
	n, err := getSet(tid, noteStatus, unsafe.Pointer(&r.PtraceRegs), int(unsafe.Sizeof(r.PtraceRegs)))
	if err != nil {
		return err
	}
	r.compat = n != int(unsafe.Sizeof(r.PtraceRegs))
	return nil
}

// setRegs sets them as they are, so that the thread runs on at pc, in no system call.
func setRegs(tid int, r *registers) error {
	if err := setCall(tid, -1); err != nil { // a thread that is at the entry of a system call does not make it
		return err
	}
	return putSet(tid, noteStatus, unsafe.Pointer(&r.PtraceRegs), int(unsafe.Sizeof(r.PtraceRegs)))
}

func setCall(tid int, nr int32) error {
	return putSet(tid, noteSystemCall, unsafe.Pointer(&nr), int(unsafe.Sizeof(nr)))
}

// pc is the address of the next instruction.
func pc(r *registers) uint64 { return r.Pc }

func stackPointer(r *registers) uint64 { return r.Sp }

// codeModel refuses threads that do not run 64-bit code.
func codeModel(r *registers) error {
	if r.compat {
		return errors.New("it runs 32-bit code; only 64-bit processes can be swapped")
	}
	return nil
}

// startRegs are the registers with which a thread enters code at ip.
func startRegs(r registers, ip uint64) registers {
	r.Pc, r.call = ip, -1
	r.Pstate &^= flagStep | flagBranchType
	return r
}

// inSyscall reports whether the stop was in a system call, its number and its
// result.
func inSyscall(r *registers) (nr, ret int64, ok bool) {
	return r.call, int64(r.Regs[0]), r.call >= 0
}

// userRegs is what the thread would have when back in user mode without any
// signal. A sleep that has a restart block starts from its beginning: rt_sigreturn
// drops the block.
func userRegs(r registers) registers {
	if r.call >= 0 && restarts(int64(r.Regs[0])) {
		r.Regs[0], r.Pc = r.arg0, r.Pc-syscallInsnBytes
	}
	return r
}

func restarts(ret int64) bool {
	return ret == -eRestartSys || ret == -eRestartNoIntr || ret == -eRestartNoHand || ret == -eRestartBlock
}

// beforeStop is the system call in which a thread slept before it was stopped.
type beforeStop struct {
	sleeping
	ok bool
}

// lookBefore is called between PTRACE_SEIZE and PTRACE_INTERRUPT: whatever signal
// comes in between shows as a stop, so a call that sleeps here and has ended at
// the stop was ended by that stop, not by a handler that has run since.
//
// A thread that runs may be about to sleep: it is looked at again. If it goes
// into a call in the very moment of the stop, that call's error is seen by the program.
// The kernel keeps the first argument (orig_x0) but shows it to nobody then: a write of
// NT_ARM_SYSTEM_CALL, after which /proc/PID/syscall would, overwrites it (6.12.117).
func lookBefore(tid int) (b beforeStop) {
	const looks = 3
	for range looks {
		if b.sleeping, b.ok = sleepsIn(tid); b.ok {
			break
		}
	}
	return b
}

// stopRegs gets the registers of a thread at the stop that was asked for.
//
// do_signal (arch/arm64/kernel/signal.c, Linux 3.7 to 7.2) goes back to the svc
// instruction, with the first argument in x0, before it lets a tracer look, and
// keeps the result to itself; it forgets that there was a system call. If nothing is
// changed it continues by its rules, EINTR for a handler included. What we
// see here is for a thread that is changed: one that our code runs in, or whose
// call does not restart by itself.
func stopRegs(t *thread) error {
	if t.again == toStop { // the registers are known; the kernel has gone back to the call
		t.again = 0
		return nil
	}
	t.again = 0
	r := &t.regs
	if err := getRegs(t.tid, r); err != nil || r.compat {
		return err
	}
	nr := int64(r.Regs[8])
	slept := t.before.ok && t.before.nr == nr && t.before.sp == r.Sp
	switch ret := int64(r.Regs[0]); {
	case slept && t.before.pc == r.Pc+syscallInsnBytes: // it restarts
		r.call, r.arg0 = nr, r.Regs[0]
		r.Regs[0] = uint64(-restartResult(r))
		r.Pc += syscallInsnBytes
		return nil
	case slept && t.before.pc == r.Pc && ret < 0 && slices.Equal(t.before.args[1:], r.Regs[1:6]):
		// an error: the result stands where the first argument was
		r.call, r.arg0 = nr, t.before.args[0]
		return nil
	}
	r.vectors = vectors(t.tid)
	return nil
}

// restartResult is the result, as a positive number, of a call that the kernel
// restarts. It matters if a handler runs first: all but ERESTARTNOINTR
// then show EINTR; and a sleep with a restart block goes on where it was.
func restartResult(r *registers) int64 {
	const (
		futexWait, futexWaitBitset = 0, 9
		futexCommand               = 0x7f
		timerAbstime               = 1
	)
	switch r.call {
	case unix.SYS_RESTART_SYSCALL, unix.SYS_NANOSLEEP:
		return eRestartBlock
	case unix.SYS_CLOCK_NANOSLEEP:
		if r.Regs[1]&timerAbstime == 0 {
			return eRestartBlock
		}
		return eRestartNoHand
	case unix.SYS_FUTEX: // futex_wait in kernel/futex/waitwake.c
		if op := r.Regs[1] & futexCommand; (op == futexWait || op == futexWaitBitset) && r.Regs[3] != 0 {
			return eRestartBlock
		}
	case unix.SYS_PPOLL, unix.SYS_PSELECT6, unix.SYS_RT_SIGSUSPEND:
		return eRestartNoHand
	}
	return eRestartSys
}

// restartCall makes the kernel restart the system call when the thread goes on:
// unless a signal handler runs first (always false), or in any case.
//
// The kernel has decided before it let us look. For the first it must decide once
// more, with another result: so the thread enters the call again, does not make it,
// and is stopped at its exit with the result that we want, in the signal path.
func restartCall(t *thread, always bool) error {
	t.regs.Regs[0] = negative(eRestartNoHand)
	if always {
		t.regs.Regs[0] = negative(eRestartNoIntr)
	}
	again := userRegs(t.regs)
	if err := setRegs(t.tid, &again); err != nil || always {
		return err
	}
	t.stopped, t.again = false, toEntry
	return cont(unix.PTRACE_SYSCALL, t.tid, 0)
}

// Where a thread is that makes its system call again.
const (
	toEntry = iota + 1
	toExit
	toStop
)

// calledAgain takes such a thread on from a stop at a system call.
func calledAgain(t *thread) error {
	if t.again == toEntry {
		t.again = toExit
		if err := setCall(t.tid, -1); err != nil { // not made
			return err
		}
		return cont(unix.PTRACE_SYSCALL, t.tid, 0)
	}
	// first the number: with it goes x0, as the first argument
	t.again = toStop
	if err := setCall(t.tid, int32(t.regs.call)); err != nil {
		return err
	}
	if err := putSet(t.tid, noteStatus, unsafe.Pointer(&t.regs.PtraceRegs), int(unsafe.Sizeof(t.regs.PtraceRegs))); err != nil {
		return err
	}
	if err := ptraceValue(unix.PTRACE_INTERRUPT, t.tid, 0, 0); err != nil {
		return err
	}
	return cont(unix.PTRACE_CONT, t.tid, 0)
}

// notCalledAgain gives such a thread, if a signal reached it before the call, the
// result of the call that the signal has interrupted.
func notCalledAgain(t *thread) error {
	if t.again != toEntry {
		return nil
	}
	t.again = 0
	t.regs.Regs[0], t.regs.call = negative(int64(syscall.EINTR)), -1
	if err := setRegs(t.tid, &t.regs); err != nil {
		return err
	}
	return ptraceValue(unix.PTRACE_INTERRUPT, t.tid, 0, 0)
}

func negative(n int64) uint64 { return uint64(-n) }

// giveBack gives a thread that ran our code, and is stopped within the signal
// path, its mask and registers back.
//
// If it was in a system call, then so that the kernel decides on the restart again
// when the thread goes on: signals may have come meanwhile. For that the kernel must
// have the first argument, which it takes only from a call: one without effect.
func (r *remote) giveBack() error {
	tid := r.t.tid
	if r.saved.call < 0 {
		if err := setSigMask(tid, r.mask); err != nil {
			return err
		}
		if err := setRegs(tid, &r.saved); err != nil {
			return err
		}
		if len(r.saved.vectors) > 0 {
			return putSet(tid, noteVectors, unsafe.Pointer(&r.saved.vectors[0]), len(r.saved.vectors))
		}
		return nil
	}
	probe := r.saved
	probe.Pc = r.code.start + paraLabel(wordProbe)
	probe.Regs[0], probe.Regs[8] = r.saved.arg0, unix.SYS_GETPID
	probe.Pstate &^= flagStep | flagBranchType
	if err := setRegs(tid, &probe); err != nil {
		return err
	}
	for range 2 { // entry and exit
		if err := r.toSyscall(); err != nil {
			return err
		}
	}
	// x7 cannot be set at this stop (report_syscall in arch/arm64/kernel/ptrace.c): it
	// has been since the probe. If we die now the kernel goes through the signal
	// path, as it does for everything that was being traced (__ptrace_unlink).
	if err := setSigMask(tid, r.mask); err != nil {
		return err
	}
	if err := putSet(tid, noteStatus, unsafe.Pointer(&r.saved.PtraceRegs), int(unsafe.Sizeof(r.saved.PtraceRegs))); err != nil {
		return err
	}
	return r.interrupt()
}

// toSyscall runs the thread up to the next entry or exit of a system call.
func (r *remote) toSyscall() error {
	r.t.stopped = false
	if err := cont(unix.PTRACE_SYSCALL, r.t.tid, 0); err != nil {
		return err
	}
	for {
		ws, err := r.wait()
		if err != nil {
			return err
		}
		if syscallStop(ws) {
			r.t.stopped = true
			return nil
		}
		if err := cont(unix.PTRACE_SYSCALL, r.t.tid, r.passSignal(ws)); err != nil {
			return err
		}
	}
}

// interruptedCalls are system calls that return EINTR after any stop although
// no signal was delivered: see parasite_amd64.go.
var interruptedCalls = map[int64]bool{
	unix.SYS_READ: true, unix.SYS_READV: true, unix.SYS_WRITE: true, unix.SYS_WRITEV: true,
	unix.SYS_RECVFROM: true, unix.SYS_RECVMSG: true, unix.SYS_RECVMMSG: true,
	unix.SYS_SENDTO: true, unix.SYS_SENDMSG: true, unix.SYS_SENDMMSG: true,
	unix.SYS_ACCEPT: true, unix.SYS_ACCEPT4: true,
	unix.SYS_EPOLL_PWAIT: true, unix.SYS_EPOLL_PWAIT2: true,
	unix.SYS_SEMOP: true, unix.SYS_SEMTIMEDOP: true, unix.SYS_MSGRCV: true, unix.SYS_MSGSND: true,
	unix.SYS_RT_SIGTIMEDWAIT: true, unix.SYS_IO_GETEVENTS: true, unix.SYS_IO_PGETEVENTS: true, unix.SYS_IO_URING_ENTER: true,
}
