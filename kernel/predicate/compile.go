package predicate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/big"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// The stack below Options.Stack: one word for what is read, a few for numbers that
// wait for their other operand, and the string buffer.
const (
	maxWaiting   = 4
	stringBuffer = 64
	// StackSize is how many bytes of the stack the instructions use.
	StackSize = 8 + 8*maxWaiting + stringBuffer
)

// Options say for what a predicate is compiled.
type Options struct {
	// Spec is the BTF of the kernel, or of the module that has Function.
	Spec *btf.Spec
	// Function is the kernel function whose parameters the predicate is about.
	Function string
	// Params are its parameters, where they are not those that BTF has: of a system
	// call see [SyscallParams], of a list in C see [ParseParams].
	Params []btf.FuncParam
	// Arguments says where the program finds them.
	Arguments Arguments
	// Stack is where the stack that may be used begins: fp[Stack-StackSize, Stack).
	// It is 0 or below, a multiple of 8.
	Stack int16
	// Fail is the label to go to when the predicate is false, or a read fails.
	Fail string
	// Prefix begins the labels that the instructions define.
	Prefix string
}

// Compile gives instructions that fall through when the predicate is true and go
// to Options.Fail when it is false or something it needs cannot be read.
//
// R6 holds the program's context and is kept, as is R9. The other registers but
// R10 are lost. The error is an *[Error] when the predicate is wrong.
func Compile(e *Expr, o Options) (asm.Instructions, error) {
	switch {
	case o.Arguments == nil:
		return nil, errors.New("predicate: no Arguments to compile for")
	case o.Fail == "":
		return nil, errors.New("predicate: no Fail label")
	case o.Stack > 0 || o.Stack%8 != 0 || int(o.Stack)-StackSize < -512:
		return nil, fmt.Errorf("predicate: %d bytes do not fit on the stack at %d", StackSize, o.Stack)
	}
	c, err := newChecker(o)
	if err != nil {
		return nil, err
	}
	root, wrong := c.predicate(e)
	if wrong != nil {
		return nil, wrong
	}
	g := &generator{o: o}
	end := g.label()
	g.branch(root, end, o.Fail, end)
	g.place(end)
	g.finish()
	switch {
	case g.err != nil:
		return nil, g.err
	case g.tooDeep:
		return nil, e.root.pos().errorf("more than %d numbers wait for the result of parentheses", maxWaiting).fix("use fewer parentheses")
	case len(g.ins) > MaxInstructions:
		return nil, e.root.pos().errorf("the predicate takes %d eBPF instructions; %d are allowed", len(g.ins), MaxInstructions)
	}
	return g.ins, nil
}

// generator emits instructions. Values are computed in R7; R8 holds the left
// operand of an operator meanwhile.
type generator struct {
	o       Options
	ins     asm.Instructions
	labels  int
	used    map[string]bool
	pending []string // labels of the next instruction
	waiting int      // words of the stack in use
	tooDeep bool
	err     error
}

// The parts of the stack.
func (g *generator) readAt() int16   { return g.o.Stack - 8 }
func (g *generator) stringAt() int16 { return g.o.Stack - StackSize }
func (g *generator) waitAt(i int) int16 {
	return g.o.Stack - 16 - 8*int16(i)
}

func (g *generator) label() string {
	g.labels++
	return fmt.Sprintf("%s_%d", g.o.Prefix, g.labels)
}

// place puts a label before the next instruction. One that nothing goes to is left out.
func (g *generator) place(label string) {
	if g.used[label] {
		g.pending = append(g.pending, label)
	}
}

func (g *generator) emit(ins ...asm.Instruction) {
	for _, in := range ins {
		if len(g.pending) > 0 && in.Symbol() == "" {
			last := len(g.pending) - 1
			for _, l := range g.pending[:last] { // an instruction has one label
				g.ins = append(g.ins, asm.Mov.Imm(asm.R0, 0).WithSymbol(l))
			}
			in = in.WithSymbol(g.pending[last])
			g.pending = nil
		}
		g.ins = append(g.ins, in)
	}
}

// finish gives the labels at the end an instruction to stand at.
func (g *generator) finish() {
	if len(g.pending) > 0 {
		g.emit(asm.Mov.Imm(asm.R0, 0))
	}
}

// to notes that a label is used, and returns it.
func (g *generator) to(label string) string {
	if g.used == nil {
		g.used = map[string]bool{}
	}
	g.used[label] = true
	return label
}

// branch goes to yes or no; the one of them that is next comes right after.
func (g *generator) branch(x cond, yes, no, next string) {
	switch x := x.(type) {
	case *truth: // only the whole predicate can be one, and true
		if yes != next {
			g.emit(asm.Ja.Label(g.to(yes)))
		}
	case *not:
		g.branch(x.x, no, yes, next)
	case *and:
		second := g.label()
		g.branch(x.x, second, no, second)
		g.place(second)
		g.branch(x.y, yes, no, next)
	case *or:
		second := g.label()
		g.branch(x.x, yes, second, second)
		g.place(second)
		g.branch(x.y, yes, no, next)
	case *compare:
		g.compare(x, yes, no, next)
	case *match:
		g.match(x, yes, no, next)
	}
}

