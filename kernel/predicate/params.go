package predicate

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cilium/ebpf/btf"
)

// declaration is one parameter of a list in C.
type declaration struct {
	at       place
	kind     string // "struct", "union", "enum", or "" for other types
	base     string // the type's name without const and the like: "dentry", "unsigned int"
	pointers int
	user     bool // __user
	name     string
}

// qualifiers say nothing about how a parameter is read.
var qualifiers = []string{"const", "volatile", "restrict", "register", "__user", "__kernel", "__iomem", "__rcu", "__percpu", "__restrict"}

// integers are the words that C's own types are made of.
var integers = []string{"unsigned", "signed", "char", "short", "int", "long", "void", "_Bool", "bool"}

// parseParams reads a parameter list in C, such as
//
//	struct dentry *parent, const struct qstr *name
//
// as KernelChaos has it in "parameters".
func parseParams(text string) ([]declaration, *Error) {
	p := &parser{lexer: lexer{rest: text, at: place{1, 1}}}
	if n := utf8.RuneCountInString(text); n > MaxLength {
		return nil, p.lexer.at.errorf("the parameters have %d characters; %d are allowed", n, MaxLength)
	}
	if err := p.advance(); err != nil {
		return nil, err
	}
	if p.token.kind == tokenEnd {
		return nil, nil
	}
	var list []declaration
	for {
		d, err := p.declaration()
		if err != nil {
			return nil, err
		}
		list = append(list, d)
		if p.token.kind == tokenEnd {
			break
		}
		if !p.is(",") {
			return nil, p.unexpected("a comma")
		}
		if err := p.advance(); err != nil {
			return nil, err
		}
	}
	if len(list) == 1 && list[0].base == "void" && list[0].pointers == 0 {
		return nil, nil
	}
	return list, nil
}

// declaration reads one parameter: its type, stars, and its name, which C lets be
// left out.
func (p *parser) declaration() (declaration, *Error) {
	d := declaration{at: p.token.at}
	var words []string // of the type and the name, which is the last
	afterStar := false
	for {
		switch {
		case p.token.kind == tokenName && slices.Contains(qualifiers, p.token.text):
			d.user = d.user || p.token.text == "__user"
		case p.token.kind == tokenName && afterStar:
			if d.name != "" {
				return d, p.unexpected("a comma")
			}
			d.name = p.token.text
		case p.token.kind == tokenName && len(words) == 0 && d.kind == "" && slices.Contains([]string{"struct", "union", "enum"}, p.token.text):
			d.kind = p.token.text
		case p.token.kind == tokenName:
			words = append(words, p.token.text)
		case p.is("*"):
			if d.name != "" {
				return d, p.unexpected("a comma")
			}
			d.pointers++
			afterStar = true
		case p.is("["): // an array parameter is a pointer
			if err := p.dimension(); err != nil {
				return d, err
			}
			d.pointers++
			continue
		case p.is("("):
			return d, p.token.at.errorf("a pointer to a function is not understood").fix("leave the parameters out: the kernel's BTF has them")
		default:
			return p.declared(d, words)
		}
		if err := p.advance(); err != nil {
			return d, err
		}
	}
}

func (p *parser) dimension() *Error {
	if err := p.advance(); err != nil {
		return err
	}
	if p.token.kind == tokenNumber {
		if err := p.advance(); err != nil {
			return err
		}
	}
	return p.expect("]", "after the size of an array")
}

