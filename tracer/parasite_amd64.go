package tracer

import (
	_ "embed"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

//go:generate parasite/build.sh ../parasite_amd64.bin

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

// paraHeader is the size of what stands before the first instruction: a mark and
// the length of the whole, by which a later tracer knows what a dead one left.
const paraHeader = 16

// Layout of the scratch region, see parasite/amd64.S.
const (
	scratchControl = 8
	scratchData    = 16
	scratchTemps   = 128
	scratchHeader  = 4096 // arguments and calls start here
)

// callStore is not a system call but a store of the second argument, 8 bytes, at
// the address that is the first.
const callStore = 0xffffffff

// registers are those of a stopped thread.
type registers = unix.PtraceRegs

// archCheck says whether this machine's processes can be swapped.
func archCheck() error { return nil }

// paraConfig is what the parasite needs to know of the thread it borrows.
type paraConfig struct {
	regs    registers    // where the thread was stopped
	abortIP uint64       // not 0: continue here, the stop was in a restartable sequence (rseq)
	mask    uint64       // signal mask of the thread
	scratch span         // where the scratch region goes: free addresses
	limit   *unix.Rlimit // RLIMIT_NOFILE to put back at the end, nil: leave it
	raised  unix.Rlimit  // RLIMIT_NOFILE to set at the start, if limit is not nil
}

// paraImage returns the code for one thread.
func paraImage(c *paraConfig) []byte {
	code := append([]byte(nil), parasiteCode...)
	words := code[len(code)-8*wordCount:]
	set := func(i int, v uint64) { binary.LittleEndian.PutUint64(words[8*i:], v) }
	set(wordAddr, c.scratch.start)
	set(wordSize, c.scratch.end-c.scratch.start)
	set(wordMask, c.mask)
	if c.limit != nil {
		set(wordLimited, 1)
		set(wordRaisedCur, c.raised.Cur)
		set(wordRaisedMax, c.raised.Max)
		set(wordLimitCur, c.limit.Cur)
		set(wordLimitMax, c.limit.Max)
	}
	r := userRegs(c.regs)
	if c.abortIP != 0 {
		r.Rip = c.abortIP
	}
	// al: OF, ah: SF ZF AF PF CF as sahf takes them, third byte: DF
	set(wordFlags, r.Eflags>>11&1|r.Eflags&0xd5<<8|r.Eflags>>10&1<<16)
	for i, v := range []uint64{r.Rip, r.Rax, r.Rbx, r.Rcx, r.Rdx, r.Rsi, r.Rdi, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14} {
		set(wordRegs+i, v)
	}
	return code
}

// paraLabel returns the offset of a label from the start of the code.
func paraLabel(word int) uint64 {
	return binary.LittleEndian.Uint64(parasiteCode[len(parasiteCode)-8*wordCount+8*word:])
}

// Error numbers that the kernel uses between a system call and its restart
// (include/linux/errno.h); user code never sees them.
const (
	eRestartSys      = 512
	eRestartNoIntr   = 513
	eRestartNoHand   = 514
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

// setRestart makes the kernel restart the system call when the thread goes on:
// unless a signal handler runs first (always false), or in any case.
func setRestart(r *registers, always bool) {
	e := int64(eRestartNoHand)
	if always {
		e = eRestartNoIntr
	}
	r.Rax = uint64(-e)
}

// startRegs are the registers with which a thread enters code at ip.
func startRegs(r registers, ip uint64) registers {
	r.Rip, r.Orig_rax, r.Rax = ip, ^uint64(0), 0
	r.Eflags &^= 0x500 // TF, DF
	return r
}

// pc is the address of the next instruction.
func pc(r *registers) uint64 { return r.Rip }

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
