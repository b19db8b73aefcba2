package tracer

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:generate parasite/build.sh arm64 ../parasite_arm64.bin

// parasiteCode is parasite/arm64.S, assembled.
//
//go:embed parasite_arm64.bin
var parasiteCode []byte

// Words at the end of parasiteCode: the part of the frame of rt_sigreturn that is
// in use, with the words of the code in its gaps, in the order of parasite/arm64.S.
const (
	wordMask  = 3
	wordFini  = 4
	wordLast  = 5
	wordProbe = 6
	// full mask 7, time to sleep 8 and 9
	wordAddr      = 10
	wordSize      = 11
	wordLimited   = 12
	wordLimitCur  = 13
	wordLimitMax  = 14
	wordRaisedCur = 15
	wordRaisedMax = 16
	wordRegs      = 21 // x0 … x30, sp, pc, pstate
	wordFloat     = 57 // fpsr, fpcr, v0 … v31
	wordCount     = 123
)

// archCheck says whether this machine's processes can be swapped.
func archCheck() error { return nil }

// Register sets of PTRACE_GETREGSET (include/uapi/linux/elf.h).
const (
	noteStatus     = 1     // NT_PRSTATUS
	noteFloat      = 2     // NT_PRFPREG
	noteSystemCall = 0x404 // NT_ARM_SYSTEM_CALL
	noteVectors    = 0x405 // NT_ARM_SVE
	noteStreaming  = 0x40b // NT_ARM_SSVE, Linux 5.19
	noteShadow     = 0x410 // NT_ARM_GCS, Linux 6.13
)

// paraImage returns the code for one thread.
func paraImage(c *paraConfig) ([]byte, error) {
	code, words := newParaImage(c)
	r := userRegs(c.regs)
	if c.abortIP != 0 {
		r.Pc = c.abortIP
	}
	for i, v := range append(r.Regs[:], r.Sp, r.Pc, r.Pstate) {
		words.set(wordRegs+i, v)
	}
	// our code touches no vector, but the frame must have them (parse_user_sigframe
	// in arch/arm64/kernel/signal.c)
	var f [528]byte // struct user_fpsimd_state: v0 … v31, fpsr, fpcr
	if _, err := getSet(c.tid, noteFloat, unsafe.Pointer(&f), len(f)); err != nil {
		return nil, fmt.Errorf("floating point registers of thread %d: %w", c.tid, err)
	}
	copy(words[8*wordFloat:], f[512:520])
	copy(words[8*wordFloat+8:], f[:512])
	return code, lendable(c.tid)
}

// lendable refuses a thread with state that the frame of rt_sigreturn does not
// carry and that our system calls would end.
func lendable(tid int) error {
	var h [16]byte // struct user_sve_header: size, max_size, vl, max_vl, flags
	if n, err := getSet(tid, noteStreaming, unsafe.Pointer(&h), len(h)); err == nil && n == len(h) && h[12]&sveActive != 0 {
		return errors.New("it is in SME streaming mode, which ends at a system call")
	}
	var s [3]uint64 // struct user_gcs: features enabled, locked, pointer
	if n, err := getSet(tid, noteShadow, unsafe.Pointer(&s), int(unsafe.Sizeof(s))); err == nil && n > 0 && s[0]&1 != 0 {
		return errors.New("it has a guarded control stack, which rt_sigreturn would not accept")
	}
	return nil
}

// sveActive is SVE_PT_REGS_SVE: there is more in the vector registers than the
// lower 128 bits.
const sveActive = 1

// vectors returns the scalable vector registers of a thread that uses them; nil
// if there is no more than the 128 bits that system calls leave alone.
func vectors(tid int) []byte {
	var h [16]byte
	if n, err := getSet(tid, noteVectors, unsafe.Pointer(&h), len(h)); err != nil || n != len(h) || h[12]&sveActive == 0 {
		return nil // EINVAL: a machine without
	}
	b := make([]byte, binary.LittleEndian.Uint32(h[:]))
	if len(b) < len(h) {
		return nil
	}
	if n, err := getSet(tid, noteVectors, unsafe.Pointer(&b[0]), len(b)); err != nil || n != len(b) {
		return nil
	}
	return b
}

func getSet(tid, note int, p unsafe.Pointer, n int) (int, error) {
	v := unix.Iovec{Base: (*byte)(p), Len: uint64(n)}
	err := ptrace(unix.PTRACE_GETREGSET, tid, uintptr(note), unsafe.Pointer(&v))
	return int(v.Len), err
}

func putSet(tid, note int, p unsafe.Pointer, n int) error {
	v := unix.Iovec{Base: (*byte)(p), Len: uint64(n)}
	return ptrace(unix.PTRACE_SETREGSET, tid, uintptr(note), unsafe.Pointer(&v))
}
