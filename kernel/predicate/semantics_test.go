package predicate_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"runtime"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/faultgraft/faultgraft/kernel/predicate"
)

// reference is a number as the documentation says it: its value, bits and sign.
type reference struct {
	v      *big.Int
	bits   uint
	signed bool
	fixed  bool // a constant
}

func (r reference) wrapped() reference {
	size := new(big.Int).Lsh(big.NewInt(1), r.bits)
	r.v = new(big.Int).Mod(r.v, size)
	if r.signed && r.v.Bit(int(r.bits)-1) == 1 {
		r.v.Sub(r.v, size)
	}
	return r
}

// fits tells whether v is among the numbers of a type.
func fits(v *big.Int, bits uint, signed bool) bool {
	return reference{v: v, bits: bits, signed: signed}.wrapped().v.Cmp(v) == 0
}

// beside gives a constant the type of its other operand.
func (r reference) beside(o reference) reference {
	switch {
	case !r.fixed:
	case fits(r.v, o.bits, o.signed):
		r.bits, r.signed = o.bits, o.signed
	case fits(r.v, o.bits, false):
		r.bits, r.signed = o.bits, false
	default:
		r.bits, r.signed = 64, r.v.Sign() < 0
	}
	return r
}

func number(v *big.Int) reference {
	return reference{v: v, bits: 64, signed: v.Sign() < 0, fixed: true}
}

// term is text with what it means for a memory and arguments.
type term struct {
	text string
	eval func(in *input) reference
}

type truth struct {
	text string
	eval func(in *input) bool
}

type input struct {
	args   [12]uint64
	memory []byte
}

// variables are the parameters and members that are numbers: bits from the
// beginning of the struct, or the number of the argument.
var variables = []struct {
	text   string
	arg    int
	at     uint
	bits   uint
	signed bool
}{
	{"ps8", 1, 0, 8, true}, {"pu8", 2, 0, 8, false}, {"ps16", 3, 0, 16, true}, {"pu16", 4, 0, 16, false},
	{"ps32", 5, 0, 32, true}, {"pu32", 6, 0, 32, false}, {"ps64", 7, 0, 64, true}, {"pu64", 8, 0, 64, false}, {"color", 10, 0, 32, true},
	{"r->c8", 0, 0, 8, true}, {"r->u8", 0, 8, 8, false}, {"r->s16", 0, 16, 16, true}, {"r->s32", 0, 32, 32, true}, {"r->s64", 0, 64, 64, true},
	{"r->u64", 0, 128, 64, false}, {"r.u32", 0, 192, 32, false}, {"r->u16", 0, 224, 16, false},
	{"r->b3", 0, 256, 3, false}, {"r->b5", 0, 259, 5, true}, {"r->b17", 0, 264, 17, false}, {"r->b35", 0, 320, 35, false}, {"r->b29", 0, 355, 29, true},
	{"r->anon", 0, 384, 32, false}, {"r->low", 0, 384, 16, false}, {"r->high", 0, 400, 16, false}, {"r->color", 0, 416, 32, true},
	{"r->name[3]", 0, 472, 8, true}, {"*r->name", 0, 448, 8, true}, {"r->leaves[2].a", 0, 640, 8, false}, {"r->leaves[3].b", 0, 688, 16, true}, {"r->more[1]", 0, 928, 32, true},
	{"r[1].s16", 0, 1040, 16, true},
}

func variable(i int) term {
	v := variables[i]
	return term{v.text, func(in *input) reference {
		n := new(big.Int).SetUint64(in.args[v.arg])
		if v.arg == 0 {
			n.SetUint64(0)
			for b := uint(0); b < v.bits; b++ {
				at := v.at + b
				n.SetBit(n, int(b), uint(in.memory[at/8]>>(at%8)&1))
			}
		}
		return reference{v: n, bits: v.bits, signed: v.signed}.wrapped()
	}}
}

func drawNumber(t *rapid.T) *big.Int {
	v := new(big.Int).SetUint64(rapid.SampledFrom([]uint64{0, 1, 2, 7, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff,
		0x100000000, 1<<63 - 1, 1 << 63, 1<<64 - 1, 5, 42}).Draw(t, "near"))
	v.Add(v, big.NewInt(int64(rapid.IntRange(-1, 1).Draw(t, "off"))))
	if v.BitLen() > 64 || v.Sign() < 0 {
		v.SetUint64(3)
	}
	return v
}

