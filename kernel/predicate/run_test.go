package predicate_test

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// runner runs programs without attaching them: a raw tracepoint's context is an
// array of arguments (BPF_PROG_TEST_RUN, Linux 5.10).
type runner struct{ prog *ebpf.Program }

func newRunner(t testing.TB, code asm.Instructions, fail string) *runner {
	t.Helper()
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R0, 0), asm.JNE.Imm(asm.R0, 0, fail), // a predicate that is always true does not go there
	}
	ins = append(ins, code...)
	ins = append(ins,
		asm.Mov.Imm(asm.R0, 1), asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol(fail), asm.Return(),
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, License: "GPL", Instructions: ins})
	if errors.Is(err, os.ErrPermission) {
		t.Skip("may not load eBPF programs: needs root and a kernel that allows it")
	}
	if err != nil {
		t.Fatalf("%+v\n%v", err, ins)
	}
	t.Cleanup(func() { closed(t, prog) })
	return &runner{prog}
}

func closed(t testing.TB, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func (r *runner) run(t testing.TB, args [12]uint64) bool {
	t.Helper()
	context := make([]byte, 0, 8*len(args))
	for _, a := range args {
		context = binary.NativeEndian.AppendUint64(context, a)
	}
	v, err := r.prog.Run(&ebpf.RunOptions{Context: context})
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip("the kernel cannot run raw tracepoints for a test")
	}
	if err != nil {
		t.Fatal(err)
	}
	return v == 1
}