// fails ends a chain of checks that have all been passed by falling through.
func (g *generator) reach(label, next string) {
	if label != next {
		g.emit(asm.Ja.Label(g.to(label)))
	}
}

var opposite = map[string]string{"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}

// jumps has the operators for unsigned and for signed numbers.
var jumps = map[string][2]asm.JumpOp{
	"==": {asm.JEq, asm.JEq}, "!=": {asm.JNE, asm.JNE},
	"<": {asm.JLT, asm.JSLT}, "<=": {asm.JLE, asm.JSLE},
	">": {asm.JGT, asm.JSGT}, ">=": {asm.JGE, asm.JSGE},
}

func (g *generator) compare(x *compare, yes, no, next string) {
	op, a, b, an, bn := x.op, x.x, x.y, x.xnum, x.ynum
	if _, ok := a.(*constant); ok { // the constant on the right
		op, a, b, an, bn = mirrored[op], b, a, bn, an
	}
	if k, ok := b.(*constant); ok {
		g.eval(a)
		v := k.v
		switch {
		case an == word && v.Sign() < 0:
			// never equal, always greater; the checker refuses it for members, not for what is computed
			g.decided(op != "==" && op != "<" && op != "<=", yes, no, next)
			return
		case an != word && !v.IsInt64(): // above all that a has
			g.decided(op == "!=" || op == "<" || op == "<=", yes, no, next)
			return
		}
		signed := 1
		if an == word {
			signed = 0
		}
		bits := low(v)
		jump := func(op, label string) {
			if bits >= 0 && bits <= math.MaxInt32 || signed == 1 && bits < 0 && bits >= math.MinInt32 {
				g.emit(jumps[op][signed].Imm(asm.R7, int32(bits), g.to(label)))
				return
			}
			g.emit(asm.LoadImm(asm.R1, bits, asm.DWord), jumps[op][signed].Reg(asm.R7, asm.R1, g.to(label)))
		}
		if yes == next {
			jump(opposite[op], no)
			return
		}
		jump(op, yes)
		g.reach(no, next)
		return
	}
	g.both(a, b) // R8 op R7
	signed := 1
	switch {
	case an == word && bn == word:
		signed = 0
	case an == word && bn.signed: // a negative b is below each a
		g.emit(asm.JSLT.Imm(asm.R7, 0, g.to(pick(op == "!=" || op == ">" || op == ">=", yes, no))))
		signed = 0
	case bn == word && an.signed:
		g.emit(asm.JSLT.Imm(asm.R8, 0, g.to(pick(op == "!=" || op == "<" || op == "<=", yes, no))))
		signed = 0
	case an == word || bn == word:
		signed = 0
	}
	if yes == next {
		g.emit(jumps[opposite[op]][signed].Reg(asm.R8, asm.R7, g.to(no)))
		return
	}
	g.emit(jumps[op][signed].Reg(asm.R8, asm.R7, g.to(yes)))
	g.reach(no, next)
}

func pick(v bool, yes, no string) string {
	if v {
		return yes
	}
	return no
}

// decided goes to yes or no, whatever R7 is. A jump that depends on R7 stands for
// it, because the verifier refuses instructions that nothing leads to.
func (g *generator) decided(v bool, yes, no, next string) {
	to, other := yes, no
	if !v {
		to, other = no, yes
	}
	g.emit(asm.Mov.Imm(asm.R0, 0))
	if to == next {
		g.emit(asm.JNE.Imm(asm.R0, 0, g.to(other)))
		return
	}
	g.emit(asm.JEq.Imm(asm.R0, 0, g.to(to)))
	g.reach(other, next)
}

// low gives the 64 bits of a constant.
func low(v *big.Int) int64 {
	if v.IsInt64() {
		return v.Int64()
	}
	return int64(v.Uint64())
}

// both computes a in R8 and b in R7.
func (g *generator) both(a, b expr) {
	g.eval(a)
	if _, ok := b.(*arithmetic); !ok { // a load leaves R8 alone
		g.emit(asm.Mov.Reg(asm.R8, asm.R7))
		g.eval(b)
		return
	}
	slot := g.waiting
	if slot >= maxWaiting {
		g.tooDeep = true
		return
	}
	g.emit(asm.StoreMem(asm.RFP, g.waitAt(slot), asm.R7, asm.DWord))
	g.waiting++
	g.eval(b)
	g.waiting--
	g.emit(asm.LoadMem(asm.R8, asm.RFP, g.waitAt(slot), asm.DWord))
}

var operations = map[string]asm.ALUOp{
	"&": asm.And, "|": asm.Or, "^": asm.Xor, "+": asm.Add, "-": asm.Sub, "<<": asm.LSh, ">>": asm.RSh,
}

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
