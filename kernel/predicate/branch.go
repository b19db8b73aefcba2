package predicate

import (
	"fmt"
	"math"
	"math/big"

	"github.com/cilium/ebpf/asm"
)

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

// reach goes on to a label, by falling through when it is next.
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