func drawTerm(t *rapid.T, depth int) term {
	pick := rapid.IntRange(0, 9).Draw(t, "term")
	if depth == 0 {
		pick %= 4
	}
	switch {
	case pick < 3:
		return variable(rapid.IntRange(0, len(variables)-1).Draw(t, "variable"))
	case pick == 3:
		v := drawNumber(t)
		text := fmt.Sprintf(rapid.SampledFrom([]string{"%d", "%#x", "0%o"}).Draw(t, "base"), v)
		return term{text, func(*input) reference { return number(v) }}
	case pick == 4:
		x := drawTerm(t, depth-1)
		op := rapid.SampledFrom([]string{"-", "~"}).Draw(t, "unary")
		return term{op + "(" + x.text + ")", func(in *input) reference {
			a := x.eval(in)
			r := reference{v: new(big.Int), bits: 64, signed: true, fixed: a.fixed}
			if op == "-" {
				r.v.Neg(a.v)
			} else {
				r.v.Not(a.v)
				r.bits, r.signed = a.bits, a.signed
			}
			if a.fixed {
				return number(r.v)
			}
			return r.wrapped()
		}}
	case pick == 5:
		x := drawTerm(t, depth-1)
		op := rapid.SampledFrom([]string{"<<", ">>"}).Draw(t, "shift")
		n := uint(rapid.IntRange(0, 63).Draw(t, "by"))
		return term{fmt.Sprintf("((%s) %s %d)", x.text, op, n), func(in *input) reference {
			a := x.eval(in)
			r := reference{v: new(big.Int).Rsh(a.v, n), bits: a.bits, signed: a.signed}
			if op == "<<" {
				r.v, r.bits = new(big.Int).Lsh(a.v, n), 64
			}
			if a.fixed {
				return number(r.v)
			}
			return r.wrapped()
		}}
	}
	x, y := drawTerm(t, depth-1), drawTerm(t, depth-1)
	op := rapid.SampledFrom([]string{"&", "|", "^", "+", "-"}).Draw(t, "binary")
	return term{"((" + x.text + ") " + op + " (" + y.text + "))", func(in *input) reference {
		a, b := x.eval(in), y.eval(in)
		r := reference{v: new(big.Int)}
		switch op {
		case "&":
			r.v.And(a.v, b.v)
		case "|":
			r.v.Or(a.v, b.v)
		case "^":
			r.v.Xor(a.v, b.v)
		case "+":
			r.v.Add(a.v, b.v)
		case "-":
			r.v.Sub(a.v, b.v)
		}
		if a.fixed && b.fixed {
			return number(r.v)
		}
		mask := op == "&" && (a.fixed && a.v.Sign() >= 0 || b.fixed && b.v.Sign() >= 0)
		a, b = a.beside(b), b.beside(a)
		switch {
		case mask: // by a constant that is not negative: neither is the result
			r.bits = min(a.bits, b.bits)
		case op == "+" || op == "-":
			r.bits, r.signed = 64, op == "-" || (a.signed || a.bits < 64) && (b.signed || b.bits < 64)
		case a.signed && b.signed:
			r.bits, r.signed = max(a.bits, b.bits), true
		case op == "&": // no bits above those that the unsigned one has
			r.bits = 64
			if !a.signed {
				r.bits = a.bits
			}
			if !b.signed {
				r.bits = min(r.bits, b.bits)
			}
		default:
			r.bits = max(a.bits, b.bits)
		}
		return r.wrapped()
	}}
}

