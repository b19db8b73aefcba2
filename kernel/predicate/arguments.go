package predicate

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// Arguments is where a program finds the arguments of the function it is attached
// to; R6 holds the program's context.
type Arguments interface {
	// Load gives instructions that load argument number index, from 0, as 64 bits
	// into dst (R7 or R8). They may use R0 to R5 and the 8 bytes below stack, and go
	// to fail when the argument cannot be read.
	Load(dst asm.Register, index int, stack int16, fail string) (asm.Instructions, error)
}

// TypedContext is for programs whose context is an array of arguments, u64 each:
// fentry, fexit, fmod_ret and LSM programs.
func TypedContext() Arguments { return typedContext{} }

type typedContext struct{}

// maxTyped is MAX_BPF_FUNC_ARGS of include/linux/bpf.h.
const maxTyped = 12

// Load reads the context through a helper: what the program itself loads from it
// is a typed pointer for the verifier, with which not all can be done that
// predicates do (an offset may not be added to one that may be NULL, in Linux 6.12).
func (typedContext) Load(dst asm.Register, index int, stack int16, fail string) (asm.Instructions, error) {
	if index >= maxTyped {
		return nil, fmt.Errorf("programs of this kind see %d arguments, not number %d", maxTyped, index)
	}
	return readArgument(dst, asm.R6, int32(8*index), stack, fail), nil
}

func readArgument(dst, from asm.Register, offset int32, stack int16, fail string) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R3, from),
		asm.Add.Imm(asm.R3, offset),
		asm.Mov.Imm(asm.R2, 8),
		asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, int32(stack-8)),
		asm.FnProbeReadKernel.Call(),
		asm.JNE.Imm(asm.R0, 0, fail),
		asm.LoadMem(dst, asm.RFP, stack-8, asm.DWord),
	}
}

// callRegisters hold the arguments of a function, in their order, by the names of
// struct pt_regs: the System V ABI for amd64, AAPCS64 for arm64.
var callRegisters = map[string][]string{
	"amd64": {"di", "si", "dx", "cx", "r8", "r9"},
	"arm64": {"regs[0]", "regs[1]", "regs[2]", "regs[3]", "regs[4]", "regs[5]", "regs[6]", "regs[7]"},
}

// syscallRegisters hold the arguments of a system call, see syscall(2),
// SC_X86_64_REGS_TO_ARGS in arch/x86/include/asm/syscall_wrapper.h and
// SC_ARM64_REGS_TO_ARGS in arch/arm64/include/asm/syscall_wrapper.h.
var syscallRegisters = map[string][]string{
	"amd64": {"di", "si", "dx", "r10", "r8", "r9"},
	"arm64": {"regs[0]", "regs[1]", "regs[2]", "regs[3]", "regs[4]", "regs[5]"},
}

// RegistersContext is for programs whose context is struct pt_regs at the entry
// of the function: kprobes. arch is a GOARCH.
func RegistersContext(spec *btf.Spec, arch string) (Arguments, error) {
	offsets, err := registerOffsets(spec, arch, callRegisters)
	if err != nil {
		return nil, err
	}
	return registersContext{offsets}, nil
}

type registersContext struct{ offsets []int32 }

func (r registersContext) Load(dst asm.Register, index int, _ int16, _ string) (asm.Instructions, error) {
	if index >= len(r.offsets) {
		return nil, fmt.Errorf("argument number %d is not in a register: a kprobe sees the first %d", index, len(r.offsets))
	}
	return asm.Instructions{asm.LoadMem(dst, asm.R6, int16(r.offsets[index]), asm.DWord)}, nil
}

// SyscallContext is for programs on the function behind a system call
// (__x64_sys_NAME, __arm64_sys_NAME), whose one argument points to the registers
// of the caller. inner says where that argument is.
func SyscallContext(inner Arguments, spec *btf.Spec, arch string) (Arguments, error) {
	offsets, err := registerOffsets(spec, arch, syscallRegisters)
	if err != nil {
		return nil, err
	}
	return syscallContext{inner, offsets}, nil
}

type syscallContext struct {
	inner   Arguments
	offsets []int32
}

func (s syscallContext) Load(dst asm.Register, index int, stack int16, fail string) (asm.Instructions, error) {
	if index >= len(s.offsets) {
		return nil, fmt.Errorf("system calls have at most %d arguments, not a number %d", len(s.offsets), index)
	}
	ins, err := s.inner.Load(dst, 0, stack, fail)
	if err != nil {
		return nil, err
	}
	return append(ins, readArgument(dst, dst, s.offsets[index], stack, fail)...), nil
}

func registerOffsets(spec *btf.Spec, arch string, registers map[string][]string) ([]int32, error) {
	names := registers[arch]
	if names == nil {
		return nil, fmt.Errorf("the registers of %s are not known", arch)
	}
	var regs *btf.Struct
	if err := spec.TypeByName("pt_regs", &regs); err != nil {
		return nil, fmt.Errorf("struct pt_regs in the kernel's BTF: %w", err)
	}
	offsets := make([]int32, len(names))
	for i, n := range names {
		member, index, _ := strings.Cut(n, "[")
		f, ok := findMember(regs, member)
		if !ok {
			return nil, fmt.Errorf("struct pt_regs has no %s in the kernel's BTF", member)
		}
		offsets[i] = int32(f.offset / 8)
		if index != "" {
			offsets[i] += 8 * int32(index[0]-'0')
		}
	}
	return offsets, nil
}
