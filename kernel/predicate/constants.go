package predicate

import (
	"math/big"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// enumValue gives the value of an enum constant.
func enumValue(e *btf.Enum, name string) (*big.Int, bool) {
	if e == nil {
		return nil, false
	}
	for _, v := range e.Values {
		if v.Name == name {
			return enumNumber(e, v.Value), true
		}
	}
	return nil, false
}

func enumNumber(e *btf.Enum, v uint64) *big.Int {
	if e.Signed {
		if e.Size <= 4 {
			return big.NewInt(int64(int32(v)))
		}
		return big.NewInt(int64(v))
	}
	return new(big.Int).SetUint64(v)
}

// constantNamed looks for an enum constant in all of BTF. It is ambiguous when
// enums disagree about the value.
func constantNamed(spec *btf.Spec, name string) (value *big.Int, enums []string, err error) {
	if spec == nil {
		return nil, nil, nil
	}
	for t, err := range spec.All() {
		if err != nil {
			return nil, nil, err
		}
		e, ok := t.(*btf.Enum)
		if !ok {
			continue
		}
		v, ok := enumValue(e, name)
		if !ok {
			continue
		}
		if value == nil {
			value = v
		} else if value.Cmp(v) == 0 {
			continue
		}
		enums = append(enums, typeName(e))
	}
	return value, enums, nil
}

// isConstantName tells whether a name looks like a constant of C's.
func isConstantName(name string) bool {
	return name == strings.ToUpper(name) && strings.ToLower(name) != name
}

// constant resolves a name that is no parameter. enum is that of the value it is
// compared with, whose constants come first.
func (c *checker) constant(n *nameNode, enum *btf.Enum) (*big.Int, *Error) {
	switch n.name {
	case "NULL", "false":
		return new(big.Int), nil
	case "true":
		return big.NewInt(1), nil
	}
	if v, ok := enumValue(enum, n.name); ok {
		return v, nil
	}
	if v, ok := userConstants[n.name]; ok {
		return big.NewInt(v), nil
	}
	v, enums, err := constantNamed(c.spec, n.name)
	if err != nil {
		return nil, n.at.errorf("reading the kernel's BTF: %v", err)
	}
	switch len(enums) {
	case 1:
		return v, nil
	case 0:
	default:
		slices.Sort(enums)
		return nil, n.at.errorf("%s has different values in %s", n.name, several(enums)).fix("write the number")
	}
	if isConstantName(n.name) {
		e := n.at.errorf("%s is no parameter of %s and no enum constant of this kernel", n.name, c.where())
		if enum != nil {
			var names []string
			for _, v := range enum.Values {
				names = append(names, v.Name)
			}
			return nil, e.suggest(n.name, names, typeName(enum)+" has")
		}
		return nil, e.fix("what C defines with #define is not in BTF: write its number")
	}
	e := n.at.errorf("%s has no parameter %s", c.where(), n.name)
	if len(c.params) == 0 {
		return nil, e.fix("it has none")
	}
	return nil, e.suggest(n.name, c.names(), "its parameters are")
}
