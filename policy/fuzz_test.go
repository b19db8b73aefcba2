package policy

import (
	"errors"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// FuzzParseRule shows that a text is either refused with a place inside it, or
// gives a rule that survives its own text and JSON and stays in the bounds.
func FuzzParseRule(f *testing.F) {
	for _, s := range []string{
		"io error=EIO op=fsync+write path=/data/** p=5% times=10 ttl=5m",
		`io latency=5ms op=data path="/a \"b\"/{c,[!d-f]}*" exclude=/a/\,,"/b c" nth=3 seed=1`,
		"io error=EIO op=all path=/ after=1 every=2 p=1e-300", "kernel hook=slab", "", "io  = ", `io path="`, "io hang", "io path=/{a,b}{c,d}/**",
		"io error=EIO op=meta path=/[+-9]",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRule("fuzz", text, Defaults{})
		if err != nil {
			checkError(t, err, text)
			return
		}
		checkRoundTrip(t, r)
		tr := r.Trigger
		if math.IsNaN(tr.P) || tr.P < 0 || tr.P > 1 || tr.TTL <= 0 || tr.TTL > DefaultMaxTTL || r.IO.Ops == 0 || len(r.IO.Errors) == 0 && r.IO.Latency == nil {
			t.Errorf("out of bounds: %+v, %+v", r.IO, tr)
		}
		if top := GraftPath(r.IO.Path); !strings.HasPrefix(top, "/") || strings.Contains(top+"/", "/../") {
			t.Errorf("graft path %q", top)
		}
	})
}

func checkError(t *testing.T, err error, text string) {
	t.Helper()
	var syntax *SyntaxError
	if !errors.As(err, &syntax) {
		t.Fatalf("%T is not a SyntaxError", err)
	}
	if syntax.Message == "" || syntax.Column < 0 || syntax.Column > utf8.RuneCountInString(text)+1 {
		t.Errorf("column %d, message %q for a text of %d characters", syntax.Column, syntax.Message, utf8.RuneCountInString(text))
	}
	for _, r := range syntax.Detail() {
		if r != '\n' && !printableRune(r) {
			t.Errorf("the error %q would write %q to a terminal", err, r)
		}
	}
}

// FuzzLabels shows that nothing is dropped: each key of the domain gives a
// rule, a problem, or is for another container or overridden.
func FuzzLabels(f *testing.F) {
	f.Add("wal.faultgraft.io", "io error=EIO op=read path=/d", "wal.faultgraft.io/pod", "io error=EIOO", "pg")
	f.Add("enable.faultgraft.io", "false", "x.faultgraft.io/container.pg", "io latency=1s op=all path=/**", "pg")
	f.Add("policy.faultgraft.io", "p", "faultgraft.io/x", "", "")
	f.Add("a.faultgraft.io/container.", "io", "A.FAULTGRAFT.IO", "io", "x")
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2, self string) {
		res := ParseLabels(Subject{Labels: map[string]string{key1: value1, key2: value2}, ContainerName: self}, Defaults{})
		for _, p := range res.Problems {
			checkError(t, p, p.Text)
		}
		for _, r := range res.Rules {
			checkRoundTrip(t, r)
		}
		if res.Disabled {
			if len(res.Rules) != 0 {
				t.Error("disabled, and yet there are rules")
			}
			return
		}
		one := ParseLabels(Subject{Labels: map[string]string{key1: value1}, ContainerName: self}, Defaults{})
		if n := len(one.Rules) + len(one.Problems); ours(key1) != (n == 1) {
			_, scope, _ := strings.Cut(key1, "/")
			enabled := key1 == "enable."+Domain || strings.HasPrefix(key1, "enable."+Domain+"/")
			if n != 0 || !enabled && (!strings.HasPrefix(scope, "container.") || scope == "container."+self) {
				t.Errorf("label %q=%q alone gives %d rules and problems", key1, value1, n)
			}
		}
	})
}

// FuzzGlob shows that a canonical glob is stable, and that matcher, regular
// expression, Touches and GraftPath agree about it.
func FuzzGlob(f *testing.F) {
	f.Add("/data/**", "/data/a/b")
	f.Add("/a/{b,[!c]d}*", "/a/xd")
	f.Add(`/**/\*?[a-]`, "/x/*y-")
	f.Add("/d[+-9]e/{x,y/z}/**", "/d.e/y/z")
	f.Add("/a{,/b}/**/c", "/a/b/c")
	f.Fuzz(func(t *testing.T, glob, name string) {
		canonical, err := CheckGlob(glob)
		if err != nil {
			return
		}
		again, err := CheckGlob(canonical)
		if err != nil || again != canonical {
			t.Fatalf("%q is canonically %q, and that %q, %v", glob, canonical, again, err)
		}
		literal, err := CheckGlob(EscapeGlob(GraftPath(canonical)))
		if err != nil || GraftPath(literal) != GraftPath(canonical) {
			t.Fatalf("the layer's path %q of %q is no path: %v", GraftPath(canonical), canonical, err)
		}
		if !utf8.ValidString(name) || !strings.HasPrefix(name, "/") || strings.Contains(name, "//") || len(name) > 1 && strings.HasSuffix(name, "/") {
			return // not a clean path, or one that the regular expression cannot take
		}
		fault := IOFault{Path: canonical, Ops: GroupAll}
		got := fault.Match(OpRead, name)
		want := oracle(t, canonical).MatchString(name)
		if name == "/" {
			want = canonical == "/" || canonical == "/**"
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q on %q: %s", canonical, name, diff)
		}
		if got && !fault.Touches(name) {
			t.Errorf("%q matches %q but does not touch it", canonical, name)
		}
		if top := GraftPath(canonical); got && top != "/" && name != top && !strings.HasPrefix(name, top+"/") {
			t.Errorf("%q matches %q, which is not below the layer's path %q", canonical, name, top)
		}
	})
}
