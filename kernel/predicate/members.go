package predicate

import (
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
	"github.com/faultgraft/faultgraft/policy"
)

// field is a member found in a struct or union.
type field struct {
	typ    btf.Type
	offset uint32 // bits from the beginning of the struct
	bits   uint32 // of a bit field, else 0
}

// maxAnonymous is how deep anonymous members are looked into.
const maxAnonymous = 16

func membersOf(t btf.Type) []btf.Member {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		return t.Members
	case *btf.Union:
		return t.Members
	}
	return nil
}

// findMember looks for a member by its name, also in anonymous members.
func findMember(t btf.Type, name string) (field, bool) {
	return findIn(t, name, maxAnonymous)
}

func findIn(t btf.Type, name string, depth int) (field, bool) {
	if depth == 0 {
		return field{}, false
	}
	for _, m := range membersOf(t) {
		if m.Name == name && name != "" {
			return field{typ: m.Type, offset: uint32(m.Offset), bits: uint32(m.BitfieldSize)}, true
		}
		if m.Name == "" {
			if f, ok := findIn(m.Type, name, depth-1); ok {
				f.offset += uint32(m.Offset)
				return f, true
			}
		}
	}
	return field{}, false
}

// memberNames lists the names that findMember finds.
func memberNames(t btf.Type) []string { return namesIn(t, maxAnonymous) }

func namesIn(t btf.Type, depth int) (names []string) {
	if depth == 0 {
		return nil
	}
	for _, m := range membersOf(t) {
		if m.Name != "" {
			names = append(names, m.Name)
		} else {
			names = append(names, namesIn(m.Type, depth-1)...)
		}
	}
	return names
}

// stringMembers lists the members of t that can be compared with a string, for
// advice; x is what they are members of, as written.
func stringMembers(x string, t btf.Type) (paths []string) {
	for _, name := range memberNames(t) {
		f, _ := findMember(t, name)
		var target btf.Type
		switch u := btf.UnderlyingType(f.typ).(type) {
		case *btf.Pointer:
			target = u.Target
		case *btf.Array:
			target = u.Type
		default:
			continue
		}
		if character(target) {
			paths = append(paths, x+"->"+name)
		}
	}
	return paths
}

// several lists at most about 12 names.
func several(names []string) string {
	const most = 12
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

// maxNear is the length up to which names are compared with what was written.
const maxNear = 64

// closest returns the name that was most likely meant, or "".
func closest(word string, names []string) string {
	best, distance := "", 3
	for _, n := range names {
		if len(word) > maxNear || len(n) > maxNear {
			continue
		}
		if d := policy.EditDistance(word, n); d < distance && 2*d <= max(len(word), len(n)) {
			best, distance = n, d
		}
	}
	if best != "" {
		return best
	}
	// d_name for name: prefixes are easily left out
	for _, n := range names {
		if word != "" && strings.HasSuffix(n, "_"+word) {
			return n
		}
	}
	return ""
}

// suggest adds what was most likely meant to an error, else the names there are.
func (e *Error) suggest(word string, names []string, what string) *Error {
	names = slices.Compact(slices.Clone(names))
	if c := closest(word, names); c != "" {
		return e.fix("did you mean %s?", c)
	}
	if len(names) > 0 {
		return e.fix("%s: %s", what, several(names))
	}
	return e
}
