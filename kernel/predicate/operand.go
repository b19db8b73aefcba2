package predicate

import (
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// maxIndex is the highest index of what has no known number of elements.
const maxIndex = 4095

// operand checks what is compared or computed with. enum is that of the other
// side of the comparison.
func (c *checker) operand(n node, enum *btf.Enum) (value, *Error) {
	switch n := n.(type) {
	case *groupNode:
		v, err := c.operand(n.x, enum)
		return v, err
	case *numberNode:
		return number64(n, new(big.Int).SetUint64(n.value)), nil
	case *stringNode:
		return value{node: n, text: n.value, literal: true}, nil
	case *nameNode:
		if i := c.param(n.name); i >= 0 {
			return c.parameter(n, i)
		}
		v, err := c.constant(n, enum)
		if err != nil {
			return value{}, err
		}
		return number64(n, v), nil
	case *memberNode:
		return c.member(n)
	case *indexNode:
		return c.element(n, n.x, n.index, n.at)
	case *unaryNode:
		return c.unary(n, enum)
	case *callNode:
		return value{}, n.at.errorf("%s is true or false and cannot be compared or computed with", source(n)).
			fix("use it alone or with ! && ||")
	case *binaryNode:
		if n.op == "&&" || n.op == "||" || slices.Contains(comparisons, n.op) {
			return value{}, n.at.errorf("%s is true or false and cannot be compared or computed with", source(n)).
				fix("join conditions with && and ||")
		}
		return c.arithmetic(n, enum)
	}
	panic("predicate: unknown node")
}

func number64(n node, v *big.Int) value {
	return value{node: n, kind: kindNumber, num: number{bits: 64, signed: v.Sign() < 0}, expr: &constant{v}}
}

// param gives the index of a parameter by its name, or by arg0, arg1 …; -1 when
// there is none.
func (c *checker) param(name string) int {
	for _, params := range [][]btf.FuncParam{c.params, c.other} {
		for i, p := range params {
			if p.Name == name {
				return i
			}
		}
	}
	if digits, ok := strings.CutPrefix(name, "arg"); ok {
		if i, err := strconv.Atoi(digits); err == nil && strconv.Itoa(i) == digits && i < len(c.params) {
			return i
		}
	}
	return -1
}

func (c *checker) parameter(n *nameNode, i int) (value, *Error) {
	params := c.params
	// a struct that is passed as such takes more than one register, or lies on the stack
	for _, p := range params[:i+1] {
		if k, _ := classify(p.Type); k == kindAggregate {
			return value{}, n.at.errorf("%s is passed after, or is, a struct by value (%s %s)", n.name, typeName(p.Type), p.Name).
				fix("use a parameter before it")
		}
	}
	l := &load{param: i}
	return c.loaded(n, params[i].Type, l, 0)
}

// loaded completes a value that is read from where l says.
func (c *checker) loaded(n node, t btf.Type, l *load, bitfield uint32) (value, *Error) {
	k, num := classify(t)
	v := value{node: n, kind: k, typ: t, expr: l}
	v.enum, _ = btf.UnderlyingType(t).(*btf.Enum)
	if k <= kindPointer {
		l.size = uint32(num.bits / 8)
	}
	if bitfield != 0 {
		num.bits = uint(bitfield)
		l.size = (l.shift + bitfield + 7) / 8
		if l.size > 8 {
			return v, n.pos().errorf("%s is a bit field over more than 8 bytes", source(n))
		}
	}
	l.num, v.num = num, num
	return v, nil
}

// pointsTo says where the pointer that l reads leads to. text is true for strings.
func pointsTo(p *btf.Pointer, l load, text bool) space {
	switch {
	case tagged(p), l.memory && l.space == spaceUser:
		return spaceUser
	case !l.memory || text:
		return spaceEither
	}
	return spaceKernel
}

// follow gives a load of what a pointer points to.
func follow(p *btf.Pointer, l *load) *load {
	to := &load{param: l.param, hops: slices.Clone(l.hops), memory: true, space: pointsTo(p, *l, false)}
	if l.memory {
		to.hops = append(to.hops, hop{l.offset, l.space})
	}
	return to
}

// member checks x->name and x.name. Both are taken for both: what was meant is
// clear.
func (c *checker) member(n *memberNode) (value, *Error) {
	x, err := c.operand(n.x, nil)
	if err != nil {
		return value{}, err
	}
	l, ok := x.expr.(*load)
	if !ok {
		return value{}, n.at.errorf("%s has no members", source(n.x))
	}
	of := x.typ
	if p, ok := btf.UnderlyingType(x.typ).(*btf.Pointer); ok {
		of = p.Target
		l = follow(p, l)
	}
	of = whole(c.spec, of)
	f, ok := findMember(of, n.name)
	if !ok {
		return value{}, c.noMember(n, x, of)
	}
	bits := f.offset
	to := *l
	to.offset += bits / 8
	to.shift = bits % 8
	if to.offset > 1<<28 {
		return value{}, n.at.errorf("%s is too far into its struct", n.name)
	}
	return c.loaded(n, f.typ, &to, f.bits)
}

func (c *checker) noMember(n *memberNode, x value, of btf.Type) *Error {
	switch t := btf.UnderlyingType(of).(type) {
	case *btf.Struct, *btf.Union:
		e := n.at.errorf("%s has no member %s", typeName(t), n.name)
		return e.suggest(n.name, memberNames(t), "it has")
	case *btf.Fwd:
		return n.at.errorf("the members of %s are not in the kernel's BTF", typeName(t))
	case *btf.Array:
		return n.at.errorf("%s is an array (%s)", source(n.x), typeName(of)).fix("name an element: %s[0]%s%s", source(n.x), n.op, n.name)
	case *btf.Pointer:
		return n.at.errorf("%s is a pointer to a pointer (%s)", source(n.x), typeName(x.typ)).fix("name an element: %s[0]%s%s", source(n.x), n.op, n.name)
	case *btf.Void:
		return n.at.errorf("%s is void *: what it points to is not known", source(n.x))
	}
	return n.at.errorf("%s is %s, which has no members", source(n.x), typeName(x.typ))
}

// element checks x[index], and *x, which is x[0].
func (c *checker) element(n, base node, index uint64, at place) (value, *Error) {
	x, err := c.operand(base, nil)
	if err != nil {
		return value{}, err
	}
	l, ok := x.expr.(*load)
	if !ok {
		return value{}, at.errorf("%s is no array", source(base))
	}
	var of btf.Type
	limit := uint64(maxIndex)
	to := *l
	switch t := btf.UnderlyingType(x.typ).(type) {
	case *btf.Array:
		of = t.Type
		if t.Nelems > 0 {
			limit = uint64(t.Nelems) - 1
		}
	case *btf.Pointer:
		of = t.Target
		to = *follow(t, l)
	default:
		return value{}, at.errorf("%s is %s, not an array or pointer", source(base), typeName(x.typ))
	}
	if index > limit {
		return value{}, at.errorf("index %d is beyond %s (%s)", index, source(base), typeName(x.typ)).fix("the last is %d", limit)
	}
	of = whole(c.spec, of)
	size, bad := btf.Sizeof(of)
	if bad != nil || size == 0 {
		return value{}, at.errorf("%s is %s: the size of its elements is not known", source(base), typeName(x.typ))
	}
	if uint64(size)*index > 1<<28 {
		return value{}, at.errorf("index %d is too far", index)
	}
	to.offset += uint32(size) * uint32(index)
	to.shift = 0
	return c.loaded(n, of, &to, 0)
}

func (c *checker) unary(n *unaryNode, enum *btf.Enum) (value, *Error) {
	switch n.op {
	case "!":
		return value{}, n.at.errorf("%s is true or false and cannot be compared or computed with", source(n)).fix("use it alone or with && ||")
	case "*":
		return c.element(n, n.x, 0, n.at)
	}
	x, err := c.operand(n.x, enum)
	if err != nil {
		return value{}, err
	}
	if err := c.computable(x, n.op); err != nil {
		return value{}, err
	}
	if v, ok := x.expr.(*constant); ok {
		r := new(big.Int).Neg(v.v)
		if n.op == "~" {
			r.Not(v.v)
		}
		return c.folded(n, n.at, r)
	}
	if n.op == "-" {
		return computed(n, &arithmetic{op: "-", x: &constant{new(big.Int)}, y: x.expr, num: number{64, true}}), nil
	}
	return computed(n, &arithmetic{op: "^", x: x.expr, y: &constant{big.NewInt(-1)}, num: x.num, trunc: !x.num.signed}), nil
}

func computed(n node, a *arithmetic) value {
	return value{node: n, kind: kindNumber, num: a.num, expr: a}
}

// folded is a constant that was computed.
func (c *checker) folded(n node, at place, v *big.Int) (value, *Error) {
	if v.Cmp(number{64, true}.least()) < 0 || v.Cmp(word.most()) > 0 {
		return value{}, at.errorf("%s does not fit into 64 bits", source(n))
	}
	return number64(n, v), nil
}

func (c *checker) computable(x value, op string) *Error {
	switch {
	case x.literal:
		return x.node.pos().errorf("%s cannot be applied to a string", op)
	case x.kind == kindPointer:
		return x.node.pos().errorf("%s cannot be applied to %s, a pointer", op, source(x.node))
	case x.kind > kindPointer:
		return c.unusable(x)
	}
	return nil
}

// arithmetic checks & | ^ + - << >>.
func (c *checker) arithmetic(n *binaryNode, enum *btf.Enum) (value, *Error) {
	x, y, err := c.pair(n)
	if err != nil {
		return value{}, err
	}
	if err := c.computable(x, n.op); err != nil {
		return value{}, err
	}
	if err := c.computable(y, n.op); err != nil {
		return value{}, err
	}
	a, isA := x.expr.(*constant)
	b, isB := y.expr.(*constant)
	if n.op == "<<" || n.op == ">>" {
		if !isB || b.v.Sign() < 0 || b.v.Cmp(big.NewInt(63)) > 0 {
			return value{}, n.y.pos().errorf("a shift is by a number from 0 to 63")
		}
		if !isA {
			num := x.num
			if n.op == "<<" {
				num.bits = 64
			}
			return computed(n, &arithmetic{op: n.op, x: x.expr, y: y.expr, num: num}), nil
		}
	}
	if isA && isB {
		return c.folded(n, n.at, fold(n.op, a.v, b.v))
	}
	if n.op == "&" && isB {
		return c.mask(n, x, y, b.v)
	}
	if n.op == "&" && isA {
		return c.mask(n, y, x, a.v)
	}
	r := &arithmetic{op: n.op, x: x.expr, y: y.expr}
	xn, yn := x.num, y.num
	if isA {
		xn = adapt(a.v, yn)
	}
	if isB {
		yn = adapt(b.v, xn)
	}
	switch {
	case n.op == "+" || n.op == "-":
		// computed with 64 bits: a difference of unsigned numbers can be negative
		r.num = number{64, n.op == "-" || xn != word && yn != word}
	case xn.signed && yn.signed:
		r.num = number{max(xn.bits, yn.bits), true}
	case n.op == "&":
		r.num = number{bits: 64}
		for _, m := range []number{xn, yn} {
			if !m.signed {
				r.num.bits = min(r.num.bits, m.bits)
			}
		}
	default:
		r.num = number{bits: max(xn.bits, yn.bits)}
		r.trunc = true
	}
	return computed(n, r), nil
}

// adapt gives a constant the type of the other operand if it has a place there.
func adapt(v *big.Int, other number) number {
	switch {
	case v.Cmp(other.least()) >= 0 && v.Cmp(other.most()) <= 0:
		return other
	case fitsBits(v, other) && v.Sign() >= 0:
		return number{bits: other.bits}
	}
	return number{bits: 64, signed: v.Sign() < 0}
}

// mask checks x & m with a constant m.
func (c *checker) mask(n *binaryNode, x, m value, v *big.Int) (value, *Error) {
	if v.Sign() == 0 {
		return value{}, m.node.pos().errorf("%s is 0: no bit of %s is looked at", source(m.node), source(x.node)).
			fix("compare all bits that it is one value of, such as (flags & O_ACCMODE) == O_RDONLY")
	}
	r := &arithmetic{op: "&", x: x.expr, y: m.expr, num: x.num}
	if v.Sign() >= 0 {
		r.num.signed = false
		if v.Cmp(r.num.most()) > 0 {
			return value{}, m.node.pos().errorf("%s has bits that %s has not (%s)", source(m.node), source(x.node), x.num)
		}
	}
	return computed(n, r), nil
}

func fold(op string, x, y *big.Int) *big.Int {
	r := new(big.Int)
	switch op {
	case "&":
		return r.And(x, y)
	case "|":
		return r.Or(x, y)
	case "^":
		return r.Xor(x, y)
	case "+":
		return r.Add(x, y)
	case "-":
		return r.Sub(x, y)
	case "<<":
		return r.Lsh(x, uint(y.Uint64()))
	}
	return r.Rsh(x, uint(y.Uint64()))
}