// declared splits the words of a declaration into type and name.
func (p *parser) declared(d declaration, words []string) (declaration, *Error) {
	if len(words) == 0 {
		return d, p.unexpected("a type")
	}
	last := len(words) - 1
	switch {
	case d.kind != "":
		if len(words) > 2 || len(words) == 2 && d.name != "" {
			return d, d.at.errorf("%q is no parameter", d.kind+" "+strings.Join(words, " "))
		}
		d.base = words[0]
		if len(words) == 2 {
			d.name = words[1]
		}
	case slices.Contains(integers, words[last]):
		d.base = strings.Join(words, " ")
	case last > 0:
		if d.name != "" || last > 1 && !slices.Contains(integers, words[0]) {
			return d, d.at.errorf("%q is no parameter", strings.Join(words, " "))
		}
		d.base, d.name = strings.Join(words[:last], " "), words[last]
	default:
		d.base = words[0]
	}
	if d.kind == "" && slices.Contains(integers, strings.Fields(d.base)[0]) {
		base, ok := canonical(strings.Fields(d.base))
		if !ok {
			return d, d.at.errorf("%q is no type", d.base)
		}
		d.base = base
	}
	return d, nil
}

// canonical gives the name that BTF has for a type of C's own, such as
// "long unsigned int" for "unsigned long".
func canonical(words []string) (string, bool) {
	n := map[string]int{}
	for _, w := range words {
		if !slices.Contains(integers, w) {
			return "", false
		}
		n[w]++
	}
	if n["unsigned"] > 1 || n["signed"] > 1 || n["unsigned"]+n["signed"] > 1 || n["long"] > 2 || n["short"] > 1 || n["int"] > 1 {
		return "", false
	}
	switch {
	case n["void"] > 0:
		return "void", len(words) == 1
	case n["bool"]+n["_Bool"] > 0:
		return "_Bool", len(words) == 1
	case n["char"] > 0:
		if n["char"]+n["unsigned"]+n["signed"] != len(words) || n["char"] > 1 {
			return "", false
		}
		for _, sign := range []string{"unsigned", "signed"} {
			if n[sign] == 1 {
				return sign + " char", true
			}
		}
		return "char", true
	}
	if n["long"] > 0 && n["short"] > 0 {
		return "", false
	}
	sign := ""
	if n["unsigned"] == 1 {
		sign = "unsigned "
	}
	switch {
	case n["long"] == 2:
		return "long long " + sign + "int", true
	case n["long"] == 1:
		return "long " + sign + "int", true
	case n["short"] == 1:
		return "short " + sign + "int", true
	}
	return sign + "int", true
}

// source writes the declared type as in C.
func (d declaration) source() string {
	s := strings.TrimSpace(d.kind + " " + d.base)
	if d.pointers > 0 {
		s += " " + strings.Repeat("*", d.pointers)
	}
	return s
}

// ParseParams reads the parameter list of a function in C, as KernelChaos's
// "parameters" gives it, and checks it with the kernel's BTF. The parameters have
// the names of the list and the types of BTF. There may be fewer than the function
// has. A name of BTF works as well in a predicate when Options has Function too.
// The error is an *[Error] with the place in text.
func ParseParams(spec *btf.Spec, function, text string) ([]btf.FuncParam, error) {
	list, wrong := parseParams(text)
	if wrong != nil {
		return nil, wrong
	}
	params, err := FunctionParams(spec, function)
	if err != nil {
		return nil, err
	}
	if len(list) > len(params) {
		return nil, list[len(params)].at.errorf("%s has %d parameters in this kernel", function, len(params)).fix("they are: %s", signature(params))
	}
	named := slices.Clone(params)
	for i, d := range list {
		if !d.fits(params[i].Type) {
			return nil, d.at.errorf("parameter %d of %s is %s in this kernel, not %s", i+1, function, typeName(params[i].Type), d.source()).
				fix("leave the parameters out, or write: %s", signature(params))
		}
		if d.name != "" {
			named[i].Name = d.name
		}
	}
	return named, nil
}

// signature writes parameters as in C.
func signature(params []btf.FuncParam) string {
	if len(params) == 0 {
		return "void"
	}
	var list []string
	for _, p := range params {
		list = append(list, strings.TrimSpace(strings.Replace(typeName(p.Type)+" "+p.Name, "* ", "*", 1)))
	}
	return strings.Join(list, ", ")
}

