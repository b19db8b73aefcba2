package tracer

import "golang.org/x/sys/unix"

// What the code in a target has in common on all machines: see parasite/amd64.S.

// paraHeader is the size of what stands before the first instruction: a mark and
// the length of the whole, by which a later tracer knows what a dead one left.
const paraHeader = 16

// Layout of the scratch region.
const (
	scratchControl = 8
	scratchTemps   = 128
	scratchHeader  = 4096 // arguments and calls start here
)

// callStore is not a system call but a store of the second argument, 8 bytes, at
// the address that is the first.
const callStore = 0xffffffff

// paraConfig is what the code needs to know of the thread it borrows.
type paraConfig struct {
	tid     int
	regs    registers    // where the thread was stopped
	abortIP uint64       // not 0: continue here, the stop was in a restartable sequence (rseq)
	mask    uint64       // signal mask of the thread
	scratch span         // where the scratch region goes: free addresses
	limit   *unix.Rlimit // RLIMIT_NOFILE to put back at the end, nil: leave it
	raised  unix.Rlimit  // RLIMIT_NOFILE to set at the start, if limit is not nil
}

// Error numbers that the kernel uses between a system call and its restart
// (include/linux/errno.h); user code never sees them.
const (
	eRestartSys    = 512
	eRestartNoIntr = 513
	eRestartNoHand = 514
	eRestartBlock  = 516
)
