package policy

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestMatch(t *testing.T) {
	tests := []struct {
		glob    string
		yes, no []string
	}{
		{"/data/**", []string{"/data", "/data/a", "/data/a/b/c", "/data/"}, []string{"/", "/dat", "/database", "/x/data/a"}},
		{"/**", []string{"/", "/a", "/a/b"}, []string{""}},
		{"/", []string{"/"}, []string{"/a"}},
		{"/data", []string{"/data"}, []string{"/data/a"}},
		{"/data/*", []string{"/data/a", "/data/.b"}, []string{"/data", "/data/a/b"}},
		{"/data/*.db", []string{"/data/a.db", "/data/.db"}, []string{"/data/a.dbx", "/data/x/a.db"}},
		{"/data/**/*.db", []string{"/data/a.db", "/data/x/y/a.db"}, []string{"/data/a", "/a.db"}},
		{"/**/wal/**", []string{"/wal", "/wal/1", "/a/b/wal/c/d"}, []string{"/a/walk/b"}},
		{"/d/?", []string{"/d/a", "/d/ä", "/d/\xff"}, []string{"/d/", "/d/ab", "/d"}},
		{"/d/{a,b/c}", []string{"/d/a", "/d/b/c"}, []string{"/d/b", "/d/c"}},
		{"/d{,/x}/**", []string{"/d", "/d/x", "/d/p"}, []string{"/dd"}},
		{"/*", []string{"/a"}, []string{"/", "/a/b"}},
		{"/*/**", []string{"/a", "/a/b"}, []string{"/"}},
		{"/d/a{,.bak}", []string{"/d/a", "/d/a.bak"}, []string{"/d/ab"}},
		{"/d/{a,{b,c}d}", []string{"/d/a", "/d/bd", "/d/cd"}, []string{"/d/b", "/d/d"}},
		{"/d/[a-c]", []string{"/d/a", "/d/c"}, []string{"/d/d", "/d/ab"}},
		{`/d/[\]\-]`, []string{"/d/]", "/d/-"}, []string{`/d/\`}},
		{"/d/[,]", []string{"/d/,"}, []string{"/d/", "/d/a"}},
		{"/d/[a-]", []string{"/d/a", "/d/-"}, []string{"/d/b"}},
		// A class must not reach over a slash: doublestar on its own lets it.
		{"/d[!a]e", []string{"/dbe"}, []string{"/d/e", "/dae"}},
		{"/d[^a]e", []string{"/dbe"}, []string{"/d/e", "/dae"}},
		{"/d[+-9]e", []string{"/d.e", "/d0e", "/d+e"}, []string{"/d/e"}},
		{"/d[!+-.]e", []string{"/d0e"}, []string{"/d/e", "/d.e"}},
		{`/d/\*`, []string{"/d/*"}, []string{"/d/a"}},
		{`/d/]`, []string{"/d/]"}, []string{"/d/"}},
		{`/d/\a`, []string{"/d/a"}, []string{`/d/\a`}},
		{`/d/\,`, []string{"/d/,"}, nil},
		{`/d/a"b c`, []string{`/d/a"b c`}, nil},
	}
	for _, tt := range tests {
		canonical, err := CheckGlob(tt.glob)
		if err != nil {
			t.Error(err)
			continue
		}
		f := IOFault{Path: canonical, Ops: setOf(OpRead)}
		for _, p := range tt.yes {
			if !f.Match(OpRead, p) {
				t.Errorf("%s does not match %q", tt.glob, p)
			}
			if f.Match(OpWrite, p) {
				t.Errorf("%s matches an operation that is not in the rule", tt.glob)
			}
		}
		for _, p := range tt.no {
			if f.Match(OpRead, p) {
				t.Errorf("%s matches %q", tt.glob, p)
			}
		}
	}
}

func TestMatchExclude(t *testing.T) {
	r, err := ParseRule("r", "io error=EIO op=meta path=/data/** exclude=/data/tmp/**,/data/*.log", Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"/data/a": true, "/data/tmp": false, "/data/tmp/a": false, "/data/tmpx": true, "/data/a.log": false, "/data/d/a.log": true,
	} {
		if r.IO.Match(OpOpen, path) != want {
			t.Errorf("%s: match is %v, want %v", path, !want, want)
		}
	}
}

func TestCheckGlobError(t *testing.T) {
	_, err := CheckGlob("/ä/../b")
	if want := `glob "/ä/../b", character 4: the path has a segment ".."; write the path that it leads to`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestGraftPath(t *testing.T) {
	for glob, want := range map[string]string{
		"/data/**": "/data", "/data/*.db": "/data", "/data/a.db": "/data/a.db", "/**": "/", "/": "/", "/*": "/",
		"/a/b?/c": "/a", "/a/[b]/c": "/a", "/a/{b,c}": "/a", "/a/{b/c,d}/e": "/a", `/a\*b/c/**`: "/a*b/c", "/a b/c/*": "/a b/c",
		"/a/b/**/c": "/a/b", `/a\,b`: "/a,b",
	} {
		if got := GraftPath(glob); got != want {
			t.Errorf("GraftPath(%s) = %s, want %s", glob, got, want)
		}
	}
}

func TestGraftPaths(t *testing.T) {
	rules := func(globs ...string) []Rule {
		var rs []Rule
		for _, g := range globs {
			rs = append(rs, Rule{Name: g, IO: &IOFault{Path: g}})
		}
		return rs
	}
	tests := []struct {
		globs []string
		want  map[string][]string
	}{
		{nil, map[string][]string{}},
		{[]string{"/data/**"}, map[string][]string{"/data": {"/data/**"}}},
		{[]string{"/data/sub/a", "/data/*", "/database/**", "/data/sub/**"}, map[string][]string{
			"/data": {"/data/sub/a", "/data/*", "/data/sub/**"}, "/database": {"/database/**"},
		}},
		{[]string{"/a/b", "/a/c", "/a/b"}, map[string][]string{"/a/b": {"/a/b", "/a/b"}, "/a/c": {"/a/c"}}},
		{[]string{"/a/b/c", "/**", "/d"}, map[string][]string{"/": {"/a/b/c", "/**", "/d"}}},
	}
	for _, tt := range tests {
		got := map[string][]string{}
		for top, rs := range GraftPaths(append(rules(tt.globs...), Rule{Name: "no io"})) {
			for _, r := range rs {
				got[top] = append(got[top], r.Name)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%v: %s", tt.globs, diff)
		}
	}
}

func TestTouches(t *testing.T) {
	tests := []struct {
		glob    string
		yes, no []string
	}{
		{"/data/**", []string{"/", "/data", "/data/a/b"}, []string{"/dat", "/other", "/other/data"}},
		{"/data/*.db", []string{"/", "/data", "/data/a.db"}, []string{"/data/a.log", "/data/a.db/x"}},
		{"/a/{b,c}/d", []string{"/a/b", "/a/c/d"}, []string{"/a/d", "/a/b/e"}},
		{"/a/{b/c,d}/e", []string{"/a/b/c", "/a/d"}, []string{"/b"}},
		{"/", []string{"/"}, []string{"/a"}},
	}
	for _, tt := range tests {
		f := IOFault{Path: tt.glob}
		for _, p := range tt.yes {
			if !f.Touches(p) {
				t.Errorf("%s does not touch %s", tt.glob, p)
			}
		}
		for _, p := range tt.no {
			if f.Touches(p) {
				t.Errorf("%s touches %s", tt.glob, p)
			}
		}
	}
}

// hostile are the slowest globs that the parser takes.
var hostile = []string{
	"/**/" + strings.Repeat("*a", MaxStars-2) + "b",
	"/" + strings.Repeat("*a", MaxStars-1) + "b",
	"/" + strings.Repeat("**/a*/", MaxStars/3) + "b",
	"/**/{a,*a}{a,*a}{a,*a}{a,*a}b",
	"/**/" + strings.Repeat("[a-y]", 20) + strings.Repeat("*a", 10) + "[!a]",
}

// TestMatchHostile shows that no glob takes a time out of proportion: the
// same stars and alternatives without limits would run for years.
func TestMatchHostile(t *testing.T) {
	for _, glob := range hostile {
		canonical, err := CheckGlob(glob)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, name := range []string{deepName, flatName} {
			if matchGlob(canonical, name) {
				t.Errorf("%s matches %s", glob, name)
			}
		}
	}
}

var (
	deepName = strings.Repeat("/"+strings.Repeat("a", 15), 255)
	flatName = "/" + strings.Repeat("a", 4000)
)

func BenchmarkMatchHostile(b *testing.B) {
	for _, glob := range hostile {
		b.Run(shortName(glob), func(b *testing.B) {
			for b.Loop() {
				matchGlob(glob, deepName)
			}
		})
	}
}

// oracle is the meaning of a glob, written a second time: as a regular
// expression over the alternatives of the glob.
func oracle(t *testing.T, canonical string) *regexp.Regexp {
	s := globScanner{in: canonical}
	if err := s.scan(); err != nil {
		t.Fatalf("canonical glob %q: %v", canonical, err)
	}
	all, err := expand(s.out)
	if err != nil {
		t.Fatalf("canonical glob %q: %v", canonical, err)
	}
	var options []string
	for _, g := range all {
		var b strings.Builder
		segs := segments(g)
		for i, seg := range segs {
			if last := i == len(segs)-1; isDoubleStar(seg[1:]) && last {
				b.WriteString("(/.*)?")
				continue
			} else if isDoubleStar(seg[1:]) {
				b.WriteString("(/[^/]*)*")
				continue
			}
			b.WriteString("/")
			var class, literal []byte
			for i, c := range seg[1:] {
				switch {
				case c.kind == cellClass:
					class = append(class, c.b)
					if i+2 == len(seg) || c.b == ']' && class[len(class)-2] != '\\' || seg[i+2].kind != cellClass {
						b.WriteString(classRegexp(string(class)))
						class = nil
					}
				case c.kind == cellWild && c.b == '*':
					b.WriteString("[^/]*")
				case c.kind == cellWild:
					b.WriteString("[^/]")
				default:
					literal = append(literal, c.b)
				}
				if len(literal) > 0 && (i+2 == len(seg) || seg[i+2].kind != cellLiteral) {
					name, _ := unescape(string(literal))
					b.WriteString(regexp.QuoteMeta(name))
					literal = nil
				}
			}
		}
		options = append(options, b.String())
	}
	re, rerr := regexp.Compile("(?s)^(" + strings.Join(options, "|") + ")$")
	if rerr != nil {
		t.Skip(rerr) // a class of characters that regular expressions spell in another way
	}
	return re
}

func classRegexp(class string) string {
	// The escapes of a canonical class are escapes of a regular expression, too.
	return strings.Replace(strings.Replace(class, `[!`, `[^`, 1), `[:`, `[\:`, 1)
}

func TestMatchAgainstRegexp(t *testing.T) {
	segment := rapid.SampledFrom([]string{"a", "b", "*", "?", "**", "a*", "*b", "[ab]", "[!a]", "[!-~]", "{a,b}", "{a,b/c}", "a{,b}", "{*,a}{*,b}", "{,a}", `\*`, "*a*", "a?b"})
	name := rapid.SampledFrom([]string{"a", "b", "c", "ab", "aab", "ba", "*", "acb"})
	rapid.Check(t, func(rt *rapid.T) {
		glob := "/" + strings.Join(rapid.SliceOfN(segment, 1, 4).Draw(rt, "glob"), "/")
		path := "/" + strings.Join(rapid.SliceOfN(name, 0, 5).Draw(rt, "path"), "/")
		canonical, err := CheckGlob(glob)
		if err != nil {
			return
		}
		want := oracle(t, canonical).MatchString(path)
		if path == "/" {
			want = canonical == "/" || canonical == "/**"
		}
		if got := matchGlob(canonical, path); got != want {
			rt.Fatalf("%s on %s: %v, the regular expression says %v", canonical, path, got, want)
		}
		if want && !(&IOFault{Path: canonical}).Touches(path) {
			rt.Fatalf("%s matches %s but does not touch it", canonical, path)
		}
		if top := GraftPath(canonical); want && top != "/" && path != top && !strings.HasPrefix(path, top+"/") {
			rt.Fatalf("%s matches %s, which is not under the layer's path %s", canonical, path, top)
		}
	})
}

func TestGraftPathsOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var rules []Rule
		for _, g := range rapid.SliceOfN(rapid.SampledFrom([]string{"/a/**", "/a/b/*", "/a/b", "/ab", "/c/d/e", "/c/*/e", "/c/d/**"}), 0, 8).Draw(rt, "globs") {
			rules = append(rules, Rule{IO: &IOFault{Path: g}})
		}
		groups := GraftPaths(rules)
		total := 0
		for _, a := range slices.Collect(maps.Keys(groups)) {
			total += len(groups[a])
			for b := range groups {
				if a != b && strings.HasPrefix(b, a+"/") {
					rt.Fatalf("the layers %s and %s nest", a, b)
				}
			}
		}
		if total != len(rules) {
			rt.Fatalf("%d rules went in, %d came out", len(rules), total)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	const name = "/var/lib/postgresql/data/pg_wal/000000010000000000000001"
	for _, glob := range []string{
		"/var/lib/postgresql/**", "/var/lib/postgresql/data/pg_wal/*", "/var/lib/**/pg_wal/*", "/other/**",
		"/var/lib/postgresql/data/{pg_wal,base}/**",
	} {
		b.Run(glob, func(b *testing.B) {
			f := IOFault{Path: glob, Ops: GroupAll}
			b.ReportAllocs()
			for b.Loop() {
				f.Match(OpWrite, name)
			}
		})
	}
}
