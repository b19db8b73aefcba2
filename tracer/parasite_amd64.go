package tracer

import (
	_ "embed"
	"fmt"

	"golang.org/x/sys/unix"
)

//go:generate parasite/build.sh amd64 ../parasite_amd64.bin

// parasiteCode is parasite/amd64.S, assembled.
//
//go:embed parasite_amd64.bin
var parasiteCode []byte

// Words at the end of parasiteCode, in the order of parasite/amd64.S.
const (
	wordFini = iota
	wordLast
	wordAddr
	wordSize
	wordMask
	wordLimited
	wordLimitCur
	wordLimitMax
	wordRaisedCur
	wordRaisedMax
	wordFlags
	wordRegs  // rip rax rbx rcx rdx rsi rdi r8 … r14
	wordCount = wordRegs + 14
)

// registers are those of a stopped thread.
type registers = unix.PtraceRegs

// archCheck says whether this machine's processes can be swapped.
func archCheck() error { return nil }

// paraImage returns the code for one thread.
func paraImage(c *paraConfig) ([]byte, error) {
	code, words := newParaImage(c)
	r := userRegs(c.regs)
	if c.abortIP != 0 {
		r.Rip = c.abortIP
	}
	// al: OF, ah: SF ZF AF PF CF as sahf takes them, third byte: DF
	words.set(wordFlags, r.Eflags>>11&1|r.Eflags&0xd5<<8|r.Eflags>>10&1<<16)
	for i, v := range []uint64{r.Rip, r.Rax, r.Rbx, r.Rcx, r.Rdx, r.Rsi, r.Rdi, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14} {
		words.set(wordRegs+i, v)
	}
	return code, nil
}

const (
	sysRestart       = unix.SYS_RESTART_SYSCALL
	syscallInsnBytes = 2
)

// userRegs is what the thread would have when back in user mode without any
// signal: the kernel's own restart rules (arch/x86/kernel/signal.c,
// arch_do_signal_or_restart). Used where the thread must restore itself; a
// tracer that lives leaves this to the kernel.
func userRegs(r registers) registers {
	if int64(r.Orig_rax) < 0 {
		return r
	}
	switch -int64(r.Rax) {
	case eRestartSys, eRestartNoIntr, eRestartNoHand:
		r.Rax, r.Rip = r.Orig_rax, r.Rip-syscallInsnBytes
	case eRestartBlock:
		r.Rax, r.Rip = sysRestart, r.Rip-syscallInsnBytes
	}
	return r
}

// inSyscall reports whether the stop was in a system call, its number and its
// result.
func inSyscall(r *registers) (nr, ret int64, ok bool) {
	return int64(r.Orig_rax), int64(r.Rax), int64(r.Orig_rax) >= 0
}

func getRegs(tid int, r *registers) error { return unix.PtraceGetRegs(tid, r) }

func setRegs(tid int, r *registers) error { return unix.PtraceSetRegs(tid, r) }

// beforeStop is what is learnt of a thread before it is stopped: nothing, all
// that is needed is in the registers.
type beforeStop struct{}

func lookBefore(int) beforeStop { return beforeStop{} }

// stopRegs gets the registers of a thread at the stop that was asked for.
func stopRegs(t *thread) error { return getRegs(t.tid, &t.regs) }

// restartCall makes the kernel restart the system call when the thread goes on:
// unless a signal handler runs first (always false), or in any case.
func restartCall(t *thread, always bool) error {
	e := int64(eRestartNoHand)
	if always {
		e = eRestartNoIntr
	}
	t.regs.Rax = uint64(-e)
	return setRegs(t.tid, &t.regs)
}

// A restart takes no further stop.
func calledAgain(*thread) error    { return nil }
func notCalledAgain(*thread) error { return nil }

// giveBack gives a thread that ran our code, and is stopped within the signal
// path, its mask and registers back. First the mask: if we die in between, the code
// goes on to set the registers.
func (r *remote) giveBack() error {
	if err := setSigMask(r.t.tid, r.mask); err != nil {
		return err
	}
	return setRegs(r.t.tid, &r.saved)
}

// startRegs are the registers with which a thread enters code at ip.
func startRegs(r registers, ip uint64) registers {
	r.Rip, r.Orig_rax, r.Rax = ip, ^uint64(0), 0
	r.Eflags &^= 0x500 // TF, DF
	return r
}

// pc is the address of the next instruction.
func pc(r *registers) uint64 { return r.Rip }

func stackPointer(r *registers) uint64 { return r.Rsp }

// codeModel refuses threads that do not run 64-bit code.
func codeModel(r *registers) error {
	const userCS64 = 0x33
	if r.Cs != userCS64 {
		return fmt.Errorf("it runs 32-bit code (code segment %#x); only 64-bit processes can be swapped", r.Cs)
	}
	return nil
}

// interruptedCalls are system calls that return EINTR after any stop although
// no signal was delivered, signal(7): they read a time-out or wait without the
// kernel's restart. Restarting them is safe: with EINTR they have done nothing.
// connect and close are not here: a second connect fails, a second close may
// close another file.
var interruptedCalls = map[int64]bool{
	unix.SYS_READ: true, unix.SYS_READV: true, unix.SYS_WRITE: true, unix.SYS_WRITEV: true, // sockets with SO_RCVTIMEO, SO_SNDTIMEO; inotify
	unix.SYS_RECVFROM: true, unix.SYS_RECVMSG: true, unix.SYS_RECVMMSG: true,
	unix.SYS_SENDTO: true, unix.SYS_SENDMSG: true, unix.SYS_SENDMMSG: true,
	unix.SYS_ACCEPT: true, unix.SYS_ACCEPT4: true,
	unix.SYS_EPOLL_WAIT: true, unix.SYS_EPOLL_PWAIT: true, unix.SYS_EPOLL_PWAIT2: true,
	unix.SYS_SEMOP: true, unix.SYS_SEMTIMEDOP: true, unix.SYS_MSGRCV: true, unix.SYS_MSGSND: true,
	unix.SYS_RT_SIGTIMEDWAIT: true, unix.SYS_IO_GETEVENTS: true, unix.SYS_IO_PGETEVENTS: true, unix.SYS_IO_URING_ENTER: true,
}
