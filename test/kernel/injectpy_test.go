package kernel

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// injectPy attaches by hand what bcc's tools/inject.py makes of
//
//	inject.py kmalloc 'FUNCTION()'
//
// (bcc 0.3x): a hash map by thread with the state of the call chain, which the
// entry of FUNCTION makes and its return deletes; the probe at should_failslab
// looks the thread up. Nothing scopes it: each allocation of the machine runs it.
// With fail it overrides, else it does all but that.
func injectPy(b *testing.B, function string, fail bool) {
	b.Helper()
	const (
		currCall = 0
		condsMet = 8
		stack    = 16
		size     = 32 // two frames: FUNCTION and should_failslab
	)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "m", Type: ebpf.Hash, KeySize: 4, ValueSize: size, MaxEntries: 10240})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = m.Close() })
	count, err := ebpf.NewMap(&ebpf.MapSpec{Name: "count", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = count.Close() })
	lookup := func(m *ebpf.Map, key int16) asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, int32(key)),
			asm.FnMapLookupElem.Call(),
		}
	}
	join := func(parts ...asm.Instructions) (all asm.Instructions) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	pid := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word),
	}
	none := asm.Instructions{
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R7, asm.R0),
	}
	out := asm.Instructions{asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return()}

	entry := join(pid, asm.Instructions{
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, -40, asm.R1, asm.DWord), asm.StoreMem(asm.RFP, -32, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, -24, asm.R1, asm.DWord), asm.StoreMem(asm.RFP, -16, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -40),
		asm.Mov.Imm(asm.R4, 1), // BPF_NOEXIST, as bcc's insert
		asm.FnMapUpdateElem.Call(),
	}, lookup(m, -4), none, asm.Instructions{
		asm.LoadMem(asm.R1, asm.R7, condsMet, asm.DWord),
		asm.JGE.Imm(asm.R1, 2, "out"),
		asm.LoadMem(asm.R2, asm.R7, currCall, asm.DWord),
		asm.JNE.Imm(asm.R1, 0, "count"),
		asm.StoreMem(asm.R7, stack, asm.R2, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R7, condsMet, asm.R1, asm.DWord),
		asm.Add.Imm(asm.R2, 1).WithSymbol("count"),
		asm.StoreMem(asm.R7, currCall, asm.R2, asm.DWord),
	}, out)
	exit := join(pid, lookup(m, -4), none, asm.Instructions{
		asm.LoadMem(asm.R2, asm.R7, currCall, asm.DWord),
		asm.Sub.Imm(asm.R2, 1),
		asm.StoreMem(asm.R7, currCall, asm.R2, asm.DWord),
		asm.LoadMem(asm.R1, asm.R7, condsMet, asm.DWord),
		asm.JLT.Imm(asm.R1, 1, "out"),
		asm.JGE.Imm(asm.R1, 3, "out"),
		asm.LoadMem(asm.R3, asm.R7, stack, asm.DWord),
		asm.JNE.Reg(asm.R3, asm.R2, "delete"),
		asm.Sub.Imm(asm.R1, 1),
		asm.StoreMem(asm.R7, condsMet, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, m.FD()).WithSymbol("delete"),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapDeleteElem.Call(),
	}, out)
	act := asm.Instructions{asm.Mov.Imm(asm.R0, 0)}
	if fail {
		act = asm.Instructions{asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, -12), asm.FnOverrideReturn.Call()}
	}
	bottom := join(asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, -8, asm.R1, asm.Word),
	}, lookup(count, -8), asm.Instructions{
		asm.Mov.Imm(asm.R8, 0),
		asm.JEq.Imm(asm.R0, 0, "pid"),
		asm.LoadMem(asm.R8, asm.R0, 0, asm.Word),
		asm.FnGetCurrentPidTgid.Call().WithSymbol("pid"),
		asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word),
	}, lookup(m, -4), none, asm.Instructions{
		asm.LoadMem(asm.R1, asm.R7, condsMet, asm.DWord),
		asm.JNE.Imm(asm.R1, 1, "out"),
	}, lookup(count, -8), asm.Instructions{
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.Word),
	}, act, out)
	peerProgram(b, "exit", function, true, exit)
	peerProgram(b, "entry", function, false, entry)
	peerProgram(b, "peer", "should_failslab", false, bottom)
}
