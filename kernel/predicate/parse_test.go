package predicate_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/kernel/predicate"
)

// where gives the place that "^" marks in text, and the text without it.
func where(marked string) (text string, line, column int) {
	before, after, _ := strings.Cut(marked, "^")
	line = strings.Count(before, "\n") + 1
	column = len([]rune(before[strings.LastIndex(before, "\n")+1:])) + 1
	return before + after, line, column
}

func wrongAt(t *testing.T, err error, line, column int, message, fix string) {
	t.Helper()
	var e *predicate.Error
	if !errors.As(err, &e) {
		t.Fatalf("no error of the predicate: %v", err)
	}
	if e.Line != line || e.Column != column {
		t.Errorf("%v: at %d:%d, want %d:%d", err, e.Line, e.Column, line, column)
	}
	if !strings.Contains(e.Message, message) {
		t.Errorf("message %q, want %q", e.Message, message)
	}
	if !strings.Contains(e.Fix, fix) || fix == "" && e.Fix != "" {
		t.Errorf("fix %q, want %q", e.Fix, fix)
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ text, canonical string }{
		{"a==b", "a == b"},
		{" a\t->b\n. c [ 0x10 ] != 'x'", "a->b.c[16] != 'x'"},
		{"!a&&b||(c)", "!a && b || (c)"},
		{"a->b", "a->b"},
		{"x&1", "x & 1"},
		{"(x & 1) == 1 && y|z", "(x & 1) == 1 && y | z"},
		{"x + 1 - 2 << 3 < 7", "x + 1 - 2 << 3 < 7"},
		{`name startswith "a" "b\t\x41\101\"\\"`, `name startswith "ab\x09AA\"\\"`},
		{`startswith(n,"é")`, `startswith(n, "é")`},
		{`STRNCMP(name->name, "bananas", 8)`, `STRNCMP(name->name, "bananas", 8)`},
		{`!STRCMP(n,"b")`, `!STRCMP(n, "b")`},
		{"-x == -0x10UL", "-x == -0x10UL"},
		{"~x & 017", "~x & 017"},
		{`c == '\0' || c == '\'' || c == '\n'`, `c == '\x00' || c == '\'' || c == '\x0a'`},
		{"*p == 1", "*p == 1"},
		{"a == 0b101", "a == 0b101"},
	} {
		e, err := predicate.Parse(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if e.String() != c.canonical || e.Text() != c.text {
			t.Errorf("%s is %s, want %s", c.text, e, c.canonical)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ text, message, fix string }{
		{"^", "empty", "write a condition"},
		{" \n ^", "empty", "write a condition"},
		{"a ^= 5", `"=" assigns`, `"=="`},
		{"a == ^", "the end where a parameter", ""},
		{"a == 5^)", `")" where an operator`, "no"},
		{"(a == 5^", `"(" at 1:1`, ""},
		{"a ^and b", `"and" where an operator`, "&& || !"},
		{"a ^contains \"x\"", "where an operator", "startswith"},
		{"a ^$ b", "'$' is not part", ""},
		{"a ^% 2 == 0", "'%' is not part", "operators are"},
		{"a == ^“x”", "is not part", "straight quotes"},
		{"a == ^\"x", "does not end", ""},
		{"a == ^\"x\ny\"", "does not end", ""},
		{`a == "x^\q"`, "unknown escape", `\n \t`},
		{`a == "x^\0"`, "ends a string", "leave it out"},
		{`a == ^'bananas'`, "7 bytes in a character literal", `"bananas"`},
		{`a == ^''`, "0 bytes", "double quotes"},
		{"a == ^08", "not a number", "octal"},
		{"a == ^5x", "not a number", "0x1f"},
		{"a == ^1.5", "whole", ""},
		{"a == ^18446744073709551616", "64 bits", ""},
		{"a->^5", `"5" where the name of a member`, ""},
		{"a[^b] == 1", "where a number should be", "[0]"},
		{"a[1 ^== 1", `"]" should be`, ""},
		{"^sizeof(a) == 4", "no sizeof", "number"},
		{"^strcmp(a, \"b\") == 0", "no function strcmp", "startswith"},
		{"^foo(a)", "no function foo", "STRNCMP"},
		{"^STRNCMP(a, \"b\")", "takes 3 arguments", ""},
		{"^STRCMP()", "takes 2 arguments", ""},
		{"^startswith", "without a string on its left", "prefix"},
		{"(^struct foo *)a == 0", "casts", "BTF"},
		{"a == ^&b", "addresses", "member"},
		// C's traps
		{"a & b ^== c", "C reads this as a & (b == c)", "write (a & b) == c"},
		{"a ^== b & c", "C reads this as (a == b) & c", "write a == (b & c)"},
		{"x && flags | 1 ^!= 3", "C reads this as flags | (1 != 3)", "write (flags | 1) != 3"},
		{"a < b ^< c", "compares the result of a comparison", "&&"},
		{"a == b ^!= c", "compares the result", "&&"},
		{"!a ^== b", "C reads this as (!a) == b", "write !(a == b)"},
		{strings.Repeat("(", 32) + "^a", "more than 32 operators", ""},
		{strings.Repeat("!", 31) + "^!a", "more than 32", ""},
		{"a" + strings.Repeat("->b", 33) + "^->b", "more than 32 members", ""},
		{"é == 1", "", ""},
	} {
		text, line, column := where(c.text)
		if c.message == "" {
			_, err := predicate.Parse(text)
			wrongAt(t, err, 1, 1, "'é' is not part", "")
			continue
		}
		_, err := predicate.Parse(text)
		if err == nil {
			t.Errorf("%s: no error", text)
			continue
		}
		t.Run(text, func(t *testing.T) { wrongAt(t, err, line, column, c.message, c.fix) })
	}
	for _, long := range []string{
		strings.Repeat("a", predicate.MaxLength+1),
		`a == "` + strings.Repeat("x", predicate.MaxString+1) + `"`,
		`a == "` + strings.Repeat("x", predicate.MaxString) + `" "x"`,
		"a" + strings.Repeat("||a", 200),
	} {
		if _, err := predicate.Parse(long); err == nil {
			t.Errorf("%.20s… of %d characters: no error", long, len(long))
		}
	}
}

// FuzzParse: the canonical text of what parses parses to the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`name->name == "bananas" && parent->d_inode->i_ino > 5`, `(flags & MS_RDONLY) != 0`, `!STRNCMP(name->name, "b\x00", 8)`,
		`a.b[3] startswith "x" || -c >> 2 <= 'y'`, `*p ^ ~q | r + 0x10ul`, "((a", `"`, `'\'`,
	} {
		f.Add(s)
	}
	s := smallSpec(f)
	f.Fuzz(func(t *testing.T, text string) {
		e, err := predicate.Parse(text)
		if err != nil {
			var wrong *predicate.Error
			if !errors.As(err, &wrong) || wrong.Line < 1 || wrong.Column < 1 || wrong.Message == "" {
				t.Fatalf("%q: %#v", text, err)
			}
			return
		}
		again, err := predicate.Parse(e.String())
		if len([]rune(e.String())) > predicate.MaxLength {
			return
		}
		if err != nil || again.String() != e.String() {
			t.Fatalf("%q is %q, which is %v (%v)", text, e, again, err)
		}
		o := predicate.Options{Spec: s, Function: "probe", Arguments: predicate.TypedContext(), Fail: "no", Prefix: "p"}
		checked := predicate.Check(e, o)
		code, err := predicate.Compile(e, o)
		if checked != nil && err == nil {
			t.Fatalf("%q: compiles, but: %v", text, checked)
		}
		if err == nil && len(code) > predicate.MaxInstructions {
			t.Fatalf("%q: %d instructions", text, len(code))
		}
	})
}