// fits tells whether the declared type is t, but for const and the like.
func (d declaration) fits(t btf.Type) bool {
	for range d.pointers {
		p, ok := plain(t).(*btf.Pointer)
		if !ok {
			if p, ok = btf.UnderlyingType(t).(*btf.Pointer); !ok {
				return false
			}
		}
		t = p.Target
	}
	// a typedef has its own name and that of what it stands for
	for depth := 0; depth < 16; depth++ {
		t = plain(t)
		switch u := t.(type) {
		case *btf.Struct:
			return d.kind == "struct" && d.base == u.Name
		case *btf.Union:
			return d.kind == "union" && d.base == u.Name
		case *btf.Enum:
			return d.kind == "enum" && d.base == u.Name
		case *btf.Fwd:
			return d.kind == u.Kind.String() && d.base == u.Name
		case *btf.Typedef:
			if d.kind == "" && d.base == u.Name {
				return true
			}
			t = u.Type
		case *btf.Void:
			return d.kind == "" && d.base == "void"
		case *btf.Int:
			if d.kind != "" {
				return false
			}
			name, ok := canonical(strings.Fields(u.Name))
			if !ok {
				name = u.Name
			}
			return d.base == name
		default:
			return false
		}
	}
	return false
}

// plain takes const, volatile and tags away, but not typedefs.
func plain(t btf.Type) btf.Type {
	for {
		switch v := t.(type) {
		case *btf.Const:
			t = v.Type
		case *btf.Volatile:
			t = v.Type
		case *btf.Restrict:
			t = v.Type
		case *btf.TypeTag:
			t = v.Type
		default:
			return t
		}
	}
}

// resolve finds the declared type in BTF.
func (d declaration) resolve(spec *btf.Spec) (btf.Type, error) {
	t, err := d.find(spec)
	if err != nil {
		return nil, err
	}
	for i := range d.pointers {
		if i == 0 && d.user {
			t = &btf.TypeTag{Type: t, Value: userTag}
		}
		t = &btf.Pointer{Target: t}
	}
	return t, nil
}

// sizes are the bytes of C's integers on 64-bit Linux, by the names that
// canonical gives.
var sizes = map[string]uint32{
	"char": 1, "signed char": 1, "unsigned char": 1, "_Bool": 1, "short int": 2, "short unsigned int": 2,
	"int": 4, "unsigned int": 4, "long int": 8, "long unsigned int": 8, "long long int": 8, "long long unsigned int": 8,
}

func (d declaration) find(spec *btf.Spec) (btf.Type, error) {
	if d.base == "void" && d.kind == "" {
		return &btf.Void{}, nil
	}
	if size, ok := sizes[d.base]; ok && d.kind == "" { // compilers have different names for these
		encoding := btf.Signed
		if d.base == "_Bool" {
			encoding = btf.Bool
		} else if strings.Contains(d.base, "unsigned") {
			encoding = btf.Unsigned
		}
		return &btf.Int{Name: d.base, Size: size, Encoding: encoding}, nil
	}
	types, err := spec.AnyTypesByName(d.base)
	if err != nil {
		if d.pointers > 0 { // what it points to is not needed unless a predicate asks for it
			return &btf.Fwd{Name: d.base}, nil
		}
		return nil, fmt.Errorf("type %s in the kernel's BTF: %w", d.source(), err)
	}
	for _, t := range types {
		switch t.(type) {
		case *btf.Struct:
			if d.kind == "struct" {
				return t, nil
			}
		case *btf.Union:
			if d.kind == "union" {
				return t, nil
			}
		case *btf.Enum:
			if d.kind == "enum" {
				return t, nil
			}
		case *btf.Int, *btf.Typedef:
			if d.kind == "" {
				return t, nil
			}
		}
	}
	if d.pointers > 0 {
		return &btf.Fwd{Name: d.base}, nil
	}
	return nil, fmt.Errorf("the kernel's BTF has no type %s", d.source())
}
