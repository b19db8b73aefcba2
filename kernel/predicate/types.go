package predicate

import (
	"fmt"
	"math/big"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// kind is what can be done with a value.
type kind int

const (
	kindNumber    kind = iota // an integer or an enum
	kindTruth                 // a bool of the kernel's
	kindPointer               //
	kindAggregate             // a struct or union
	kindArray                 //
	kindOther                 // void, float, function, a type that is only declared
)

// number is the type of an integer.
type number struct {
	bits   uint // 1 to 64
	signed bool
}

var word = number{bits: 64}

func (n number) least() *big.Int {
	if !n.signed {
		return new(big.Int)
	}
	return new(big.Int).Neg(new(big.Int).Lsh(big.NewInt(1), n.bits-1))
}

func (n number) most() *big.Int {
	bits := n.bits
	if n.signed {
		bits--
	}
	v := new(big.Int).Lsh(big.NewInt(1), bits)
	return v.Sub(v, big.NewInt(1))
}

// String describes the range, such as "unsigned 16 bit, 0 to 65535".
func (n number) String() string {
	sign := "unsigned"
	if n.signed {
		sign = "signed"
	}
	return fmt.Sprintf("%s %d bit, %s to %s", sign, n.bits, n.least(), n.most())
}

// classify says what a type of BTF is. Its number is that of a kindNumber.
func classify(t btf.Type) (kind, number) {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Int:
		if t.Size < 1 || t.Size > 8 {
			return kindOther, number{}
		}
		if t.Encoding == btf.Bool {
			return kindTruth, number{bits: 8}
		}
		return kindNumber, number{uint(t.Size) * 8, t.Encoding == btf.Signed}
	case *btf.Enum:
		if t.Size < 1 || t.Size > 8 {
			return kindOther, number{}
		}
		return kindNumber, number{uint(t.Size) * 8, t.Signed}
	case *btf.Pointer:
		return kindPointer, word
	case *btf.Struct, *btf.Union:
		return kindAggregate, number{}
	case *btf.Array:
		return kindArray, number{}
	}
	return kindOther, number{}
}

// typeName writes a type as in C.
func typeName(t btf.Type) string {
	switch t := t.(type) {
	case nil:
		return "a number"
	case *btf.Pointer:
		n := typeName(t.Target)
		if strings.HasSuffix(n, "*") {
			return n + "*"
		}
		return n + " *"
	case *btf.Array:
		return fmt.Sprintf("%s[%d]", typeName(t.Type), t.Nelems)
	case *btf.Struct:
		return strings.TrimSpace("struct " + t.Name)
	case *btf.Union:
		return strings.TrimSpace("union " + t.Name)
	case *btf.Enum:
		return strings.TrimSpace("enum " + t.Name)
	case *btf.Fwd:
		return t.Kind.String() + " " + t.Name
	case *btf.Const:
		return "const " + typeName(t.Type)
	case *btf.Volatile:
		return typeName(t.Type)
	case *btf.Restrict:
		return typeName(t.Type)
	case *btf.TypeTag:
		if t.Value == userTag {
			return typeName(t.Type) + " __user"
		}
		return typeName(t.Type)
	case *btf.FuncProto:
		return "function"
	case *btf.Void:
		return "void"
	}
	return t.TypeName()
}

// userTag marks what a pointer into user space points to, where the kernel was
// built with clang (include/linux/compiler_types.h, __user).
const userTag = "user"

// tagged tells whether a pointer's target has the tag.
func tagged(p *btf.Pointer) bool {
	t := p.Target
	for depth := 0; depth < 16; depth++ {
		switch v := t.(type) {
		case *btf.TypeTag:
			if v.Value == userTag {
				return true
			}
			t = v.Type
		case *btf.Const:
			t = v.Type
		case *btf.Volatile:
			t = v.Type
		case *btf.Restrict:
			t = v.Type
		case *btf.Typedef:
			t = v.Type
		default:
			return false
		}
	}
	return false
}

// character tells whether strings are made of the type: one byte, not a bool.
func character(t btf.Type) bool {
	k, n := classify(t)
	_, integer := btf.UnderlyingType(t).(*btf.Int)
	return k == kindNumber && n.bits == 8 && integer
}

// stringLike tells whether a pointer's target can be read as a string. void is
// such a target: the data of mount(2) is one.
func stringLike(t btf.Type) bool {
	_, void := btf.UnderlyingType(t).(*btf.Void)
	return void || character(t)
}

// whole gives the definition of a struct or union of which t may only be a
// declaration, as in the BTF of a module.
func whole(spec *btf.Spec, t btf.Type) btf.Type {
	fwd, ok := btf.UnderlyingType(t).(*btf.Fwd)
	if !ok || spec == nil {
		return t
	}
	types, err := spec.AnyTypesByName(fwd.Name)
	if err != nil {
		return t
	}
	for _, full := range types {
		_, isStruct := full.(*btf.Struct)
		_, isUnion := full.(*btf.Union)
		if isStruct && fwd.Kind == btf.FwdStruct || isUnion && fwd.Kind == btf.FwdUnion {
			return full
		}
	}
	return t
}
