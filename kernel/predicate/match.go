package predicate

import (
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// text checks a comparison with a string literal.
func (c *checker) text(n *binaryNode, op string, x, y value) (cond, *Error) {
	if op != "startswith" && x.literal && !y.literal {
		x, y = y, x
	}
	switch {
	case x.literal && y.literal:
		return nil, n.at.errorf("this compares two literals")
	case !y.literal:
		return nil, y.node.pos().errorf("%s where a string literal should be", source(y.node)).fix(`write %s %s "…"`, source(x.node), op)
	case op != "==" && op != "!=" && op != "startswith":
		return nil, n.at.errorf("strings have no order").fix("they are compared with ==, != and startswith")
	}
	m, err := c.match(x, y, []byte(y.text), op != "startswith")
	if op == "!=" {
		return &not{m}, err
	}
	return m, err
}

// match compares x with a literal; whole is false for a prefix.
func (c *checker) match(x, literal value, want []byte, whole bool) (cond, *Error) {
	if len(want) == 0 && !whole {
		return nil, literal.node.pos().errorf("every string starts with the empty string")
	}
	at := x.node.pos()
	l, ok := x.expr.(*load)
	if !ok {
		return nil, at.errorf("%s is a number, %s a string", source(x.node), source(literal.node))
	}
	address := *l
	m := &match{x: &address}
	switch t := btf.UnderlyingType(x.typ).(type) {
	case *btf.Pointer:
		if !stringLike(t.Target) {
			e := at.errorf("%s is %s, which is no string", source(x.node), typeName(x.typ))
			if members := stringMembers(source(x.node), t.Target); len(members) > 0 {
				return nil, e.fix("did you mean %s?", strings.Join(members, " or "))
			}
			return nil, e
		}
		// the pointer itself has to be read, and leads to the string
		if address.memory {
			address.hops = append(slices.Clone(address.hops), hop{address.offset, address.space})
		}
		address.space = pointsTo(t, *l, true)
		address.memory, address.offset = true, 0
	case *btf.Array:
		if !character(t.Type) {
			return nil, at.errorf("%s is %s, which is no string", source(x.node), typeName(x.typ))
		}
		if size := int(t.Nelems); size > 0 && len(want) >= size {
			if len(want) > size {
				return nil, literal.node.pos().errorf("%s has room for %d bytes; this string has %d", source(x.node), size, len(want))
			}
			m.raw = whole
		}
	default:
		e := at.errorf("%s is %s, which is no string", source(x.node), typeName(x.typ))
		if len(want) == 1 && x.kind == kindNumber {
			return nil, e.fix("write a character: '%s'", escape(string(want), '\''))
		}
		if members := stringMembers(source(x.node), x.typ); len(members) > 0 {
			return nil, e.fix("did you mean %s?", strings.Join(members, " or "))
		}
		return nil, e
	}
	m.bytes = want
	if whole && !m.raw {
		m.bytes = append(slices.Clone(want), 0)
	}
	return m, nil
}

// call checks startswith(x, "y") and the comparisons of Chaos Mesh and bcc.
// STRNCMP compares n bytes and is true when they are equal: with n = 8 and
// "bananas" the 0 at the end is one of them.
func (c *checker) call(n *callNode) (cond, *Error) {
	x, err := c.operand(n.args[0], nil)
	if err != nil {
		return nil, err
	}
	y, err := c.operand(n.args[1], nil)
	if err != nil {
		return nil, err
	}
	if x.literal && !y.literal && n.function != "startswith" {
		x, y = y, x
	}
	if x.literal || !y.literal {
		return nil, n.args[1].pos().errorf("%s compares a string with a literal", n.function).
			fix(`write %s(%s, "…"%s)`, n.function, source(n.args[0]), map[string]string{"STRNCMP": ", n"}[n.function])
	}
	want, whole := []byte(y.text), n.function != "startswith"
	if n.function == "STRNCMP" {
		z, err := c.operand(n.args[2], nil)
		if err != nil {
			return nil, err
		}
		count, ok := z.expr.(*constant)
		if !ok || count.v.Sign() <= 0 || !count.v.IsInt64() {
			return nil, n.args[2].pos().errorf("STRNCMP needs the number of bytes to compare")
		}
		if size := count.v.Int64(); size <= int64(len(want)) {
			want, whole = want[:size], false
		}
	}
	return c.match(x, y, want, whole)
}
