package policy

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"syscall"
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
		"io throttle=10MiB/s,0.5ops/s burst=1.5KiB,20ops latency=pareto(10ms,1.5) cap=1s hang error=EIO:3,ENOSPC op=data path=/d",
		"io latency=uniform(0,50ms) torn=sectors(4KiB) error=EDQUOT op=write+mmap-write path=/d offset=0-4KiB size=1-",
		`io short=7.5% op=all path=/d comm="a b",[!x]*,{y,z} exe=/**/dd uid=0,5-9,100- pid=1- afterBytes=1TB`,
		"io short=random op=read path=/d delay=1s active=1ms idle=2h seed=0", "io corrupt=random(1000,1MiB) op=readlink path=/d",
		"io latency=normal(1s,1us) lost op=sync path=/d uid=4294967294", "io nospace=0 path=/d", "io quota=1.5GiB op=statfs path=/d p=1e-3",
		"io attr=ino:1,size:1k,blocks:2,atime:@-1,mtime:2020-01-01,ctime:9999-12-31T23:59:59.999999999Z,perm:7777,nlink:0,uid:1,gid:2 path=/d",
		"io latency=exp(1ns) op=release path=/d", "io fsyncfail=xfs", "io powercut",
		`kernel hook=slab error=ENOMEM within=ext4_file_write_iter,d_alloc_parallel(name->name == "bananas") after=100 every=50 times=10 ttl=60s`,
		`kernel hook=syscall:mount(flags & 1 && type == ")") error=EPERM comm="a b*",c uid=0-5 pid=7 backend=lsm stack`,
		`kernel hook="function open_ctree" error=EIO within="f(a == \"b\\\\\")",g()`, "kernel hook=page(order > 0)", "kernel hook=bio times=1 active=1s idle=1s",
		"kernel hook=slab within=d_alloc_parallel(struct dentry *parent, const struct qstr *name)(STRNCMP(name->name, \"bananas\", 8)) p=5%",
		"kernel hook=slab(\n a ==\t'(' )", "kernel inject=mount:error=ENOMEM:when=3+2", "kernel kmalloc a() => b()", "kernel hook=slab(((", "kernel within=a),b", "kernel hook=lsm:file_open error=ERESTARTSYS",
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
		if math.IsNaN(tr.P) || tr.P < 0 || tr.P > 1 || tr.TTL <= 0 || tr.TTL > DefaultMaxTTL || tr.Delay < 0 || tr.Delay >= tr.TTL ||
			tr.Active < 0 || (tr.Active == 0) != (tr.Idle == 0) || tr.AfterBytes >= math.MaxInt64 {
			t.Errorf("out of bounds: %+v", tr)
		}
		if r.Kernel != nil {
			checkKernelFault(t, r)
		} else {
			checkFault(t, r.IO)
			if top := GraftPath(r.IO.Path); !strings.HasPrefix(top, "/") || strings.Contains(top+"/", "/../") {
				t.Errorf("graft path %q", top)
			}
		}
		for _, m := range r.Explain() {
			for _, c := range m.Name + m.Text {
				if !printableRune(c) {
					t.Errorf("the explanation %q would write %q to a terminal", m, c)
				}
			}
		}
	})
}

