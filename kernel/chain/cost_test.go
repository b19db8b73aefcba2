package chain

import (
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/test/vm"
)

// empty removes all states.
func empty(b *testing.B, state *ebpf.Map) {
	b.Helper()
	var key uint64
	for state.NextKey(nil, &key) == nil {
		if err := state.Delete(key); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParts measures the parts of a chain with the kernel's own statistics
// (BPF_ENABLE_STATS, which adds some 60 ns to each run). They run at raw
// tracepoints, which any kernel with eBPF has: entries at sys_enter and returns
// at sys_exit of getpid, checks at sys_exit. Run as root:
//
//	go test -run - -bench Parts ./kernel/chain
func BenchmarkParts(b *testing.B) {
	statistics, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Skipf("no statistics of programs: %v", err)
	}
	defer func() { _ = statistics.Close() }()
	c, err := Compile(Options{Cache: cache, Frames: named("__x64_sys_mkdirat", "vfs_mkdir", "d_alloc_parallel"), Method: State})
	if err != nil {
		b.Skip(err)
	}
	defer func() { _ = c.Close() }()
	if c.buffer, err = ebpf.NewMap(bufferSpec()); err != nil {
		b.Fatal(err)
	}
	if c.state, err = ebpf.NewMap(stateSpec()); err != nil {
		b.Fatal(err)
	}
	a := c.assembler()
	nothing := asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}
	check := func() asm.Instructions {
		ins, err := c.Check(out, "chain", 0)
		if err != nil {
			b.Fatal(err)
		}
		return append(append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, ins...), leave()...)
	}
	stack := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	var functions []function
	for _, f := range c.frames {
		functions = append(functions, f.function)
	}
	stack = append(append(stack, walk(functions, c.buffer, maxChecks-1, out, out, "walk", 0)...), leave()...)
	for _, part := range []struct {
		name, tracepoint string
		ins              asm.Instructions
	}{
		{"nothing", "sys_exit", nothing},
		{"entry of the first frame", "sys_enter", a.entry(0, trampoline, nil, nil)},
		{"entry of the second frame, outside the first", "sys_enter", a.entry(1, trampoline, nil, nil)},
		{"return without a state", "sys_exit", a.exit(trampoline)},
		{"check without a state", "sys_exit", check()},
		{"walk of the stack", "sys_exit", stack},
	} {
		b.Run(part.name, func(b *testing.B) {
			empty(b, c.state)
			p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, License: license, Instructions: part.ins})
			if err != nil {
				b.Fatalf("%+v", err)
			}
			defer func() { _ = p.Close() }()
			l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: part.tracepoint, Program: p})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for b.Loop() {
				unix.Getpid()
			}
			s, err := p.Stats()
			if err != nil {
				b.Fatal(err)
			}
			if s.RunCount > 0 {
				b.ReportMetric(float64(s.Runtime.Nanoseconds())/float64(s.RunCount), "ns/run")
			}
		})
	}
}

// BenchmarkChain measures a system call that runs through two frames and then
// hits the hook, in the emulated machine: compare the lines with each other only.
func BenchmarkChain(b *testing.B) {
	vm.Need(b)
	statistics, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = statistics.Close() }()
	inside, outside := named("filename_lookup", "path_lookupat"), named("vfs_mkdir", "vfs_unlink")
	for _, c := range []struct {
		name string
		way  way
		on   []Frame // nil: no chain and no hook
	}{
		{name: "nothing"},
		{"stack, holds", way{method: Stack}, inside},
		{"stack, does not hold", way{method: Stack}, outside},
		{"trampolines, hold", way{method: State}, inside},
		{"trampolines, do not hold", way{method: State}, outside},
		{"kprobes, hold", way{State, true}, inside},
		{"kprobes, do not hold", way{State, true}, outside},
	} {
		b.Run(c.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var h *hook
			var chain *Chain
			if c.on != nil {
				chain = attached(b, c.way, c.on...)
				h = attachHook(b, chain, "fmod_ret", "security_inode_permission")
			}
			for b.Loop() {
				_ = unix.Access("/tmp/nothing", unix.F_OK)
			}
			if h == nil {
				return
			}
			report := func(name string, p *ebpf.Program) {
				if s, err := p.Stats(); err == nil && s.RunCount > 0 {
					b.ReportMetric(float64(s.Runtime.Nanoseconds())/float64(s.RunCount), name)
				}
			}
			report("ns/hook", h.program)
			if c.way.method == State {
				report("ns/entry", chain.frames[1].enter)
				report("ns/return", chain.frames[1].left)
			}
		})
	}
}
