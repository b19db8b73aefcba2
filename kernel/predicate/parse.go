package predicate

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// precedence is C's, see operator(7). startswith binds as == does.
var precedence = map[string]int{
	"||": 1, "&&": 2, "|": 3, "^": 4, "&": 5, "==": 6, "!=": 6, "startswith": 6,
	"<": 7, "<=": 7, ">": 7, ">=": 7, "<<": 8, ">>": 8, "+": 9, "-": 9,
}

// comparison operators give a truth, which is no number.
var comparisons = []string{"==", "!=", "startswith", "<", "<=", ">", ">="}

type parser struct {
	lexer lexer
	token token
	depth int
}

// Parse reads a predicate. It knows no types: whether the names exist is for
// [Check] and [Compile]. The error is an *[Error].
func Parse(text string) (*Expr, error) {
	e, err := parse(text)
	if err != nil {
		return nil, err
	}
	return e, nil
}

func parse(text string) (*Expr, *Error) {
	start := place{1, 1}
	if n := utf8.RuneCountInString(text); n > MaxLength {
		return nil, start.errorf("the predicate has %d characters; %d are allowed", n, MaxLength)
	}
	p := &parser{lexer: lexer{rest: text, at: start}}
	if err := p.advance(); err != nil {
		return nil, err
	}
	if p.token.kind == tokenEnd {
		return nil, p.token.at.errorf("the predicate is empty").fix(`write a condition over the parameters, such as name->name == "bananas"`)
	}
	root, err := p.binary(1)
	if err != nil {
		return nil, err
	}
	if p.token.kind != tokenEnd {
		return nil, p.unexpected("an operator")
	}
	return &Expr{root: root, text: text}, nil
}

func (p *parser) advance() (err *Error) {
	p.token, err = p.lexer.next()
	return err
}

func (p *parser) is(op string) bool { return p.token.kind == tokenOperator && p.token.text == op }

func (p *parser) unexpected(want string) *Error {
	e := p.token.at.errorf("%s where %s should be", p.token, want)
	switch {
	case p.is(")"):
		e.Fix = `there is no "(" for it`
	case p.token.kind == tokenName && slices.Contains([]string{"and", "or", "not"}, p.token.text):
		e.Fix = `the operators are C's: && || !`
	case p.token.kind == tokenName && p.token.text == "contains" || p.token.text == "endswith" || p.token.text == "matches":
		e.Fix = `strings are compared with == != and startswith`
	}
	return e
}

func (p *parser) expect(op, after string) *Error {
	if !p.is(op) {
		return p.token.at.errorf("%s where %q should be, %s", p.token, op, after)
	}
	return p.advance()
}

func (p *parser) enter() *Error {
	if p.depth++; p.depth > MaxDepth {
		return p.token.at.errorf("more than %d operators and parentheses inside each other", MaxDepth)
	}
	return nil
}

// binary reads operators that bind as tightly as min or tighter.
func (p *parser) binary(least int) (node, *Error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	x, err := p.unary()
	if err != nil {
		return nil, err
	}
	// a chain such as a || b || c is a tree that leans to the left: it is as deep as it is long
	for links := 0; ; links++ {
		op := p.token.text
		level, ok := precedence[op]
		if !ok || p.token.kind != tokenOperator && op != "startswith" || level < least {
			return x, nil
		}
		if links > 4*MaxDepth {
			return nil, p.token.at.errorf("more than %d operators in a row", 4*MaxDepth)
		}
		n := &binaryNode{at: p.token.at, op: op, x: x}
		if err := p.advance(); err != nil {
			return nil, err
		}
		if n.y, err = p.binary(level + 1); err != nil {
			return nil, err
		}
		if err := trap(n); err != nil {
			return nil, err
		}
		x = n
	}
}

// trap refuses what C reads in another way than most people do, and truths used
// as numbers.
func trap(n *binaryNode) *Error {
	if n.op == "&&" || n.op == "||" {
		return nil
	}
	compares := slices.Contains(comparisons, n.op)
	for _, side := range []node{n.x, n.y} {
		switch inner := side.(type) {
		case *binaryNode:
			if !slices.Contains(comparisons, inner.op) {
				continue
			}
			if compares {
				return n.at.errorf("%s compares the result of a comparison", source(n)).fix("join comparisons with &&")
			}
			// a & b == c: "==" binds tighter than "&"
			e := inner.at.errorf("C reads this as %s", grouped(n, inner))
			if side == n.y {
				return e.fix("write (%s %s %s) %s %s", source(n.x), n.op, source(inner.x), inner.op, source(inner.y))
			}
			return e.fix("write %s %s (%s %s %s)", source(inner.x), inner.op, source(inner.y), n.op, source(n.y))
		case *unaryNode:
			if inner.op == "!" && side == n.x {
				return n.at.errorf("C reads this as (%s) %s %s", source(inner), n.op, source(n.y)).
					fix("write !(%s %s %s)", source(inner.x), n.op, source(n.y))
			}
		}
	}
	return nil
}

func grouped(n, inner *binaryNode) string {
	if n.y == node(inner) {
		return source(n.x) + " " + n.op + " (" + source(inner) + ")"
	}
	return "(" + source(inner) + ") " + n.op + " " + source(n.y)
}

