package kernel

import (
	"fmt"
	"math"
	"sync"

	"github.com/cilium/ebpf/btf"
)

// layout gives places in the running kernel's structures. It keeps its first
// error, so that a program can be assembled in one go and the error be looked at
// then.
type layout struct {
	spec *btf.Spec
	err  error
}

func (l *layout) fail(format string, args ...any) {
	if l.err == nil {
		l.err = fmt.Errorf(format, args...)
	}
}

// offset is where a member of a structure is, in bytes; members of members by
// more names. Members of anonymous structures and unions are found like in C.
func (l *layout) offset(structure string, members ...string) int16 {
	var s *btf.Struct
	if err := l.spec.TypeByName(structure, &s); err != nil {
		l.fail("the kernel's type information has no struct %s: %w", structure, err)
		return 0
	}
	var at uint32
	var t btf.Type = s
	for _, name := range members {
		m, offset, ok := member(t, name)
		if !ok {
			l.fail("the kernel's struct %s has no member %s", structure, name)
			return 0
		}
		at, t = at+offset, m
	}
	if at > math.MaxInt16 {
		l.fail("struct %s: %v is %d bytes in, which is further than a program can load from", structure, members, at)
		return 0
	}
	return int16(at)
}

// has reports whether a structure has a member.
func (l *layout) has(structure, name string) bool {
	var s *btf.Struct
	if l.spec.TypeByName(structure, &s) != nil {
		return false
	}
	_, _, ok := member(s, name)
	return ok
}

func member(t btf.Type, name string) (btf.Type, uint32, bool) {
	var members []btf.Member
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		if m.Name == name {
			return m.Type, m.Offset.Bytes(), true
		}
		if m.Name == "" {
			if found, offset, ok := member(m.Type, name); ok {
				return found, m.Offset.Bytes() + offset, true
			}
		}
	}
	return nil, 0, false
}

// variable gives the BTF id of a per-CPU variable of the kernel.
func (l *layout) variable(name string) (btf.TypeID, bool) {
	var v *btf.Var
	if l.spec.TypeByName(name, &v) != nil {
		return 0, false
	}
	id, err := l.spec.TypeID(v)
	return id, err == nil
}

// kernelTypes are the running kernel's, decoded as they are asked for.
var kernelTypes = sync.OnceValues(btf.LoadKernelSpec)

// noFailBit is ___GFP_NOFAIL_BIT of the running kernel, a constant of an enum
// without a name: it is looked for among all types, once, in a copy that does
// not stay in memory.
var noFailBit = sync.OnceValues(func() (uint64, bool) {
	spec, err := kernelTypes()
	if err != nil {
		return 0, false
	}
	for t, err := range spec.Copy().All() {
		if err != nil {
			return 0, false
		}
		e, ok := t.(*btf.Enum)
		if !ok || e.Name != "" {
			continue
		}
		for _, v := range e.Values {
			if v.Name == "___GFP_NOFAIL_BIT" {
				return v.Value, true
			}
		}
	}
	return 0, false
})

// function gives the prototype of a kernel function.
func function(spec *btf.Spec, name string) (*btf.FuncProto, bool) {
	var f *btf.Func
	if spec.TypeByName(name, &f) != nil {
		return nil, false
	}
	p, ok := f.Type.(*btf.FuncProto)
	return p, ok
}
