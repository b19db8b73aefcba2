package predicate_test

import (
	"testing"

	"github.com/cilium/ebpf/btf"
)

var (
	tChar = &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed}
	tS8   = &btf.Int{Name: "signed char", Size: 1, Encoding: btf.Signed}
	tU8   = &btf.Int{Name: "unsigned char", Size: 1}
	tS16  = &btf.Int{Name: "short int", Size: 2, Encoding: btf.Signed}
	tU16  = &btf.Int{Name: "short unsigned int", Size: 2}
	tS32  = &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	tU32  = &btf.Int{Name: "unsigned int", Size: 4}
	tS64  = &btf.Int{Name: "long int", Size: 8, Encoding: btf.Signed}
	tU64  = &btf.Int{Name: "long unsigned int", Size: 8}
	tBool = &btf.Int{Name: "_Bool", Size: 1, Encoding: btf.Bool}
	tEnum = &btf.Enum{Name: "color", Size: 4, Signed: true, Values: []btf.EnumValue{
		{Name: "RED", Value: 0xffffffffffffffff}, {Name: "GREEN", Value: 5}, {Name: "BLUE", Value: 6}, {Name: "TWICE", Value: 1},
	}}
	tOther = &btf.Enum{Name: "other", Size: 4, Values: []btf.EnumValue{{Name: "TWICE", Value: 2}, {Name: "ALONE", Value: 77}}}
)

// user is a pointer to user space, as kernels have it that clang built.
func user(t btf.Type) *btf.Pointer {
	return &btf.Pointer{Target: &btf.TypeTag{Type: t, Value: "user"}}
}

// record is a struct with one of each.
//
//	struct record {
//		signed char c8; unsigned char u8; short s16; int s32; long s64; unsigned long u64; unsigned u32; u16_t u16; bool flag;
//		unsigned b3 : 3; int b5 : 5; unsigned long b17 : 17; (at byte 32)
//		unsigned long b35 : 35; long b29 : 29; (at byte 40)
//		union { unsigned anon; struct { u16_t low, high; }; }; (48)
//		enum color color; char name[16]; struct leaf { unsigned char a; short b; } leaves[4];
//		struct record __user *next; const char __user *text; struct hidden *hidden; int more[];
//	};
func record() *btf.Struct {
	leaf := &btf.Struct{Name: "leaf", Size: 4, Members: []btf.Member{{Name: "a", Type: tU8}, {Name: "b", Type: tS16, Offset: 16}}}
	u16 := &btf.Typedef{Name: "u16_t", Type: tU16}
	r := &btf.Struct{Name: "record", Size: 128}
	halves := &btf.Struct{Size: 4, Members: []btf.Member{{Name: "low", Type: u16}, {Name: "high", Type: u16, Offset: 16}}}
	union := &btf.Union{Size: 4, Members: []btf.Member{{Name: "anon", Type: tU32}, {Name: "", Type: halves}}}
	r.Members = []btf.Member{
		{Name: "c8", Type: tS8}, {Name: "u8", Type: tU8, Offset: 8}, {Name: "s16", Type: tS16, Offset: 16}, {Name: "s32", Type: tS32, Offset: 32},
		{Name: "s64", Type: tS64, Offset: 64}, {Name: "u64", Type: tU64, Offset: 128}, {Name: "u32", Type: tU32, Offset: 192},
		{Name: "u16", Type: u16, Offset: 224}, {Name: "flag", Type: tBool, Offset: 240},
		{Name: "b3", Type: tU32, Offset: 256, BitfieldSize: 3}, {Name: "b5", Type: tS32, Offset: 259, BitfieldSize: 5},
		{Name: "b17", Type: tU64, Offset: 264, BitfieldSize: 17},
		{Name: "b35", Type: tU64, Offset: 320, BitfieldSize: 35}, {Name: "b29", Type: tS64, Offset: 355, BitfieldSize: 29},
		{Name: "", Type: union, Offset: 384},
		{Name: "color", Type: tEnum, Offset: 416},
		{Name: "name", Type: &btf.Array{Index: tU32, Type: tChar, Nelems: 16}, Offset: 448},
		{Name: "leaves", Type: &btf.Array{Index: tU32, Type: leaf, Nelems: 4}, Offset: 576},
		{Name: "next", Type: user(r), Offset: 704},
		{Name: "text", Type: user(&btf.Const{Type: tChar}), Offset: 768},
		{Name: "hidden", Type: &btf.Pointer{Target: &btf.Fwd{Name: "hidden"}}, Offset: 832},
		{Name: "more", Type: &btf.Array{Index: tU32, Type: tS32}, Offset: 896},
	}
	return r
}

// smallSpec is BTF with one function, probe(struct record *r, s8 … u64, bool, enum).
func smallSpec(t testing.TB) *btf.Spec {
	t.Helper()
	proto := &btf.FuncProto{Return: tS32, Params: []btf.FuncParam{
		{Name: "r", Type: &btf.Pointer{Target: record()}},
		{Name: "ps8", Type: tS8}, {Name: "pu8", Type: tU8}, {Name: "ps16", Type: tS16}, {Name: "pu16", Type: tU16},
		{Name: "ps32", Type: tS32}, {Name: "pu32", Type: tU32}, {Name: "ps64", Type: tS64}, {Name: "pu64", Type: tU64},
		{Name: "flag", Type: tBool}, {Name: "color", Type: &btf.Typedef{Name: "color_t", Type: tEnum}},
	}}
	b, err := btf.NewBuilder([]btf.Type{&btf.Func{Name: "probe", Type: proto, Linkage: btf.GlobalFunc}, tOther}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.Spec()
	if err != nil {
		t.Fatal(err)
	}
	return s
}