func drawTruth(t *rapid.T, depth int) truth {
	pick := rapid.IntRange(0, 5).Draw(t, "truth")
	if depth > 0 && pick < 2 {
		x, y := drawTruth(t, depth-1), drawTruth(t, depth-1)
		if pick == 0 {
			return truth{"(" + x.text + " && " + y.text + ")", func(in *input) bool { return x.eval(in) && y.eval(in) }}
		}
		return truth{"(" + x.text + " || " + y.text + ")", func(in *input) bool { return x.eval(in) || y.eval(in) }}
	}
	if depth > 0 && pick == 2 {
		x := drawTruth(t, depth-1)
		return truth{"!(" + x.text + ")", func(in *input) bool { return !x.eval(in) }}
	}
	x := drawTerm(t, 2)
	if pick == 3 {
		return truth{"(" + x.text + ")", func(in *input) bool { return x.eval(in).v.Sign() != 0 }}
	}
	y := drawTerm(t, 2)
	op := rapid.SampledFrom([]string{"==", "!=", "<", "<=", ">", ">="}).Draw(t, "compare")
	return truth{"(" + x.text + ") " + op + " (" + y.text + ")", func(in *input) bool {
		order := x.eval(in).v.Cmp(y.eval(in).v)
		return map[string]bool{"==": order == 0, "!=": order != 0, "<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[op]
	}}
}

// TestArithmetic compiles random predicates, runs them in the kernel on random
// parameters and memory, and compares with arithmetic of unlimited size.
func TestArithmetic(t *testing.T) {
	s := smallSpec(t)
	ran, refused := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		x := drawTruth(rt, 2)
		e, err := predicate.Parse(x.text)
		if err != nil {
			rt.Fatalf("%s: %v", x.text, err)
		}
		code, err := predicate.Compile(e, predicate.Options{Spec: s, Function: "probe", Arguments: predicate.TypedContext(), Fail: "no", Prefix: "p"})
		var wrong *predicate.Error
		if errors.As(err, &wrong) { // always or never true, or too large: the table of errors has those
			refused++
			return
		}
		if err != nil {
			rt.Fatalf("%s: %v", x.text, err)
		}
		ran++
		r := newRunner(t, code, "no")
		defer closed(t, r.prog)
		in := &input{memory: make([]byte, 256)}
		var pin runtime.Pinner
		pin.Pin(&in.memory[0])
		defer pin.Unpin()
		for range 8 {
			for i := 0; i < len(in.memory); i += 8 {
				binary.LittleEndian.PutUint64(in.memory[i:], drawNumber(rt).Uint64())
			}
			for i := range in.args {
				in.args[i] = drawNumber(rt).Uint64() // also above the bits that count
			}
			in.args[0] = uint64(uintptr(unsafe.Pointer(&in.memory[0])))
			if got, want := r.run(t, in.args), x.eval(in); got != want {
				rt.Fatalf("%s is %t, should be %t\narguments %x\nmemory %x\n%v", x.text, got, want, in.args, in.memory, code)
			}
		}
	})
	t.Logf("%d predicates ran, %d were refused", ran, refused)
	if !t.Skipped() && ran == 0 {
		t.Error("none ran")
	}
}

// TestSigns compares signed with unsigned numbers of 64 bits, which C converts to unsigned.
func TestSigns(t *testing.T) {
	s := smallSpec(t)
	for _, op := range []string{"==", "!=", "<", "<=", ">", ">="} {
		for _, swap := range []bool{false, true} {
			text := "pu64 " + op + " ps64"
			if swap {
				text = "ps64 " + op + " pu64"
			}
			for _, text := range []string{text, "!(" + text + ")"} {
				e, err := predicate.Parse(text)
				if err != nil {
					t.Fatal(err)
				}
				code, err := predicate.Compile(e, predicate.Options{Spec: s, Function: "probe", Arguments: predicate.TypedContext(), Fail: "no", Prefix: "p"})
				if err != nil {
					t.Fatal(err)
				}
				r := newRunner(t, code, "no")
				for _, unsigned := range []uint64{0, 1, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
					for _, signed := range []int64{0, 1, -1, -1 << 63, 1<<63 - 1} {
						x, y := new(big.Int).SetUint64(unsigned), big.NewInt(signed)
						if swap {
							x, y = y, x
						}
						order := x.Cmp(y)
						want := map[string]bool{"==": order == 0, "!=": order != 0, "<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[op]
						if text[0] == '!' {
							want = !want
						}
						if got := r.run(t, [12]uint64{7: uint64(signed), 8: unsigned}); got != want {
							t.Errorf("%s with %d and %d: %t", text, unsigned, signed, got)
						}
					}
				}
			}
		}
	}
}
