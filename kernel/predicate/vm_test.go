package predicate_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/faultgraft/faultgraft/kernel/predicate"
)

// probe is a kernel function with a way to see it called.
type probe struct {
	function string // as in BTF
	way      string // kprobe, fentry, lsm
	params   []btf.FuncParam
	syscall  bool
}

// cache keeps the kernel's BTF for all programs: decoding it takes seconds in the
// emulated machine.
var cache = btf.NewCache()

func spec(t testing.TB) *btf.Spec {
	t.Helper()
	s, err := cache.Kernel()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, btf.ErrNotSupported) {
		t.Skip("this machine's kernel has no BTF")
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// arguments gives where a probe finds its arguments.
func (p probe) arguments(t testing.TB, s *btf.Spec) predicate.Arguments {
	t.Helper()
	args, err := predicate.TypedContext(), error(nil)
	if p.way == "kprobe" {
		args, err = predicate.RegistersContext(s, runtime.GOARCH)
	}
	if err == nil && p.syscall {
		args, err = predicate.SyscallContext(args, s, runtime.GOARCH)
	}
	if err != nil {
		t.Fatal(err)
	}
	return args
}

// program counts, in counts[i], the calls by this process for which predicate i is true.
func (p probe) program(t testing.TB, s *btf.Spec, texts []string, counts *ebpf.Map) (*ebpf.Program, error) {
	t.Helper()
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.JNE.Imm(asm.R0, int32(os.Getpid()), "end"),
	}
	args := p.arguments(t, s)
	for i, text := range texts {
		e, err := predicate.Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		prefix := fmt.Sprintf("p%d", i)
		code, err := predicate.Compile(e, predicate.Options{
			Spec: s, Function: p.function, Params: p.params, Arguments: args,
			Stack: predicate.StackSize - 512, // the bottom of the stack
			Fail:  prefix + "_no", Prefix: prefix,
		})
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		ins = append(ins, code...)
		ins = append(ins,
			asm.StoreImm(asm.RFP, -4, int64(i), asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, counts.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, prefix+"_no"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol(prefix+"_no"),
		)
	}
	ins = append(ins, asm.Mov.Imm(asm.R0, 0).WithSymbol("end"), asm.Return())
	ps := &ebpf.ProgramSpec{Type: ebpf.Kprobe, License: "GPL", Instructions: ins}
	switch p.way {
	case "fentry":
		ps.Type, ps.AttachType, ps.AttachTo = ebpf.Tracing, ebpf.AttachTraceFEntry, p.function
	case "lsm":
		ps.Type, ps.AttachType, ps.AttachTo = ebpf.LSM, ebpf.AttachLSMMac, strings.TrimPrefix(p.function, "bpf_lsm_")
	}
	c, err := ebpf.NewCollectionWithOptions(&ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{"p": ps}}, ebpf.CollectionOptions{Cache: cache})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.DetachProgram("p"), nil
}

// load loads a program with all predicates; when that fails, each one alone, to
// say which it was.
func (p probe) load(t testing.TB, s *btf.Spec, texts []string, counts *ebpf.Map) *ebpf.Program {
	t.Helper()
	prog, err := p.program(t, s, texts, counts)
	if err == nil {
		t.Cleanup(func() { closed(t, prog) })
		return prog
	}
	for _, text := range texts {
		one, err := p.program(t, s, []string{text}, counts)
		if err != nil {
			t.Errorf("%s on %s: %s: %+v", p.way, p.function, text, err)
			continue
		}
		closed(t, one)
	}
	t.Fatalf("%s on %s: %v", p.way, p.function, err)
	return nil
}

func (p probe) attach(t testing.TB, prog *ebpf.Program) {
	t.Helper()
	var l link.Link
	var err error
	switch p.way {
	case "kprobe":
		l, err = link.Kprobe(p.function, prog, nil)
	case "fentry":
		l, err = link.AttachTracing(link.TracingOptions{Program: prog})
	case "lsm":
		l, err = link.AttachLSM(link.LSMOptions{Program: prog})
	}
	if err != nil {
		t.Fatalf("%s on %s: %v", p.way, p.function, err)
	}
	t.Cleanup(func() { closed(t, l) })
}

// action is a call that the probe sees, with a letter.
type action struct {
	name string
	do   func() error
}

// observe attaches a program with all predicates, does the actions, and compares
// which of them matched: the letters of those actions.
func observe(t *testing.T, p probe, actions []action, cases map[string]string) {
	t.Helper()
	s := spec(t)
	if p.way == "lsm" && !lsmActive() {
		t.Skip("bpf is no active security module on this kernel")
	}
	texts := make([]string, 0, len(cases))
	for text := range cases {
		texts = append(texts, text)
	}
	slices.Sort(texts)
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: uint32(len(texts))})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, counts)
	p.attach(t, p.load(t, s, texts, counts))
	matched := make([]string, len(texts))
	before := make([]uint64, len(texts))
	for _, a := range actions {
		if err := a.do(); err != nil {
			t.Fatalf("%s: %v", a.name, err)
		}
		for i := range texts {
			var n uint64
			if err := counts.Lookup(uint32(i), &n); err != nil {
				t.Fatal(err)
			}
			if n > before[i] {
				matched[i] += a.name
			}
			before[i] = n
		}
	}
	for i, text := range texts {
		if matched[i] != cases[text] {
			t.Errorf("%s on %s: %s matched %q, want %q", p.way, p.function, text, matched[i], cases[text])
		}
	}
}

func lsmActive() bool {
	b, _ := os.ReadFile("/sys/kernel/security/lsm")
	return slices.Contains(strings.Split(strings.TrimSpace(string(b)), ","), "bpf")
}