// checkFault shows that what a rule does is in its bounds and means something for each of its operations.
func checkFault(t *testing.T, f *IOFault) {
	t.Helper()
	outcomes := 0
	for _, is := range []bool{len(f.Errors) > 0 && f.Torn == nil, f.Short != nil, f.Corrupt != nil, f.Torn != nil, f.Lost, f.Space != nil, f.Attr != nil} {
		if is {
			outcomes++
		}
	}
	waits := f.Throttle != nil || f.Latency != nil || f.Hang
	if outcomes > 1 || outcomes == 0 && !waits || f.Ops == 0 || f.Ops&^f.fitting() != 0 {
		t.Errorf("%d actions, operations %v of %v: %+v", outcomes, f.Ops, f.fitting(), f)
	}
	for _, e := range f.Errors {
		if e.Weight == 0 || e.Errno == 0 || e.Errno == syscall.ENOSYS {
			t.Errorf("the error %+v", e)
		}
	}
	if l := f.Latency; l != nil {
		if l.Base < 0 || l.Spread < 0 || l.Cap < 0 || l.Kind == Pareto && !(l.Shape > 0) {
			t.Errorf("the latency %+v", l)
		}
		src := Source{state: 1}
		for range 10 {
			if d := l.Draw(&src); d < 0 || l.Cap > 0 && d > l.Cap {
				t.Errorf("%+v draws %v", l, d)
			}
		}
	}
	for _, list := range [][]string{f.Caller.Comm, f.Caller.Exe, f.Exclude} {
		if len(list) > listSize {
			t.Errorf("a list of %d items", len(list))
		}
	}
	if s := f.Short; s != nil && (s.Bytes < 0 || s.Share < 0 || s.Share >= 1 || s.Bytes == 0 && s.Share == 0 && !s.Random) {
		t.Errorf("short %+v", s)
	}
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
	f.Add("a.faultgraft.io", "io lost op=fsync path=/d comm=pg", "b.faultgraft.io", "io corrupt=zero(4,16) op=data path=/d offset=0-", "x")
	f.Add("a.faultgraft.io", "kernel hook=slab within=a(b == \"c\")", "a.faultgraft.io/pod", "kernel hook=syscall:mount error=EIO", "x")
	f.Add("a.faultgraft.io", "io quota=1MiB path=/d", "a.faultgraft.io/pod", "io torn=prefix error=EIO:2,EROFS op=write path=/d", "x")
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
		if n := len(one.Rules) + len(one.Problems) + min(len(one.Policies), 1); ours(key1) != (n == 1) {
			_, scope, _ := strings.Cut(key1, "/")
			enabled := key1 == "enable."+Domain || strings.HasPrefix(key1, "enable."+Domain+"/")
			if n != 0 || !enabled && (!strings.HasPrefix(scope, "container.") || scope == "container."+self) {
				t.Errorf("label %q=%q alone gives %d rules, policies and problems", key1, value1, n)
			}
		}
	})
}

// FuzzRuleJSON shows that a rule from outside is refused by Check, or is one that its text gives again.
func FuzzRuleJSON(f *testing.F) {
	for _, text := range []string{
		"io error=EIO:3,ENOSPC op=all path=/d p=5%", "io latency=pareto(1ms,2) cap=1s torn=prefix op=write path=/d comm=a uid=1- delay=1s active=1s idle=1s",
		`kernel hook=slab(s->size > 5) within=f(int a)(a == 1),g(b == "c)") comm=x* uid=0 stack backend=override times=3`,
		"io nospace=0 path=/d", "io attr=mtime:2020-01-01,perm:7 path=/d", "io throttle=1MiB/s burst=2 op=data path=/d offset=1-3 size=7 afterBytes=1",
	} {
		r, err := ParseRule("r", text, Defaults{})
		if err != nil {
			f.Fatal(err)
		}
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"name":"r","io":{"path":"/d","ops":"","latency":{"kind":"uniform","base":9223372036854775807,"spread":1}},"trigger":{"p":1,"ttl":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Rule
		if json.Unmarshal(b, &r) != nil || r.Check() != nil {
			return
		}
		if r.Trigger.Delay < 0 {
			r.Trigger.Delay = 0 // the rest of a pulse, which is no rule's text; see Aged
		}
		if r.Kernel != nil {
			checkKernelFault(t, r)
		} else {
			if len(r.IO.Exclude) == 0 {
				r.IO.Exclude = nil
			}
			checkFault(t, r.IO)
		}
		r.Trigger.TTL = math.MaxInt64 // Check does not judge it: it shrinks
		again, err := ParseRule(r.Name, r.String(), Defaults{MaxTTL: math.MaxInt64})
		if err != nil {
			t.Fatalf("%s passes, its text %q does not: %v", b, r, err)
		}
		again.Text = r.Text
		if diff := cmp.Diff(r, again); diff != "" {
			t.Errorf("%s gives %q: %s", b, r, diff)
		}
	})
}

// FuzzNames shows that what a name decodes to is written as the same name.
func FuzzNames(f *testing.F) {
	for _, s := range []string{`"read"`, `"read+write"`, `"all"`, `""`, `"pareto"`, `"zero"`, `"sectors"`, `{"errno":"EIO","weight":3}`, `{"errno":"EWOULDBLOCK"}`, `7`, `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		stable[Op](t, b)
		stable[OpSet](t, b)
		stable[WeightedErrno](t, b)
		stable[Distribution](t, b)
		stable[CorruptKind](t, b)
		stable[TornKind](t, b)
	})
}

// stable decodes b, and what that is encoded as, to the same value.
func stable[T comparable](t *testing.T, b []byte) {
	t.Helper()
	var zero, one, two T
	if json.Unmarshal(b, &one) != nil {
		return
	}
	again, err := json.Marshal(one)
	if err == nil {
		err = json.Unmarshal(again, &two)
	}
	if one == zero && err != nil {
		return // what null decodes to; no errno has the number 0
	}
	if err != nil || one != two {
		t.Errorf("%s is %v, written as %s, which is %v: %v", b, one, again, two, err)
	}
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
