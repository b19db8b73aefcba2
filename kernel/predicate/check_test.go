package predicate_test

import (
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/kernel/predicate"
)

func TestCheckErrors(t *testing.T) {
	s := smallSpec(t)
	for _, c := range []struct{ text, message, fix string }{
		// names
		{"^q == 1", "probe has no parameter q", "its parameters are: r, ps8"},
		{"^pu9 == 1", "probe has no parameter pu9", "did you mean pu8?"},
		{"^arg11 == 1", "no parameter arg11", "its parameters are"},
		{"r->^s23 == 1", "struct record has no member s23", "did you mean s32?"},
		{"r->^zzzzzz == 1", "struct record has no member zzzzzz", "it has: c8, u8, s16, s32, s64, u64, u32, u16, flag, b3, b5, b17, …"},
		{"r->leaves[1].^c == 1", "struct leaf has no member c", "it has: a, b"},
		{"r->leaves->^a == 1", "is an array (struct leaf[4])", "r->leaves[0]->a"},
		{"ps8.^x == 1", "ps8 is signed char, which has no members", ""},
		{"r->hidden->^x == 1", "the members of struct hidden are not in the kernel's BTF", ""},
		{"ps32 == ^MS_RDONNLY", "no enum constant of this kernel", "#define"},
		{"color == ^GREN", "no enum constant", "did you mean GREEN?"},
		{"ps32 == ^TWICE", "different values in enum color, enum other", "write the number"},
		// types
		{`^r == "x"`, "r is struct record *, which is no string", "did you mean r->name or r->text?"},
		{`^ps8 == "x"`, "no string", "'x'"},
		{`^ps32 startswith "xy"`, "ps32 is int, which is no string", ""},
		{`r->name ^< "x"`, "strings have no order", "startswith"},
		{`r->name startswith ^ps8`, "where a string literal should be", `r->name startswith "…"`},
		{`"a" ^== "b"`, "two literals", ""},
		{`r->name startswith ^""`, "every string", ""},
		{`^"a"`, "a string is no condition", "compare it"},
		{`r->^name`, "r->name is char[16], which cannot be compared", `r->name == "…"`},
		{`r->^leaves`, "cannot be compared", "r->leaves[0]"},
		{`r->leaves[^0] == 1`, "struct leaf, which cannot be compared", "a, b"},
		{`r == ^5`, "r is a pointer", "NULL"},
		{`r ^< r->next`, "pointers have no order", "== and !="},
		{`r->text ^== r->text`, "two addresses", "literal"},
		{`^r + 1 == 2`, "a pointer", ""},
		{`1 + ^"a" == 2`, "string", ""},
		{`(ps8 ^== 1) + 1 == 2`, "true or false", "&&"},
		{`1 == ^!ps8`, "true or false", "alone"},
		{`^startswith(r->name, "x") == 1`, "true or false", "alone"},
		{`r->name == ^"0123456789abcdefg"`, "room for 16 bytes; this string has 17", ""},
		{`r->leaves[^4].a == 1`, "index 4 is beyond r->leaves (struct leaf[4])", "the last is 3"},
		{`ps8[^0] == 1`, "not an array or pointer", ""},
		{`STRNCMP(r->name, ^ps8, 8)`, "compares a string with a literal", "STRNCMP(r->name"},
		{`STRNCMP(r->name, "x", ^ps8)`, "number of bytes", ""},
		{`STRNCMP(r->name, "x", ^0)`, "number of bytes", ""},
		{`ps8 << ^ps8 == 1`, "from 0 to 63", ""},
		{`ps8 >> ^64 == 1`, "from 0 to 63", ""},
		// ranges
		{"pu8 == ^256", "never true: pu8 is unsigned char (unsigned 8 bit, 0 to 255)", ""},
		{"pu8 == ^-1", "never true", "the same bits are 255"},
		{"ps32 == ^0xffffffff", "never true", "the same bits are -1"},
		{"ps8 != ^128", "always true", "the same bits are -128"},
		{"pu8 < ^0", "never true", ""},
		{"pu8 <= ^256", "always true", ""},
		{"^300 > pu8", "always true", ""},
		{"ps64 > ^9223372036854775807", "never true", ""},
		{"r->b3 == ^8", "unsigned 3 bit, 0 to 7", ""},
		{"flag == ^2", "never true", "true or false"},
		{"r->flag > ^1", "never true", "true or false"},
		{"pu16 & ^0x10000", "has bits that pu16 has not", ""},
		{"pu16 & ^O_RDONLY", "O_RDONLY is 0", "O_ACCMODE"},
		{"ps8 == ^-18446744073709551615", "does not fit into 64 bits", ""},
		{"ps8 == 1 << 40 ^<< 40", "does not fit", ""},
		// constants
		{"^false", "never true", ""},
		{"ps8 == 1 ^&& 1 == 2", "never true", ""},
	} {
		text, line, column := where(c.text)
		t.Run(text, func(t *testing.T) {
			e, err := predicate.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			o := predicate.Options{Spec: s, Function: "probe", Arguments: predicate.TypedContext(), Fail: "no"}
			err = predicate.Check(e, o)
			wrongAt(t, err, line, column, c.message, c.fix)
			if _, again := predicate.Compile(e, o); again == nil || again.Error() != err.Error() {
				t.Errorf("Compile: %v, Check: %v", again, err)
			}
		})
	}
}

func TestParamsErrors(t *testing.T) {
	s := smallSpec(t)
	for _, c := range []struct{ text, message, fix string }{
		{"struct record *r, ^struct recrd *q", "parameter 2 of probe is signed char in this kernel, not struct recrd *", "struct record *r, signed char ps8"},
		{"^struct leaf *r", "not struct leaf *", "leave the parameters out"},
		{"^int", "parameter 1 of probe is struct record *", "struct record"},
		{"struct record *r^; int x", "is not part", "operators"},
		{"struct record *r ^int", "where a comma", ""},
		{"struct record *r,^", "the end where a type", ""},
		{"int ^(*f)(void)", "pointer to a function", "BTF"},
		{"^foo bar baz", "no parameter", ""},
		{"^unsigned unsigned x", "no type", ""},
	} {
		text, line, column := where(c.text)
		t.Run(text, func(t *testing.T) {
			_, err := predicate.ParseParams(s, "probe", text)
			wrongAt(t, err, line, column, c.message, c.fix)
		})
	}
	if _, err := predicate.ParseParams(s, "nothing", "int x"); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("of an unknown function: %v", err)
	}
	e, err := predicate.Parse("rec->u8 == 3 && ps8 == 1 && num == 2 && arg3 == 4 && pu16 == 5")
	if err != nil {
		t.Fatal(err)
	}
	params, err := predicate.ParseParams(s, "probe", "const struct record *rec, signed char, unsigned char num, short, unsigned short int")
	if err != nil {
		t.Fatal(err)
	}
	if err := predicate.Check(e, predicate.Options{Spec: s, Function: "probe", Params: params}); err != nil {
		t.Error(err)
	}
}

func FuzzParams(f *testing.F) {
	s := smallSpec(f)
	f.Add("struct record *r, signed char x")
	f.Add("const unsigned long long int *a[3], void")
	f.Fuzz(func(t *testing.T, text string) {
		params, err := predicate.ParseParams(s, "probe", text)
		if err == nil && len(params) != 11 {
			t.Fatalf("%q: %d parameters", text, len(params))
		}
	})
}
