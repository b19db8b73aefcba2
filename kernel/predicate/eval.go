package predicate

import (
	"encoding/binary"
	"math"

	"github.com/cilium/ebpf/asm"
)

// eval computes an expression in R7.
func (g *generator) eval(x expr) {
	switch x := x.(type) {
	case *constant:
		g.emit(asm.LoadImm(asm.R7, low(x.v), asm.DWord))
	case *load:
		g.load(x)
	case *arithmetic:
		op := operations[x.op]
		if x.op == ">>" && x.num.signed {
			op = asm.ArSh
		}
		if k, ok := x.y.(*constant); ok {
			g.eval(x.x)
			if v := low(k.v); v >= math.MinInt32 && v <= math.MaxInt32 && k.v.IsInt64() {
				g.emit(op.Imm(asm.R7, int32(v)))
			} else {
				g.emit(asm.LoadImm(asm.R1, v, asm.DWord), op.Reg(asm.R7, asm.R1))
			}
		} else {
			g.both(x.x, x.y)
			g.emit(op.Reg(asm.R8, asm.R7), asm.Mov.Reg(asm.R7, asm.R8))
		}
		if x.trunc {
			g.extend(x.num)
		}
	}
}

// extend makes R7 a number of 64 bits out of one with fewer.
func (g *generator) extend(n number) {
	if n.bits >= 64 {
		return
	}
	shift := int32(64 - n.bits)
	g.emit(asm.LSh.Imm(asm.R7, shift))
	if n.signed {
		g.emit(asm.ArSh.Imm(asm.R7, shift))
	} else {
		g.emit(asm.RSh.Imm(asm.R7, shift))
	}
}

// address computes in R7 the last pointer of a load, to which its offset is to be added.
func (g *generator) address(l *load) {
	ins, err := g.o.Arguments.Load(asm.R7, l.param, g.o.Stack, g.to(g.o.Fail))
	if err != nil && g.err == nil {
		g.err = err
	}
	g.emit(ins...)
	for _, h := range l.hops {
		g.read(h.offset, 8, h.space)
		g.emit(asm.LoadMem(asm.R7, asm.RFP, g.readAt(), asm.DWord))
	}
}

// read copies bytes from R7 plus the offset to the stack.
func (g *generator) read(offset, size uint32, from space) {
	g.emit(asm.Mov.Reg(asm.R3, asm.R7))
	if offset != 0 {
		g.emit(asm.Add.Imm(asm.R3, int32(offset)))
	}
	g.emit(
		asm.Mov.Imm(asm.R2, int32(size)),
		asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, int32(g.readAt())),
		reader[from].Call(),
		asm.JNE.Imm(asm.R0, 0, g.to(g.o.Fail)),
	)
}

// reader and stringReader are helpers by the memory they read, see bpf-helpers(7).
// bpf_probe_read and bpf_probe_read_str tell user space by the address, on
// machines where the two do not overlap (bpf_probe_read_compat in
// kernel/trace/bpf_trace.c): amd64 and arm64 are such.
var (
	reader = map[space]asm.BuiltinFunc{
		spaceKernel: asm.FnProbeReadKernel, spaceUser: asm.FnProbeReadUser, spaceEither: asm.FnProbeRead,
	}
	stringReader = map[space]asm.BuiltinFunc{
		spaceKernel: asm.FnProbeReadKernelStr, spaceUser: asm.FnProbeReadUserStr, spaceEither: asm.FnProbeReadStr,
	}
)

func (g *generator) load(l *load) {
	g.address(l)
	if !l.memory {
		g.extend(l.num)
		return
	}
	exact := map[uint32]asm.Size{1: asm.Byte, 2: asm.Half, 4: asm.Word, 8: asm.DWord}
	size, ok := exact[l.size]
	if !ok { // a bit field over 3, 5, 6 or 7 bytes
		size = asm.DWord
		g.emit(asm.Mov.Imm(asm.R0, 0), asm.StoreMem(asm.RFP, g.readAt(), asm.R0, asm.DWord))
	}
	g.read(l.offset, l.size, l.space)
	g.emit(asm.LoadMem(asm.R7, asm.RFP, g.readAt(), size))
	switch {
	case l.shift > 0 || l.num.bits%8 != 0: // amd64 and arm64 are little-endian: the first bit is the lowest
		g.emit(asm.LSh.Imm(asm.R7, int32(64-uint(l.shift)-l.num.bits)))
		right := asm.RSh
		if l.num.signed {
			right = asm.ArSh
		}
		g.emit(right.Imm(asm.R7, int32(64-l.num.bits)))
	case l.num.signed || uint(size.Sizeof())*8 != l.num.bits: // a load from the stack fills with zeros
		g.extend(l.num)
	}
}

// match compares memory with bytes, in pieces as large as the buffer. The helper
// for strings ends what it copies with a 0, which therefore is read one byte
// further than is compared: else "bananas" would equal the beginning of "bananasplit".
func (g *generator) match(m *match, yes, no, next string) {
	g.address(m.x)
	if m.x.offset != 0 {
		g.emit(asm.Add.Imm(asm.R7, int32(m.x.offset)))
	}
	rest := m.bytes
	for done := 0; len(rest) > 0; {
		piece := rest[:min(len(rest), stringBuffer-1)]
		size, helper, fault := len(piece)+1, stringReader[m.x.space], asm.JSLT
		if m.raw {
			size, helper, fault = len(piece), reader[m.x.space], asm.JNE
		}
		g.emit(asm.Mov.Reg(asm.R3, asm.R7))
		if done > 0 {
			g.emit(asm.Add.Imm(asm.R3, int32(done)))
		}
		g.emit(
			asm.Mov.Imm(asm.R2, int32(size)),
			asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, int32(g.stringAt())),
			helper.Call(),
			fault.Imm(asm.R0, 0, g.to(g.o.Fail)),
		)
		for at := 0; at < len(piece); {
			at += g.unequal(piece[at:], g.stringAt()+int16(at), no)
		}
		done += len(piece)
		rest = rest[len(piece):]
	}
	g.reach(yes, next)
}

// unequal goes to a label unless the stack at an offset has the first 8, 4, 2 or 1
// of the bytes, and returns how many it compared.
func (g *generator) unequal(want []byte, at int16, label string) int {
	var size asm.Size
	var v uint64
	switch {
	case len(want) >= 8:
		size, v = asm.DWord, binary.LittleEndian.Uint64(want)
	case len(want) >= 4:
		size, v = asm.Word, uint64(binary.LittleEndian.Uint32(want))
	case len(want) >= 2:
		size, v = asm.Half, uint64(binary.LittleEndian.Uint16(want))
	default:
		size, v = asm.Byte, uint64(want[0])
	}
	g.emit(asm.LoadMem(asm.R1, asm.RFP, at, size))
	if v <= math.MaxInt32 {
		g.emit(asm.JNE.Imm(asm.R1, int32(v), g.to(label)))
	} else {
		g.emit(asm.LoadImm(asm.R2, int64(v), asm.DWord), asm.JNE.Reg(asm.R1, asm.R2, g.to(label)))
	}
	return size.Sizeof()
}
