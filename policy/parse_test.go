package policy

import (
	"encoding/json"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseRule(t *testing.T) {
	const base = "io error=EIO op=fsync path=/d/** "
	rule := func(change func(*Rule)) Rule {
		r := Rule{Name: "r", IO: &IOFault{Path: "/d/**", Ops: setOf(OpFsync), Errors: []WeightedErrno{{syscall.EIO, 1}}}, Trigger: Trigger{P: 1, TTL: DefaultTTL}}
		change(&r)
		return r
	}
	tests := []struct {
		text string
		want func(*Rule)
	}{
		{base, func(*Rule) {}},
		{"  io\terror=EIO\n op=fsync  path=/d/**\r\n", func(*Rule) {}},
		{"io error=ENOSPC op=fsync path=/d/**", func(r *Rule) { r.IO.Errors = []WeightedErrno{{syscall.ENOSPC, 1}} }},
		{"io error=EWOULDBLOCK op=fsync path=/d/**", func(r *Rule) { r.IO.Errors = []WeightedErrno{{syscall.EAGAIN, 1}} }},
		{"io error=ENOTSUP op=fsync path=/d/**", func(r *Rule) { r.IO.Errors = []WeightedErrno{{syscall.EOPNOTSUPP, 1}} }},
		{"io latency=1m30s op=fsync path=/d/**", func(r *Rule) { r.IO.Errors, r.IO.Latency = nil, &Latency{Base: 90 * time.Second} }},
		{base + "latency=5us", func(r *Rule) { r.IO.Latency = &Latency{Base: 5 * time.Microsecond} }},
		{"io error=EIO op=write+fsync path=/d/**", func(r *Rule) { r.IO.Ops = setOf(OpWrite, OpFsync) }},
		{"io error=EIO op=write,fsync,mmap-write path=/d/**", func(r *Rule) { r.IO.Ops = setOf(OpWrite, OpFsync, OpMmapWrite) }},
		{"io error=EIO op=data path=/d/**", func(r *Rule) { r.IO.Ops = GroupData }},
		{"io error=EIO op=meta path=/d/**", func(r *Rule) { r.IO.Ops = GroupMeta &^ opsReleasing }},
		{"io error=EIO op=sync+read path=/d/**", func(r *Rule) { r.IO.Ops = GroupSync.With(OpRead) }},
		{"io latency=1s op=release path=/d/**", func(r *Rule) {
			r.IO.Errors, r.IO.Latency, r.IO.Ops = nil, &Latency{Base: time.Second}, setOf(OpRelease)
		}},
		{"io error=EIO op=meta+read path=/d/**", func(r *Rule) { r.IO.Ops = GroupMeta.With(OpRead) &^ opsReleasing }},
		{"io error=EIO op=all path=/d/**", func(r *Rule) { r.IO.Ops = GroupAll &^ opsReleasing }},
		{"io error=EIO op=fsync path=/", func(r *Rule) { r.IO.Path = "/" }},
		{`io error=EIO op=fsync path="/d/a \"b\" c"`, func(r *Rule) { r.IO.Path = `/d/a "b" c` }},
		{`io error=EIO op=fsync path="/d/\*\\"`, func(r *Rule) { r.IO.Path = `/d/\*\\` }},
		{`io error=EIO op=fsync path=/d/\a\,b`, func(r *Rule) { r.IO.Path = `/d/a\,b` }},
		{`io error=EIO op=fsync path=/d/{a,b=c}`, func(r *Rule) { r.IO.Path = `/d/{a,b=c}` }},
		{`io error=EIO op=fsync path=/d/[!a-c]`, func(r *Rule) { r.IO.Path = `/d/[!/a-c]` }},
		{base + `exclude=/d/{a,b},/d/[,]c,"/d/e f","/d/g,/d/h"`, func(r *Rule) {
			r.IO.Exclude = []string{`/d/{a,b}`, `/d/[\,]c`, `/d/e f`, `/d/g`, `/d/h`}
		}},
		{base + "p=5%", func(r *Rule) { r.Trigger.P = 0.05 }},
		{base + "p=0.05", func(r *Rule) { r.Trigger.P = 0.05 }},
		{base + "p=.5", func(r *Rule) { r.Trigger.P = 0.5 }},
		{base + "p=1e-9", func(r *Rule) { r.Trigger.P = 1e-9 }},
		{base + "p=0", func(r *Rule) { r.Trigger.P = 0 }},
		{base + "p=0.0e0%", func(r *Rule) { r.Trigger.P = 0 }},
		{base + "p=1", func(*Rule) {}},
		{base + "p=100%", func(*Rule) {}},
		{base + "after=0 every=1 times=3", func(r *Rule) { r.Trigger.Every, r.Trigger.Times = 1, 3 }},
		{base + "after=100 every=50", func(r *Rule) { r.Trigger.After, r.Trigger.Every = 100, 50 }},
		{base + "nth=1", func(r *Rule) { r.Trigger.Times = 1 }},
		{base + "nth=7", func(r *Rule) { r.Trigger.After, r.Trigger.Times = 6, 1 }},
		{base + "ttl=24h", func(r *Rule) { r.Trigger.TTL = 24 * time.Hour }},
		{base + "seed=0", func(r *Rule) { r.Trigger.Seeded = true }},
		{base + "seed=18446744073709551615", func(r *Rule) { r.Trigger.Seed, r.Trigger.Seeded = 1<<64-1, true }},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			got, err := ParseRule("r", tt.text, Defaults{})
			if err != nil {
				t.Fatal(err)
			}
			want := rule(tt.want)
			want.Text = tt.text
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			checkRoundTrip(t, got)
		})
	}
}

