package predicate_test

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/faultgraft/faultgraft/kernel/predicate"
)

// registers gives BTF with the struct pt_regs of an architecture, as far as it is
// looked at: arch/x86/include/asm/ptrace.h, arch/arm64/include/asm/ptrace.h.
func registers(t *testing.T, arch string) *btf.Spec {
	t.Helper()
	regs := &btf.Struct{Name: "pt_regs", Size: 168}
	if arch == "amd64" {
		for i, name := range []string{"r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di"} {
			regs.Members = append(regs.Members, btf.Member{Name: name, Type: tU64, Offset: btf.Bits(64 * i)})
		}
	} else {
		all := &btf.Array{Index: tU32, Type: tU64, Nelems: 31}
		user := &btf.Struct{Name: "user_pt_regs", Size: 272, Members: []btf.Member{{Name: "regs", Type: all}}}
		plain := &btf.Struct{Size: 272, Members: []btf.Member{{Name: "regs", Type: all}}}
		regs.Members = []btf.Member{{Type: &btf.Union{Size: 272, Members: []btf.Member{{Name: "user_regs", Type: user}, {Type: plain}}}}}
	}
	b, err := btf.NewBuilder([]btf.Type{regs}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.Spec()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// offsets are where the arguments are taken from: the last offset that is added or loaded from.
func offsets(t *testing.T, a predicate.Arguments, n int) (at []int64) {
	t.Helper()
	for i := range n {
		ins, err := a.Load(asm.R7, i, 0, "no")
		if err != nil {
			t.Fatal(err)
		}
		last := int64(ins[0].Offset)
		for _, in := range ins {
			if in.OpCode.ALUOp() == asm.Add && in.Dst == asm.R3 {
				last = in.Constant
			}
		}
		at = append(at, last)
	}
	return at
}

func TestArguments(t *testing.T) {
	for arch, want := range map[string]struct{ call, syscall []int64 }{
		"amd64": {[]int64{14 * 8, 13 * 8, 12 * 8, 11 * 8, 9 * 8, 8 * 8}, []int64{14 * 8, 13 * 8, 12 * 8, 7 * 8, 9 * 8, 8 * 8}},
		"arm64": {[]int64{0, 8, 16, 24, 32, 40, 48, 56}, []int64{0, 8, 16, 24, 32, 40}},
	} {
		s := registers(t, arch)
		call, err := predicate.RegistersContext(s, arch)
		if err != nil {
			t.Fatal(err)
		}
		syscall, err := predicate.SyscallContext(call, s, arch)
		if err != nil {
			t.Fatal(err)
		}
		if got := offsets(t, call, len(want.call)); !slices.Equal(got, want.call) {
			t.Errorf("%s: %d, want %d", arch, got, want.call)
		}
		if got := offsets(t, syscall, len(want.syscall)); !slices.Equal(got, want.syscall) {
			t.Errorf("%s system call: %d, want %d", arch, got, want.syscall)
		}
		if _, err := call.Load(asm.R7, len(want.call), 0, "no"); err == nil {
			t.Errorf("%s: an argument on the stack: no error", arch)
		}
		if _, err := syscall.Load(asm.R7, 6, 0, "no"); err == nil {
			t.Errorf("%s: a seventh argument of a system call: no error", arch)
		}
		if _, err := predicate.RegistersContext(smallSpec(t), arch); err == nil {
			t.Errorf("%s without struct pt_regs: no error", arch)
		}
	}
	if _, err := predicate.RegistersContext(registers(t, "amd64"), "mips"); err == nil {
		t.Error("an unknown architecture: no error")
	}
}
