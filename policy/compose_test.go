package policy

import (
	"errors"
	"testing"
	"unicode/utf8"
)

// FuzzCompose shows that a value never becomes a field of its own, and that an error has its place in the value.
func FuzzCompose(f *testing.F) {
	for _, s := range []string{"/d", "/d op=all", `/a "b" c`, `/a\`, `/a\" times=3 "`, "/{a,b}", "/\x00", "a", "/a\nlost", `"/d"`, `/d" op="all`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		fields := []Field{{Name: "error", Value: "EIO"}, {Name: "path", Value: v}, {Name: "op", Value: "read"}}
		r, err := Compose("r", "io", fields, Defaults{})
		var wrong *FieldError
		if err != nil {
			if !errors.As(err, &wrong) || wrong.Offset < 0 || wrong.Offset > len(v) {
				t.Fatalf("%q: %v", v, err)
			}
			if wrong.Field != 1 && len(v) < MaxRuleLength-100 {
				t.Errorf("%q: the error %v is about field %d", v, err, wrong.Field)
			}
			return
		}
		want, err := CheckGlob(escapeQuotes(v))
		if err != nil || r.IO.Path != want {
			t.Errorf("%q became %q, not %q (%v)", v, r.IO.Path, want, err)
		}
		r.IO.Path, r.Text = "", ""
		if plain, err := ParseRule("r", "io error=EIO op=read path=/", Defaults{}); err != nil || r.IO.Ops != plain.IO.Ops || len(r.IO.Exclude) > 0 || r.Trigger != plain.Trigger || r.IO.Lost {
			t.Errorf("%q gave fields of its own: %+v", v, r)
		}
		if !utf8.ValidString(v) {
			t.Errorf("%q was taken", v)
		}
	})
}

// FuzzComposePredicate is the same of a predicate, which may have quotes, blanks and parentheses of its own.
func FuzzComposePredicate(f *testing.F) {
	for _, s := range []string{"a == 1", `a == "b c"`, `a == "\")"`, "a == '('", "(a)", "a\n&& b", "'", `"`, `\`, "a) error=EIO (b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, where string) {
		if !Balanced(where) {
			return
		}
		r, err := Compose("r", "kernel", []Field{{Name: "hook", Value: "syscall:mount(" + where + ")"}, {Name: "error", Value: "EPERM"}}, Defaults{})
		var wrong *FieldError
		if err != nil {
			if !errors.As(err, &wrong) || wrong.Offset < 0 || wrong.Offset > len(where)+len("syscall:mount()") {
				t.Fatalf("%q: %v", where, err)
			}
			return
		}
		if r.Kernel.Hook.Name != "mount" || ErrnoName(1) != r.Kernel.Error.String() || len(r.Kernel.Within) > 0 || r.Trigger.Times != 0 {
			t.Errorf("%q gave fields of its own: %+v", where, r)
		}
		checkRoundTrip(t, r)
	})
}
