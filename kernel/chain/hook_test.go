package chain

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hook is a program that asks a chain, as an injecting one does, and counts by
// thread how often it was asked and how often the chain held.
type hook struct {
	counts  *ebpf.Map
	program *ebpf.Program
	link    link.Link
}

type seen struct{ Asked, Held uint64 }

// ours falls through for threads of this process.
func ours(fail, _ string, _ int16) (asm.Instructions, error) {
	return asm.Instructions{
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.JNE.Imm(asm.R0, int32(os.Getpid()), fail),
	}, nil
}

// backends are the kinds of programs that hooks are.
var backends = map[string]*ebpf.ProgramSpec{
	"fentry":   {Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry},
	"fmod_ret": {Type: ebpf.Tracing, AttachType: ebpf.AttachModifyReturn},
	"lsm":      {Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac},
	"kprobe":   {Type: ebpf.Kprobe},
}

func attachHook(t testing.TB, c *Chain, backend, function string) *hook {
	t.Helper()
	h := &hook{}
	var err error
	h.counts, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 16, MaxEntries: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.counts.Close() })
	check, err := c.Check("asked", "chain", -32)
	if err != nil {
		t.Fatal(err)
	}
	scope, _ := ours("out", "", 0)
	ins := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	ins = append(ins, scope...)
	ins = append(ins, asm.Mov.Imm(asm.R9, 77))
	ins = append(ins, check...)
	ins = append(ins, asm.JEq.Imm(asm.R9, 77, "kept"), asm.Mov.Imm(asm.R9, 1000), asm.Ja.Label("count"))
	ins = append(ins, asm.Mov.Imm(asm.R9, 1).WithSymbol("kept"), asm.Ja.Label("count"), asm.Mov.Imm(asm.R9, 0).WithSymbol("asked"))
	ins = append(ins,
		asm.FnGetCurrentPidTgid.Call().WithSymbol("count"),
		asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word),
		asm.LoadMapPtr(asm.R1, h.counts.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4), asm.FnMapLookupElem.Call(),
		asm.JNE.Imm(asm.R0, 0, "known"),
		asm.StoreMem(asm.RFP, -16, asm.R9, asm.DWord), asm.Mov.Imm(asm.R1, 1), asm.StoreMem(asm.RFP, -24, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, h.counts.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -24), asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call(),
		asm.Ja.Label("out"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord).WithSymbol("known"), asm.Add.Imm(asm.R1, 1), asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R0, 8, asm.DWord), asm.Add.Reg(asm.R1, asm.R9), asm.StoreMem(asm.R0, 8, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return())
	spec := backends[backend].Copy()
	spec.License, spec.Instructions = license, ins
	if spec.Type != ebpf.Kprobe {
		spec.AttachTo = function
	}
	h.program = load(t, spec)
	switch backend {
	case "kprobe":
		h.link, err = link.Kprobe(function, h.program, nil)
	case "lsm":
		h.link, err = link.AttachLSM(link.LSMOptions{Program: h.program})
	default:
		h.link, err = link.AttachTracing(link.TracingOptions{Program: h.program})
	}
	if err != nil {
		t.Fatalf("%s %s: %v", backend, function, err)
	}
	t.Cleanup(func() { _ = h.link.Close() })
	return h
}

func load(t testing.TB, spec *ebpf.ProgramSpec) *ebpf.Program {
	t.Helper()
	loaded, err := ebpf.NewCollectionWithOptions(&ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{"hook": spec}}, ebpf.CollectionOptions{Cache: cache})
	if err != nil {
		var refused *ebpf.VerifierError
		if errors.As(err, &refused) {
			t.Fatalf("%+v", refused)
		}
		t.Fatal(err)
	}
	t.Cleanup(loaded.Close)
	return loaded.Programs["hook"]
}

// of gives what was counted for the calling thread since the last call.
func (h *hook) of(t *testing.T, tid int) seen {
	t.Helper()
	var s seen
	key := uint32(tid)
	if err := h.counts.Lookup(key, &s); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	if err := h.counts.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	return s
}

// during runs f in a thread of its own and says what the hook counted there.
func (h *hook) during(t *testing.T, f func() error) seen {
	t.Helper()
	type result struct {
		tid int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		h.of(t, unix.Gettid())
		done <- result{unix.Gettid(), f()}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return h.of(t, r.tid)
}

// attached makes, loads and attaches a chain of this process.
func attached(t testing.TB, w way, frames ...Frame) *Chain {
	t.Helper()
	c, err := Compile(Options{Cache: cache, Frames: frames, Method: w.method, Name: "test", InScope: ours})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if w.probes {
		for _, f := range c.frames {
			f.tracer = kprobe
		}
	}
	if err := c.Load(); err != nil {
		var refused *ebpf.VerifierError
		if errors.As(err, &refused) {
			t.Fatalf("%+v", refused)
		}
		t.Fatal(err)
	}
	if err := c.Attach(); err != nil {
		t.Fatal(err)
	}
	return c
}

func named(functions ...string) []Frame {
	var frames []Frame
	for _, f := range functions {
		frames = append(frames, Frame{Function: f})
	}
	return frames
}

// cache is shared by all tests: decoding the kernel's types takes a second in
// an emulated machine.
var cache = btf.NewCache()

// states is how many threads have a state.
func states(t *testing.T, c *Chain) int {
	t.Helper()
	n := 0
	var key uint64
	var value [MaxFrames]uint32
	entries := c.state.Iterate()
	for entries.Next(&key, &value) {
		n++
	}
	if err := entries.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}