// checkRoundTrip shows that a rule survives its own text and JSON.
func checkRoundTrip(t *testing.T, r Rule) {
	t.Helper()
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	again, err := ParseRule(r.Name, r.String(), Defaults{MaxTTL: r.Trigger.TTL})
	if err != nil {
		t.Fatalf("the rule's own text %q: %v", r.String(), err)
	}
	again.Text = r.Text
	if diff := cmp.Diff(r, again); diff != "" {
		t.Errorf("the rule's own text %q: %s", r.String(), diff)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var decoded Rule
	if err := json.Unmarshal(b, &decoded); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if diff := cmp.Diff(r, decoded); diff != "" {
		t.Errorf("%s: %s", b, diff)
	}
}

// TestParseRuleErrors shows F11: each wrong rule is refused, with its place.
// The place is marked in the text by a ^ before the offending character.
func TestParseRuleErrors(t *testing.T) {
	long := func(n int) string { return strings.Repeat("a", n) }
	tests := []struct{ text, message, fix string }{
		{"^", "the rule is empty", "write for instance: io error=EIO"},
		{"^  ", "the rule is empty", ""},
		{"^oi error=EIO", `unknown kind of fault "oi"`, "did you mean io?"},
		{"^xyz error=EIO", `unknown kind of fault "xyz"`, "start the rule with io"},
		{"^error=EIO op=fsync path=/d", `the kind of fault is missing before "error"`, "start the rule with io"},
		{"^io=1", `unknown kind of fault "io"`, ""},

		{"io ^eror=EIO op=fsync path=/d", `unknown field "eror"`, "did you mean error?"},
		{"io ^Error=EIO", `unknown field "Error"`, "did you mean error?"},
		{"io ^banana=1", `unknown field "banana"`, "the fields are throttle, latency, hang, error"},
		{"io error=EIO ^error=EIO", `field "error" is given twice`, "leave one of them out"},
		{"io ^error op=fsync", `field "error" has no value`, ""},
		{"io ^error= op=fsync", `field "error" has no value`, ""},
		{`io ^path="" op=fsync`, `field "path" has no value`, ""},
		{"io error ^= EIO", "= without a field's name before it", "without blanks"},
		{"io error=EIO ^fsync", `"fsync" is not a field`, ""},
		{"io error=EIO path=/a ^b op=read", `"b" is not a field`, "in double quotes"},

		{"io error=^EIOO op=fsync path=/d", `unknown errno "EIOO"`, "did you mean EIO?"},
		{"io error=^eio op=fsync path=/d", `unknown errno "eio"`, "did you mean EIO?"},
		{"io error=^5 op=fsync path=/d", `unknown errno "5"`, "use a name of errno(3)"},
		{"io error=^ENOSYS op=fsync path=/d", "ENOSYS would switch the operation off", "use EOPNOTSUPP"},
		{"io op=fsync path=/d^", "the rule does nothing: no action is given", "add error=EIO, latency=100ms or another action"},
		{"io error=EIO path=/d^ ", "op is missing", ""},
		{"io error=EIO op=fsync^", "path is missing", ""},

		{"io op=^fsnyc", `unknown operation "fsnyc"`, "did you mean fsync?"},
		{"io op=read+^stat", `unknown operation "stat"`, "did you mean getattr?"},
		{"io op=read+^xyzzy", `unknown operation "xyzzy"`, "the groups are data, meta, sync and all"},
		{"io op=read+^+write", "an operation is missing", ""},
		{"io op=read,^", "an operation is missing", ""},
		{"io error=EIO path=/d op=read+^release", "release cannot fail", "use flush"},
		{"io error=EIO path=/d op=^releasedir", "releasedir cannot fail", "use flush"},
		{"io op=^READ", `unknown operation "READ"`, "did you mean read?"},

		{"io latency=^5", "latency=5 has no unit", "did you mean 5s?"},
		{"io latency=^0s", "latency=0s makes no sense", ""},
		{"io latency=^-1s", "latency=-1s is negative", ""},
		{"io latency=^300000000h", "is not a duration", "up to 292 years"},
		{"io latency=^soon", "latency=soon is not a duration", ""},
		{"io latency=^2m ttl=1m op=read path=/d", "a latency of 2m0s is longer than the rule lives (ttl 1m0s)", ""},
		{"io ttl=^0s", "ttl=0s makes no sense", ""},
		{"io ttl=^-5m", "ttl=-5m is negative", ""},
		{"io ttl=^25h", "ttl=25h is longer than this node allows", "the limit is 24h0m0s"},
		{"io ttl=^forever", "ttl=forever is not a duration", ""},

		{"io p=^1.5", "p=1.5 is above 1", "did you mean 1.5%?"},
		{"io p=^5", "p=5 is above 1", "did you mean 5%?"},
		{"io p=^500", "p=500 is above 1", "write a share"},
		{"io p=^101%", "p=101% is above 100%", ""},
		{"io p=^1e999", "p=1e999 is above 100%", ""},
		{"io p=^-0.1", "p=-0.1 is below 0", ""},
		{"io p=^NaN", "p=NaN is not a probability", ""},
		{"io p=^Inf", "p=Inf is not a probability", ""},
		{"io p=^0x1p-2", "p=0x1p-2 is not a probability", ""},
		{"io p=^1e-999", "p=1e-999 is too small to be told from 0", ""},
		{"io p=^%", "p=% is not a probability", ""},
		{"io p=^5%%", "p=5%% is not a probability", ""},

		{"io after=^-1", "after=-1 is negative", "a whole number from 0"},
		{"io after=^1.5", "after=1.5 is not a whole number", ""},
		{"io after=^18446744073709551616", "after=18446744073709551616 is too large", ""},
		{"io every=^0", "every=0 makes no sense", "the least is 1"},
		{"io times=^0", "times=0 makes no sense", "the least is 1"},
		{"io times=^+1", "times=+1 is not a whole number", ""},
		{"io nth=^0", "nth=0 makes no sense", "the least is 1"},
		{"io seed=^x", "seed=x is not a whole number", ""},

		{"io path=^data/**", "the path is not absolute", ""},
		{"io path=/a/^../b", `the path has a segment ".."`, ""},
		{"io path=/a/^./b", `the path has a segment "."`, ""},
		{"io path=/a/{b,^..}/c", `the path has a segment ".."`, ""},
		{"io path=/a^/", "the path ends in a slash", ""},
		{"io path=/a^//b", "the path has two slashes side by side", ""},
		{"io path=/^a**", `** is only a part of "a**"`, ""},
		{"io path=/^**.db", `** is only a part of "**.db"`, ""},
		{"io path=/^***", `** is only a part of "***"`, ""},
		{"io path=/**/^**/a", "the path has two ** side by side", ""},
		{"io path=/{^**,a}/b", "** inside of {}", ""},
		{"io path=/{^*,a}{*,b}/b", "** is only a part of", ""},
		{"io path=^/{,a}", "the path ends in a slash", ""},
		{"io path=/a^[bc", "[ without ]", ""},
		{"io path=/a^[]", "a character class that is empty", ""},
		{"io path=/a[^z-a]", "the range z-a is empty", ""},
		{"io path=/a[^/]", "a character class never matches a slash", ""},
		{"io path=/a^{b,c", "{ without }", ""},
		{"io path=/a^}b", "} without {", ""},
		{"io path=/a^{b}", "{} without alternatives", ""},
		{"io path=/a^,/b", "a comma between two paths", "write {a,b}"},
		{`io path=/a^\ b`, "a backslash with nothing after it", ""},
		{`io path=^"/a op=read`, "a quote that is not closed", ""},
		{`io path=/a^"b"`, "a quote in the middle of a value", ""},
		{`io path="/a b"^/c`, `"/" directly after a closing quote`, ""},
		{"io path=/a^\x1b[31m", `the character "\x1b" cannot be written in a rule`, ""},
		{"io path=/a^\xff", `the character "\xff" cannot be written in a rule`, ""},
		{"io path=/ä/ö/^../ü", `the path has a segment ".."`, ""},
		{`io path="/a \"b\" ^[c"`, "[ without ]", ""},
		{"io error=EIO op=read path=/d exclude=/a,^b", "the path is not absolute", ""},
		{"io error=EIO op=read path=/d exclude=/a,^,/b", "the path is empty", ""},
		{"io path=^/{a,b}{a,b}{a,b}{a,b}{a,b}", "the {} stand for more than 16 paths", ""},
		{"io path=^/" + strings.Repeat("*a", 17), "the path has more than 16 stars", ""},
		{"io path=/" + long(MaxGlobLength-1) + "^a", "the path is longer than 1024 bytes", ""},
		{"io error=EIO op=read path=/{a,b} exclude=" + strings.Repeat("/{a,b,c,d,e,f,g,h},", 3) + "^/{a,b,c,d,e,f,g,h}", "the {} of path and exclude stand for more than 32 paths", ""},
		{"io exclude=" + strings.Repeat("/a,", MaxExcludes) + "^/b", "exclude lists more than 16 paths", ""},
	}
	for _, tt := range tests {
		checkRefused(t, tt.text, tt.message, tt.fix)
	}
	// Places that the mark cannot show: nothing of the text is to be cut out.
	for text, column := range map[string]int{
		"io error=EIO op=read path=/d nth=3 after=1": 36,
		`io path="/a `: 9,
	} {
		var syntax *SyntaxError
		if _, err := ParseRule("r", text, Defaults{}); !errors.As(err, &syntax) || syntax.Column != column {
			t.Errorf("%s: error %v, want column %d", text, err, column)
		}
	}
}

// checkRefused shows that a text is refused at the place before which it has a
// ^, with these parts of message and way out.
func checkRefused(t *testing.T, marked, message, fix string) {
	t.Helper()
	before, after, _ := strings.Cut(marked, "^")
	text, column := before+after, len([]rune(before))+1
	r, err := ParseRule("r", text, Defaults{})
	var syntax *SyntaxError
	if !errors.As(err, &syntax) {
		t.Errorf("%s: got rule %v, error %v; want a SyntaxError", text, r, err)
		return
	}
	if syntax.Column != column {
		t.Errorf("%s: column %d, want %d: %v", text, syntax.Column, column, err)
	}
	if !strings.Contains(syntax.Message, message) || !strings.Contains(syntax.Fix, fix) {
		t.Errorf("%s: error %q, want message %q, fix %q", text, err, message, fix)
	}
	if syntax.Fix == "" {
		t.Errorf("%s: error %q says no way out", text, err)
	}
	if r.IO != nil || r.Kernel != nil || r.Name != "" {
		t.Errorf("%s: a refused rule is not zero: %v", text, r)
	}
}

func TestParseRuleNthConflicts(t *testing.T) {
	for _, other := range []string{"after=1", "every=2", "times=3", "p=50%"} {
		for _, text := range []string{"nth=3 " + other, other + " nth=3"} {
			_, err := ParseRule("r", "io error=EIO op=read path=/d "+text, Defaults{})
			if err == nil || !strings.Contains(err.Error(), "nth and "+other[:strings.Index(other, "=")]+" cannot stand together") {
				t.Errorf("%s: error %v", text, err)
			}
		}
	}
}

func TestParseRuleLater(t *testing.T) {
	for _, name := range []string{"fsyncfail", "powercut"} {
		for _, text := range []string{"io " + name, "io " + name + "=xfs op=fsync path=/d"} {
			_, err := ParseRule("r", text, Defaults{})
			var syntax *SyntaxError
			if !errors.As(err, &syntax) || syntax.Message != `"`+name+`" is not there yet` || syntax.Column != 4 || syntax.Fix == "" {
				t.Errorf("%s: error %v", text, err)
			}
		}
	}
}

func TestParseRuleNames(t *testing.T) {
	const text = "io error=EIO op=read path=/d"
	for _, name := range []string{"a", "0", "wal-1", strings.Repeat("a", 63)} {
		if _, err := ParseRule(name, text, Defaults{}); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "-a", "a-", "A", "a_b", "a.b", "a\n", "ä", strings.Repeat("a", 64)} {
		if _, err := ParseRule(name, text, Defaults{}); err == nil || !strings.Contains(err.Error(), "is not a name for a rule") {
			t.Errorf("name %q: error %v", name, err)
		}
	}
}

func TestParseRuleTooLong(t *testing.T) {
	text := "io error=EIO op=read path=/d" + strings.Repeat(" ", MaxRuleLength)
	_, err := ParseRule("r", text, Defaults{})
	var syntax *SyntaxError
	if !errors.As(err, &syntax) || !strings.Contains(err.Error(), "the limit is 4096") || len(syntax.Text) > MaxRuleLength {
		t.Errorf("error %v, with %d bytes of text", err, len(syntax.Text))
	}
	glob := "/" + strings.Repeat("[!a]", 60)
	text = "io error=EIO op=read path=/d exclude=" + strings.Repeat(glob+",", MaxExcludes-1) + glob
	if _, err := ParseRule("r", text, Defaults{}); err == nil || !strings.Contains(err.Error(), "when everything in it is written out") {
		t.Errorf("%d bytes that stand for more: error %v", len(text), err)
	}
}

func TestDefaults(t *testing.T) {
	const text = "io error=EIO op=read"
	tests := []struct {
		d    Defaults
		path string
		ttl  time.Duration
	}{
		{Defaults{Path: "/data/**"}, "/data/**", DefaultTTL},
		{Defaults{Path: EscapeGlob("/a[b]c") + "/**", TTL: time.Minute}, `/a\[b\]c/**`, time.Minute},
		{Defaults{Path: "/d", MaxTTL: time.Minute}, "/d", time.Minute},
		{Defaults{Path: "/d", TTL: time.Hour, MaxTTL: time.Minute}, "/d", time.Minute},
	}
	for _, tt := range tests {
		r, err := ParseRule("r", text, tt.d)
		if err != nil {
			t.Error(err)
		} else if r.IO.Path != tt.path || r.Trigger.TTL != tt.ttl {
			t.Errorf("%+v: path %q, ttl %v", tt.d, r.IO.Path, r.Trigger.TTL)
		}
	}
	if _, err := ParseRule("r", text, Defaults{Path: "/a["}); err == nil || !strings.Contains(err.Error(), `the default path "/a["`) {
		t.Errorf("wrong default path: error %v", err)
	}
	r, err := ParseRule("r", text+" path=/other ttl=1s", Defaults{Path: "/data/**", TTL: time.Hour})
	if err != nil || r.IO.Path != "/other" || r.Trigger.TTL != time.Second {
		t.Errorf("the text must beat the defaults: %v, %v", r, err)
	}
}

func TestEnsureSeed(t *testing.T) {
	random := func() uint64 { return 42 }
	r := Rule{}
	r.EnsureSeed(random)
	if r.Trigger.Seed != 42 || !r.Trigger.Seeded {
		t.Errorf("no seed was set: %+v", r.Trigger)
	}
	r.Trigger.Seed = 0
	r.EnsureSeed(random)
	if r.Trigger.Seed != 0 {
		t.Error("the chosen seed 0 was replaced")
	}
}

func TestCheck(t *testing.T) {
	good := func() Rule {
		return Rule{Name: "r", IO: &IOFault{Path: "/d/**", Ops: setOf(OpRead), Errors: []WeightedErrno{{syscall.EIO, 1}}}, Trigger: Trigger{P: 1, TTL: time.Minute}}
	}
	if err := good().Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Rule){
		"name":            func(r *Rule) { r.Name = "" },
		"no fault":        func(r *Rule) { r.IO = nil },
		"two faults":      func(r *Rule) { r.Kernel = &KernelFault{Hook: Hook{Kind: "slab"}, Error: Errno(syscall.ENOMEM)} },
		"no ops":          func(r *Rule) { r.IO.Ops = 0 },
		"unknown op":      func(r *Rule) { r.IO.Ops |= 1 << 63 },
		"errno":           func(r *Rule) { r.IO.Errors = []WeightedErrno{{4000, 1}} },
		"nothing":         func(r *Rule) { r.IO.Errors = nil },
		"latency":         func(r *Rule) { r.IO.Latency = &Latency{Base: -1} },
		"relative path":   func(r *Rule) { r.IO.Path = "d" },
		"class and slash": func(r *Rule) { r.IO.Path = "/d[!a]" },
		"quote in path":   func(r *Rule) { r.IO.Path = `/d\" op=write` },
		"exclude":         func(r *Rule) { r.IO.Exclude = []string{"/a,/b"} },
		"p":               func(r *Rule) { r.Trigger.P = 2 },
		"ttl":             func(r *Rule) { r.Trigger.TTL = 0 },
		"seed":            func(r *Rule) { r.Trigger.Seed = 7 },
	} {
		r := good()
		if spoil(&r); r.Check() == nil {
			t.Errorf("%s: not refused: %v", name, r)
		}
	}
}

func shortName(s string) string { return s[:min(len(s), 50)] }
