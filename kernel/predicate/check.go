package predicate

import (
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// checker resolves names and types.
type checker struct {
	spec     *btf.Spec
	function string
	params   []btf.FuncParam
	other    []btf.FuncParam // second names of the parameters, those of BTF
}

// value is a checked operand.
type value struct {
	node node
	kind kind
	typ  btf.Type // nil when computed
	num  number
	enum *btf.Enum
	expr expr
	// text is that of a string literal.
	text    string
	literal bool
}

// Check tells whether the predicate can be compiled. Of the options it needs Spec,
// and Function or Params. The error is an *[Error] when the predicate is wrong.
func Check(e *Expr, o Options) error {
	c, err := newChecker(o)
	if err != nil {
		return err
	}
	_, wrong := c.predicate(e)
	if wrong != nil {
		return wrong
	}
	return nil
}

func newChecker(o Options) (*checker, error) {
	c := &checker{spec: o.Spec, function: o.Function, params: o.Params}
	if o.Function == "" || o.Spec == nil {
		return c, nil
	}
	params, err := FunctionParams(o.Spec, o.Function)
	if err != nil && o.Params == nil {
		return nil, err
	}
	if o.Params == nil {
		c.params = params
		return c, nil
	}
	// ParseParams keeps BTF's types; system calls have parameters that BTF has not
	same := func(a, b btf.FuncParam) bool { return a.Type == b.Type }
	if err == nil && slices.EqualFunc(params, o.Params, same) {
		c.other = params
	}
	return c, nil
}

// FunctionParams gives the parameters of a kernel function, from BTF.
func FunctionParams(spec *btf.Spec, name string) ([]btf.FuncParam, error) {
	var f *btf.Func
	if err := spec.TypeByName(name, &f); err != nil {
		return nil, fmt.Errorf("the parameters of %s are not known: the kernel's BTF has no function of this name: %w", name, err)
	}
	proto, ok := f.Type.(*btf.FuncProto)
	if !ok {
		return nil, fmt.Errorf("the kernel's BTF has no parameters for %s", name)
	}
	return proto.Params, nil
}

func (c *checker) where() string {
	if c.function == "" {
		return "this function"
	}
	for prefix, what := range map[string]string{"__x64_sys_": "the system call ", "__arm64_sys_": "the system call ", "bpf_lsm_": "the hook "} {
		if name, ok := strings.CutPrefix(c.function, prefix); ok {
			return what + name
		}
	}
	return c.function
}

func (c *checker) names() (names []string) {
	for i, p := range c.params {
		if p.Name == "" {
			names = append(names, "arg"+strconv.Itoa(i))
		} else {
			names = append(names, p.Name)
		}
	}
	return names
}

// predicate checks the whole.
func (c *checker) predicate(e *Expr) (cond, *Error) {
	x, err := c.condition(e.root)
	if err != nil {
		return nil, err
	}
	x = simplify(x)
	if t, ok := x.(*truth); ok && !t.v {
		return nil, e.root.pos().errorf("this predicate is never true")
	}
	return x, nil
}

func (c *checker) condition(n node) (cond, *Error) {
	switch n := n.(type) {
	case *groupNode:
		return c.condition(n.x)
	case *unaryNode:
		if n.op == "!" {
			x, err := c.condition(n.x)
			return &not{x}, err
		}
	case *callNode:
		return c.call(n)
	case *binaryNode:
		switch {
		case n.op == "&&" || n.op == "||":
			x, err := c.condition(n.x)
			if err != nil {
				return nil, err
			}
			y, err := c.condition(n.y)
			if n.op == "&&" {
				return &and{x, y}, err
			}
			return &or{x, y}, err
		case slices.Contains(comparisons, n.op):
			return c.comparison(n)
		}
	}
	// a number or pointer is true when it is not 0
	x, err := c.operand(n, nil)
	if err != nil {
		return nil, err
	}
	switch {
	case x.literal:
		return nil, n.pos().errorf("a string is no condition").fix("compare it: name == %s", quote(x.text))
	case x.kind > kindPointer:
		return nil, c.unusable(x)
	}
	if v, ok := x.expr.(*constant); ok {
		return &truth{v.v.Sign() != 0}, nil
	}
	return &compare{op: "!=", x: x.expr, y: &constant{new(big.Int)}, xnum: x.num}, nil
}

// unusable says why a value is no number, truth or pointer.
func (c *checker) unusable(x value) *Error {
	at, text := x.node.pos(), source(x.node)
	e := at.errorf("%s is %s, which cannot be compared", text, typeName(x.typ))
	switch x.kind {
	case kindAggregate:
		return e.fix("compare a member of it: %s", several(memberNames(x.typ)))
	case kindArray:
		if a := btf.UnderlyingType(x.typ).(*btf.Array); character(a.Type) {
			return e.fix(`compare it with a string: %s == "…"`, text)
		}
		return e.fix("compare an element of it: %s[0]", text)
	}
	return e
}

// comparison checks == != < <= > >= and startswith.
func (c *checker) comparison(n *binaryNode) (cond, *Error) {
	x, y, err := c.pair(n)
	if err != nil {
		return nil, err
	}
	if x.literal || y.literal || n.op == "startswith" {
		return c.text(n, n.op, x, y)
	}
	if x.kind > kindPointer {
		return nil, c.unusable(x)
	}
	if y.kind > kindPointer {
		return nil, c.unusable(y)
	}
	if x.kind == kindPointer || y.kind == kindPointer {
		if err := c.pointers(n, x, y); err != nil {
			return nil, err
		}
	}
	a, isA := x.expr.(*constant)
	b, isB := y.expr.(*constant)
	switch {
	case isA && isB:
		return &truth{holds(n.op, a.v.Cmp(b.v))}, nil
	case isB:
		err = c.inRange(n.op, x, y, b.v)
	case isA:
		err = c.inRange(mirrored[n.op], y, x, a.v)
	}
	return &compare{op: n.op, x: x.expr, y: y.expr, xnum: x.num, ynum: y.num}, err
}

var mirrored = map[string]string{"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

func holds(op string, order int) bool {
	switch op {
	case "==":
		return order == 0
	case "!=":
		return order != 0
	case "<":
		return order < 0
	case "<=":
		return order <= 0
	case ">":
		return order > 0
	}
	return order >= 0
}

// pair checks both sides of an operator. The constants of an enum are looked for
// with the enum that the other side has.
func (c *checker) pair(n *binaryNode) (x, y value, err *Error) {
	if name, ok := ungroup(n.x).(*nameNode); ok && c.param(name.name) < 0 {
		if y, err = c.operand(n.y, nil); err == nil {
			x, err = c.operand(n.x, y.enum)
		}
		return x, y, err
	}
	if x, err = c.operand(n.x, nil); err == nil {
		y, err = c.operand(n.y, x.enum)
	}
	return x, y, err
}

// inRange refuses a comparison whose result is always the same because of x's type.
func (c *checker) inRange(op string, x, y value, v *big.Int) *Error {
	num := x.num
	if x.kind == kindTruth {
		num = number{bits: 1}
	}
	low, high := v.Cmp(num.least()), v.Cmp(num.most())
	outside := low < 0 || high > 0
	if !outside && (op != "<" || low != 0) && (op != ">" || high != 0) {
		return nil
	}
	is := "its type"
	if x.typ != nil {
		is = typeName(x.typ)
	}
	always := "never"
	if op == "!=" || low < 0 && (op == ">" || op == ">=") || high > 0 && (op == "<" || op == "<=") {
		always = "always"
	}
	e := y.node.pos().errorf("this comparison is %s true: %s is %s (%s)", always, source(x.node), is, num)
	if x.kind == kindTruth {
		return e.fix("compare it with true or false")
	}
	if wrapped := wrap(v, num); outside && wrapped.Cmp(v) != 0 && fitsBits(v, num) {
		return e.fix("the same bits are %s", wrapped)
	}
	return e
}

// fitsBits tells whether v is a number of as many bits, signed or not.
func fitsBits(v *big.Int, n number) bool {
	s, u := number{n.bits, true}, number{n.bits, false}
	return v.Cmp(s.least()) >= 0 && v.Cmp(u.most()) <= 0
}

// wrap gives the number of type n that has v's lowest bits.
func wrap(v *big.Int, n number) *big.Int {
	size := new(big.Int).Lsh(big.NewInt(1), n.bits)
	r := new(big.Int).Mod(v, size) // not negative
	if r.Cmp(n.most()) > 0 {
		r.Sub(r, size)
	}
	return r
}

// pointers checks a comparison with a pointer on one side at least.
func (c *checker) pointers(n *binaryNode, x, y value) *Error {
	if n.op != "==" && n.op != "!=" {
		return n.at.errorf("pointers have no order").fix("they are compared with == and !=")
	}
	if x.kind == kindPointer && y.kind == kindPointer {
		p, q := btf.UnderlyingType(x.typ).(*btf.Pointer), btf.UnderlyingType(y.typ).(*btf.Pointer)
		if character(p.Target) && character(q.Target) {
			return n.at.errorf("this would compare two addresses").fix("strings are compared with a literal")
		}
		return nil
	}
	if x.kind != kindPointer {
		x, y = y, x
	}
	if v, ok := y.expr.(*constant); ok && v.v.Sign() == 0 {
		return nil
	}
	return y.node.pos().errorf("%s is a pointer (%s)", source(x.node), typeName(x.typ)).
		fix("pointers are compared with NULL or with another pointer; its members with ->")
}

// simplify takes constant truths out, and double negation.
func simplify(x cond) cond {
	switch x := x.(type) {
	case *not:
		switch y := simplify(x.x).(type) {
		case *truth:
			return &truth{!y.v}
		case *not:
			return y.x
		default:
			return &not{y}
		}
	case *and:
		a, b := simplify(x.x), simplify(x.y)
		if t, ok := a.(*truth); ok {
			if t.v {
				return b
			}
			return a
		}
		if t, ok := b.(*truth); ok {
			if t.v {
				return a
			}
			return b
		}
		return &and{a, b}
	case *or:
		a, b := simplify(x.x), simplify(x.y)
		if t, ok := a.(*truth); ok {
			if t.v {
				return a
			}
			return b
		}
		if t, ok := b.(*truth); ok {
			if t.v {
				return b
			}
			return a
		}
		return &or{a, b}
	}
	return x
}
