package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// record says whether and how a program reports an injection.
type record struct {
	// ring is the file descriptor of the ring buffer, 0 for no reports.
	ring int
	// stack reports the kernel stack too.
	stack bool
	// charged: the cgroup is the one that was found, not the current thread's.
	charged bool
}

// Where the parts of a record are in the ring buffer.
const (
	inTime     = 0  // bpf_ktime_get_boot_ns
	inHandle   = 8  // the fault's
	inSeq      = 16 // the matching operation's number
	inThread   = 24 // process id in the upper half, thread id in the lower
	inCgroup   = 32 // the current thread's, or the fault's for a block request
	inComm     = 40 // 16 bytes
	inStack    = 56 // how many bytes of stack follow; negative is an errno
	recordSize = 64

	maxStack = 64 // frames
)

// code writes the record. The operation's number is in R8 at its start. A full
// buffer is counted and does not keep the fault from happening.
func (r record) code() asm.Instructions {
	if r.ring == 0 {
		return nil
	}
	size := int32(recordSize)
	if r.stack {
		size += 8 * maxStack
	}
	ins := asm.Instructions{
		asm.LoadMapPtr(asm.R1, r.ring),
		asm.Mov.Imm(asm.R2, size),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnRingbufReserve.Call(),
		asm.JNE.Imm(asm.R0, 0, "reserved"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(regTarget, asm.R1, asm.DWord, atDropped),
		asm.Ja.Label("recorded"),

		asm.Mov.Reg(asm.R7, asm.R0).WithSymbol("reserved"),
		asm.StoreMem(asm.R7, inSeq, asm.R8, asm.DWord),
		asm.LoadMem(asm.R1, asm.RFP, slotHandle, asm.DWord),
		asm.StoreMem(asm.R7, inHandle, asm.R1, asm.DWord),
		asm.FnKtimeGetBootNs.Call(),
		asm.StoreMem(asm.R7, inTime, asm.R0, asm.DWord),
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.R7, inThread, asm.R0, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.Add.Imm(asm.R1, inComm),
		asm.Mov.Imm(asm.R2, commSize),
		asm.FnGetCurrentComm.Call(),
	}
	if r.charged {
		ins = append(ins, asm.LoadMem(asm.R0, asm.RFP, slotCgroup, asm.DWord))
	} else {
		ins = append(ins, asm.FnGetCurrentCgroupId.Call())
	}
	ins = append(ins,
		asm.StoreMem(asm.R7, inCgroup, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R0, 0),
	)
	if r.stack {
		ins = append(ins,
			asm.Mov.Reg(asm.R1, regContext),
			asm.Mov.Reg(asm.R2, asm.R7),
			asm.Add.Imm(asm.R2, recordSize),
			asm.Mov.Imm(asm.R3, 8*maxStack),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnGetStack.Call(),
		)
	}
	return append(ins,
		asm.StoreMem(asm.R7, inStack, asm.R0, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRingbufSubmit.Call(),
		asm.Mov.Imm(asm.R1, 0).WithSymbol("recorded"),
	)
}

// hit is a record as user space reads it.
type hit struct {
	time     int64
	handle   uint64
	seq      uint64
	pid, tid uint32
	cgroup   uint64
	comm     string
	stack    []uint64 // return addresses, the innermost first
}

var errShortRecord = errors.New("record of an injection is too short")

func parseRecord(b []byte) (hit, error) {
	if len(b) < recordSize {
		return hit{}, fmt.Errorf("%w: %d bytes", errShortRecord, len(b))
	}
	u64 := binary.NativeEndian.Uint64
	thread := u64(b[inThread:])
	h := hit{
		time: int64(u64(b[inTime:])), handle: u64(b[inHandle:]), seq: u64(b[inSeq:]),
		pid: uint32(thread >> 32), tid: uint32(thread), cgroup: u64(b[inCgroup:]),
		comm: unix.ByteSliceToString(b[inComm : inComm+commSize]),
	}
	n := int64(u64(b[inStack:]))
	if n < 0 || n > int64(len(b)-recordSize) {
		return h, nil // the kernel could not walk its stack
	}
	for at := recordSize; at+8 <= recordSize+int(n); at += 8 {
		h.stack = append(h.stack, u64(b[at:]))
	}
	return h, nil
}