func (p *parser) unary() (node, *Error) {
	t := p.token
	if t.kind != tokenOperator || !strings.Contains("!~-*", t.text) {
		if p.is("&") {
			return nil, t.at.errorf("addresses cannot be taken").fix("name the member itself")
		}
		return p.postfix()
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	if err := p.advance(); err != nil {
		return nil, err
	}
	x, err := p.unary()
	if err != nil {
		return nil, err
	}
	return &unaryNode{at: t.at, op: t.text, x: x}, nil
}

func (p *parser) postfix() (node, *Error) {
	x, err := p.primary()
	if err != nil {
		return nil, err
	}
	for hops := 0; ; hops++ {
		if hops > MaxDepth {
			return nil, p.token.at.errorf("more than %d members in a row", MaxDepth)
		}
		switch {
		case p.is("->"), p.is("."):
			op := p.token.text
			if err := p.advance(); err != nil {
				return nil, err
			}
			if p.token.kind != tokenName {
				return nil, p.unexpected("the name of a member")
			}
			x = &memberNode{at: p.token.at, x: x, op: op, name: p.token.text}
			if err := p.advance(); err != nil {
				return nil, err
			}
		case p.is("["):
			if err := p.advance(); err != nil {
				return nil, err
			}
			if p.token.kind != tokenNumber {
				return nil, p.token.at.errorf("%s where a number should be", p.token).fix("the index of an array is a number, such as [0]")
			}
			x = &indexNode{at: p.token.at, x: x, index: p.token.number}
			if err := p.advance(); err != nil {
				return nil, err
			}
			if err := p.expect("]", "after an index"); err != nil {
				return nil, err
			}
		default:
			return x, nil
		}
	}
}

func (p *parser) primary() (node, *Error) {
	t := p.token
	switch {
	case t.kind == tokenNumber:
		return &numberNode{at: t.at, value: t.number, text: t.text}, p.advance()
	case t.kind == tokenString:
		return p.adjacent()
	case t.kind == tokenName && t.text == "sizeof":
		return nil, t.at.errorf("there is no sizeof in predicates").fix("write the number")
	case t.kind == tokenName && t.text != "startswith":
		if err := p.advance(); err != nil {
			return nil, err
		}
		if p.is("(") {
			return p.call(t)
		}
		return &nameNode{at: t.at, name: t.text}, nil
	case t.kind == tokenName: // startswith(x, "literal")
		if err := p.advance(); err != nil {
			return nil, err
		}
		if !p.is("(") {
			return nil, t.at.errorf("startswith without a string on its left").fix(`write name startswith "prefix"`)
		}
		return p.call(t)
	case p.is("("):
		if err := p.advance(); err != nil {
			return nil, err
		}
		if p.token.kind == tokenName && slices.Contains([]string{"struct", "union", "enum", "const", "unsigned", "char", "int", "long", "void"}, p.token.text) {
			return nil, p.token.at.errorf("casts are not supported").fix("members are read with the types that the kernel's BTF has")
		}
		x, err := p.binary(1)
		if err != nil {
			return nil, err
		}
		if err := p.expect(")", `for the "(" at `+t.at.String()); err != nil {
			return nil, err
		}
		return &groupNode{at: t.at, x: x}, nil
	}
	return nil, p.unexpected("a parameter, a constant or a literal")
}

// adjacent reads string literals; C joins those that follow each other.
func (p *parser) adjacent() (node, *Error) {
	n := &stringNode{at: p.token.at}
	for p.token.kind == tokenString {
		n.value += p.token.text
		if len(n.value) > MaxString {
			return nil, n.at.errorf("a string of %d bytes; %d are allowed", len(n.value), MaxString)
		}
		if err := p.advance(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// functions and the number of their arguments. STRNCMP is Chaos Mesh's and
// STRCMP bcc's, both are true when the strings are equal: see function STRNCMP
// in src/bpfki.cc of chaos-mesh/bpfki and _prepare_pred in bcc's tools/inject.py.
var functions = map[string]int{"startswith": 2, "STRNCMP": 3, "STRCMP": 2}

func (p *parser) call(f token) (node, *Error) {
	n := &callNode{at: f.at, function: f.text}
	want, ok := functions[f.text]
	if !ok {
		e := f.at.errorf("there is no function %s", f.text).fix(`there are startswith(x, "y"), STRNCMP(x, "y", n) and STRCMP(x, "y")`)
		if f.text == "strcmp" || f.text == "strncmp" || f.text == "memcmp" {
			e = e.fix(`compare strings with == "…", != "…" and startswith "…"`)
		}
		return nil, e
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	for {
		if err := p.advance(); err != nil { // over "(" or ","
			return nil, err
		}
		if p.is(")") {
			break
		}
		arg, err := p.binary(1)
		if err != nil {
			return nil, err
		}
		n.args = append(n.args, arg)
		if len(n.args) > want || !p.is(",") {
			break
		}
	}
	if len(n.args) != want {
		return nil, f.at.errorf("%s takes %d arguments", f.text, want)
	}
	if err := p.expect(")", "after the arguments of "+f.text); err != nil {
		return nil, err
	}
	return n, nil
}
