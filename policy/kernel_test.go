package policy

import (
	"encoding/json"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseKernelRule(t *testing.T) {
	slab := func(change func(*Rule)) Rule {
		r := Rule{Name: "r", Kernel: &KernelFault{Hook: Hook{Kind: "slab"}, Error: Errno(syscall.ENOMEM)}, Trigger: Trigger{P: 1, TTL: DefaultTTL}}
		change(&r)
		return r
	}
	hook := func(kind, name, where string, errno syscall.Errno) func(*Rule) {
		return func(r *Rule) {
			r.Kernel.Hook, r.Kernel.Where, r.Kernel.Error = Hook{kind, name}, where, Errno(errno)
		}
	}
	within := func(frames ...Frame) func(*Rule) { return func(r *Rule) { r.Kernel.Within = frames } }
	bananas := Frame{Function: "d_alloc_parallel", Predicate: `name->name == "bananas"`}
	tests := []struct {
		text, canonical string
		want            func(*Rule)
	}{
		{"kernel hook=slab", "kernel hook=slab error=ENOMEM ttl=10m0s", func(*Rule) {}},
		{"kernel error=ENOMEM\n hook=slab() ", "kernel hook=slab error=ENOMEM ttl=10m0s", func(*Rule) {}},
		{
			`kernel hook=slab error=ENOMEM within=ext4_file_write_iter,d_alloc_parallel(name->name == "bananas") after=100 every=50 times=10 ttl=60s`,
			`kernel hook=slab error=ENOMEM within=ext4_file_write_iter,d_alloc_parallel(name->name == "bananas") after=100 every=50 times=10 ttl=1m0s`,
			func(r *Rule) {
				r.Kernel.Within = []Frame{{Function: "ext4_file_write_iter"}, bananas}
				r.Trigger.After, r.Trigger.Every, r.Trigger.Times, r.Trigger.TTL = 100, 50, 10, time.Minute
			},
		},
		{"kernel hook=bio", "kernel hook=bio error=EIO ttl=10m0s", hook("bio", "", "", syscall.EIO)},
		{"kernel hook=page(order > 0)", "kernel hook=page(order > 0) error=ENOMEM ttl=10m0s", hook("page", "", "order > 0", syscall.ENOMEM)},
		{"kernel hook=page times=3", "kernel hook=page error=ENOMEM times=3 ttl=10m0s", func(r *Rule) { r.Kernel.Hook.Kind, r.Trigger.Times = "page", 3 }},
		{"kernel hook=page nth=3", "kernel hook=page error=ENOMEM after=2 times=1 ttl=10m0s", func(r *Rule) { r.Kernel.Hook.Kind, r.Trigger.After, r.Trigger.Times = "page", 2, 1 }},
		{"kernel hook=syscall:mount error=EPERM", "kernel hook=syscall:mount error=EPERM ttl=10m0s", hook("syscall", "mount", "", syscall.EPERM)},
		{
			`kernel hook=syscall:mount( flags & 1 && type == ") \" (" ) error=EPERM`, `kernel hook=syscall:mount(flags & 1 && type == ") \" (") error=EPERM ttl=10m0s`,
			hook("syscall", "mount", `flags & 1 && type == ") \" ("`, syscall.EPERM),
		},
		{"kernel hook=slab(c == '(' || c == '\\'')", "kernel hook=slab(c == '(' || c == '\\'') error=ENOMEM ttl=10m0s", hook("slab", "", `c == '(' || c == '\''`, syscall.ENOMEM)},
		{"kernel hook=function:open_ctree error=EIO", "kernel hook=function:open_ctree error=EIO ttl=10m0s", hook("function", "open_ctree", "", syscall.EIO)},
		{`kernel hook="function open_ctree" error=EIO`, "kernel hook=function:open_ctree error=EIO ttl=10m0s", hook("function", "open_ctree", "", syscall.EIO)},
		{`kernel hook="syscall: mount (flags & 1)" error=EIO`, "kernel hook=syscall:mount(flags & 1) error=EIO ttl=10m0s", hook("syscall", "mount", "flags & 1", syscall.EIO)},
		{"kernel hook=lsm:file_open error=ENOTSUP", "kernel hook=lsm:file_open error=ENOTSUP ttl=10m0s", hook("lsm", "file_open", "", syscall.EOPNOTSUPP)},
		{`kernel hook=slab within="d_alloc_parallel(name->name == \"bananas\")"`, `kernel hook=slab error=ENOMEM within=d_alloc_parallel(name->name == "bananas") ttl=10m0s`, within(bananas)},
		{`kernel hook=slab within="a, d_alloc_parallel(name->name == \"bananas\")",b`, `kernel hook=slab error=ENOMEM within=a,d_alloc_parallel(name->name == "bananas"),b ttl=10m0s`, within(Frame{Function: "a"}, bananas, Frame{Function: "b"})},
		{
			`kernel hook=slab within="f(a == \"\\n\\\"\")"`, `kernel hook=slab error=ENOMEM within=f(a == "\n\"") ttl=10m0s`,
			within(Frame{Function: "f", Predicate: `a == "\n\""`}),
		},
		{"kernel hook=slab within=f()(),g()", "kernel hook=slab error=ENOMEM within=f,g ttl=10m0s", within(Frame{Function: "f"}, Frame{Function: "g"})},
		{
			`kernel hook=slab within=d_alloc_parallel(struct dentry *parent, const struct qstr *name)(STRNCMP(name->name, "bananas", 8))`,
			`kernel hook=slab error=ENOMEM within=d_alloc_parallel(struct dentry *parent, const struct qstr *name)(STRNCMP(name->name, "bananas", 8)) ttl=10m0s`,
			within(Frame{"d_alloc_parallel", `STRNCMP(name->name, "bananas", 8)`, "struct dentry *parent, const struct qstr *name"}),
		},
		{"kernel hook=slab within=f(int a)()", "kernel hook=slab error=ENOMEM within=f(int a)() ttl=10m0s", within(Frame{Function: "f", Parameters: "int a"})},
		{
			`kernel hook=slab comm=postgres,"pg *" uid=0,1000- pid=7 backend=override stack`,
			`kernel hook=slab error=ENOMEM comm="postgres,pg *" uid=0,1000- pid=7 backend=override stack ttl=10m0s`,
			func(r *Rule) {
				k := r.Kernel
				k.Caller = Caller{Comm: []string{"postgres", "pg *"}, UID: []Range{{0, 0}, {1000, maxID}}, PID: []Range{{7, 7}}}
				k.Backend, k.Stack = "override", true
			},
		},
		{
			"kernel hook=slab p=5% delay=1s active=2s idle=3s seed=9", "kernel hook=slab error=ENOMEM p=0.05 delay=1s active=2s idle=3s ttl=10m0s seed=9",
			func(r *Rule) {
				r.Trigger = Trigger{P: 0.05, Delay: time.Second, Active: 2 * time.Second, Idle: 3 * time.Second, TTL: DefaultTTL, Seed: 9, Seeded: true}
			},
		},
	}
	for _, tt := range tests {
		got, err := ParseRule("r", tt.text, Defaults{Path: "/ignored/**"})
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		want := slab(tt.want)
		want.Text = tt.text
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", tt.text, diff)
		}
		if got.String() != tt.canonical {
			t.Errorf("%s is written as %q, want %q", tt.text, got, tt.canonical)
		}
		checkRoundTrip(t, got)
		checkKernelFault(t, got)
	}
}

// checkKernelFault shows that what a kernel rule says is in its bounds.
func checkKernelFault(t *testing.T, r Rule) {
	t.Helper()
	f := r.Kernel
	if r.IO != nil || len(f.Within) > MaxFrames || f.Caller.NeedsExe() || r.Trigger.AfterBytes != 0 || !slices.Contains(hookKinds, f.Hook.Kind) {
		t.Errorf("the kernel rule %+v", f)
	}
	if f.Error < 1 || f.Error > 4094 || strings.HasPrefix(f.Error.String(), "ERESTART") {
		t.Errorf("the error %d", f.Error)
	}
	if _, named := namedHooks[f.Hook.Kind]; named != identifier.MatchString(f.Hook.Name) {
		t.Errorf("the hook %+v", f.Hook)
	}
	for _, frame := range f.Within {
		if !identifier.MatchString(frame.Function) {
			t.Errorf("the frame %+v", frame)
		}
	}
	if f.Hook.Kind == "page" && len(f.Within) == 0 && f.Where == "" && r.Trigger.Times == 0 {
		t.Error("page allocations without a bound")
	}
	for which := -1; which < len(f.Within); which++ {
		predicate := f.Where
		if which >= 0 {
			predicate = f.Within[which].Predicate
		}
		if err := r.PredicateError(which, 1, 1, "x", "y"); err.Column == 0 || predicate != "" && !strings.HasPrefix(string([]rune(err.Text)[err.Column-1:]), predicate[:1]) {
			t.Errorf("the place of predicate %d (%q): %s", which, predicate, err.Detail())
		}
	}
}

// TestParseKernelRuleErrors has each refusal, with the place marked by a ^.
func TestParseKernelRuleErrors(t *testing.T) {
	tests := []struct{ text, message, fix string }{
		{"kernel^", "hook is missing", "add hook=slab"},
		{"^kernl hook=slab", `unknown kind of fault "kernl"`, "did you mean kernel?"},
		{"^hook=slab", `the kind of fault is missing before "hook"`, "start the rule with kernel"},
		{"kernel ^hok=slab", `unknown field "hok"`, "did you mean hook?"},
		{"kernel ^banana=1", `unknown field "banana"`, "the fields are hook, error, within, comm"},
		{"kernel hook=slab ^hook=slab", `field "hook" is given twice`, ""},
		{"kernel ^hook", `field "hook" has no value`, ""},
		{"kernel ^hook=", `field "hook" has no value`, ""},
		{"kernel hook=slab stack=^yes", "stack takes no value", "write the word alone"},

		{"kernel hook=^slap", `unknown hook point "slap"`, "did you mean slab?"},
		{"kernel hook=^kmalloc", `unknown hook point "kmalloc"`, "did you mean hook=slab?"},
		{"kernel hook=^0", `unknown hook point "0"`, "did you mean hook=slab?"},
		{"kernel hook=^alloc_page", `unknown hook point "alloc_page"`, "did you mean hook=page?"},
		{"kernel hook=^fail_make_request", "unknown hook point", "did you mean hook=bio?"},
		{"kernel hook=^kprobe:x", "unknown hook point", "did you mean hook=function:NAME?"},
		{"kernel hook=^__x64_sys_mount", "unknown hook point", "did you mean hook=syscall:mount?"},
		{"kernel hook=^security_file_open", "unknown hook point", "did you mean hook=lsm:file_open?"},
		{"kernel hook=^mkdirat", "unknown hook point", "write hook=syscall:mkdirat, hook=lsm:mkdirat or hook=function:mkdirat"},
		{"kernel hook=slab:^x", "slab takes no name", "write hook=slab"},
		{"kernel hook=function^ error=EIO", "the name of the function is missing", "write for instance hook=function:open_ctree"},
		{"kernel hook=function^ open_ctree error=EIO", "the name of the function is missing", "did you mean hook=function:open_ctree?"},
		{"kernel hook=syscall^ mount(flags & 1) error=EIO", "the name of the system call is missing", "did you mean hook=syscall:mount?"},
		{"kernel hook=lsm^(x) error=EIO", "the name of the LSM hook is missing", ""},
		{"kernel hook=syscall:^__x64_sys_mount error=EIO", "__x64_sys_mount is the kernel's function", "did you mean hook=syscall:mount?"},
		{"kernel hook=syscall:^sys_mount error=EIO", "sys_mount is the kernel's function", "did you mean hook=syscall:mount?"},
		{"kernel hook=lsm:^security_file_open error=EIO", "is the kernel's function, not the name of the LSM hook", "did you mean hook=lsm:file_open?"},
		{"kernel hook=function:^should_failslab error=ENOMEM", "should_failslab is the function of the hook point slab", "write hook=slab"},
		{"kernel hook=function:a^*", `"a*" is not the name of a function`, "globs are not for functions"},
		{"kernel hook=function:f^.isra.0 error=EIO", `"f.isra.0" is not the name of a function`, "write f if the kernel has it"},
		{"kernel hook=syscall:^4", `"4" is not the name of a system call`, ""},
		{"kernel hook=syscall:mount(flags & 1)^x error=EIO", `"x" after the predicate`, ""},
		{"kernel hook=slab(a)^(b)", `"(b)" after the predicate`, "joined by &&"},

		{"kernel hook=slab((s->size) > ^(5", "( without )", "close it with )"},
		{"kernel hook=slab^(s->size > (5)", "( without )", "close it with )"},
		{`kernel hook=slab(name == ^"a)`, "a string literal that is not closed", `close it with "`},
		{"kernel hook=slab(name == ^'a)", "a character literal that is not closed", "close it with '"},
		{"kernel hook=slab^)", ") without (", "leave it out"},
		{"kernel hook=slab(a)^) error=ENOMEM", ") without (", ""},
		{`kernel hook=slab within="f^(a == \"b\""`, "( without )", ""},
		{`kernel hook=slab within="f(a == \^"b)"`, "a string literal that is not closed", ""},
		{`kernel hook=slab within=^"f(a)`, "a quote that is not closed", ""},
		{`kernel hook=slab within=f^"a"`, "a quote in the middle of a value", ""},
		{`kernel hook=slab within="f(a)"^g`, `"g" directly after a closing quote`, ""},
		{"kernel hook=syscall:mount ^(flags & 1) error=EIO", `"(flags & 1)" is not a field`, "leave out the blank before ("},
		{"kernel hook=slab ^f(a == b) error=ENOMEM", `"f(a == b)" is not a field`, "did you mean within=f(a == b)?"},
		{"kernel ^kmalloc", `"kmalloc" is not a field`, "did you mean hook=slab?"},
		{"kernel ^slab", `"slab" is not a field`, "did you mean hook=slab?"},
		{"kernel ^syscall:mount", `"syscall:mount" is not a field`, "did you mean hook=syscall:mount?"},
		{"kernel ^syscall mount", `"syscall" is not a field`, "write hook=syscall:mount"},
		{"kernel hook=slab ^ENOMEM", `"ENOMEM" is not a field`, "did you mean error=ENOMEM?"},
		{"kernel hook=slab ^&& b", `"&&" is not a field`, "put the whole predicate in parentheses"},
		{"kernel a() ^=> b()", "=> is not of this language", "the outermost first"},

		{"kernel hook=slab error=^EIO", "error=EIO: what slab fails with is ENOMEM", "write ENOMEM, or leave error out"},
		{"kernel hook=page times=1 error=^EAGAIN", "what page fails with is ENOMEM", ""},
		{"kernel error=^ENOMEM hook=bio", "what bio fails with is EIO", ""},
		{"kernel hook=syscall:mount^", "error is missing", "add error=ENOMEM"},
		{"kernel hook=syscall:mount error=^ENOMEN", `unknown errno "ENOMEN"`, "did you mean ENOMEM?"},
		{"kernel hook=syscall:mount error=EIO^,EPERM", "a kernel rule has one error", "use a rule for each"},
		{"kernel hook=syscall:mount error=EIO^:3", "a kernel rule has one error", ""},
		{"kernel hook=syscall:mount error=^ERESTARTSYS", "ERESTARTSYS is an error of the kernel's own", "did you mean EINTR?"},
		{"kernel hook=syscall:mount error=^ERESTART", "ERESTART is an error of the kernel's own", "did you mean EINTR?"},
		{"kernel hook=syscall:mount error=^ENOTSUPP", "is an error of the kernel's own", "did you mean EOPNOTSUPP?"},
		{"kernel hook=syscall:mount error=^-12", "error=-12 is a number", "did you mean ENOMEM?"},
		{"kernel hook=syscall:mount error=^12", "error=12 is a number", "did you mean ENOMEM?"},
		{"kernel hook=syscall:mount error=^4095", "error=4095 is a number", "errors are 1 to 4094"},
		{"kernel hook=syscall:mount error=^0", "error=0 is a number", "errors are 1 to 4094"},

		{"kernel hook=slab within=a,^", "a function is missing in the call chain", ""},
		{"kernel hook=slab within=^,a", "a function is missing in the call chain", ""},
		{"kernel hook=slab within=a,^ b", "a function is missing in the call chain", "without blanks around the comma"},
		{"kernel hook=slab within=^(a)", "a function is missing in the call chain", ""},
		{"kernel hook=slab within=a,^2b", `"2b" is not the name of a function`, "letters, digits and _"},
		{"kernel hook=slab within=a^+0x10", `"a+0x10" is not the name of a function`, "leave the offset out: write a"},
		{"kernel hook=slab within=a^->b", `"a->b" is not the name of a function`, ""},
		{"kernel hook=slab within=ext4_^*", "is not the name of a function", "globs are not for functions"},
		{"kernel hook=slab within=f(a)^g", `"g" after )`, "part the functions by commas"},
		{"kernel hook=slab within=f(a)(b)^(c)", "a third pair of parentheses after f", ""},
		{"kernel hook=slab within=f(^struct dentry *parent)", "a parameter list where a predicate should be", "leave it out"},
		{"kernel hook=slab within=^syscall:mount", "a call chain is made of functions", "__x64_sys_mount or __arm64_sys_mount"},
		{"kernel hook=slab within=a,^SyS_mount", "no kernel since 4.17 has the function SyS_mount", "__x64_sys_mount"},
		{"kernel hook=slab within=^function:f", "a call chain is made of functions", "did you mean f?"},
		{"kernel hook=slab within=a,^should_failslab", "should_failslab is what fails", "write hook=slab"},
		{"kernel hook=slab within=a,b,c,d,e,f,g,h,^i", "the call chain has more than 8 functions", ""},
		{"kernel hook=slab within=" + strings.Repeat("a", maxSymbol) + "^b", "has a name of more than 511 bytes", ""},

		{"kernel hook=page^", "a rule that fails each page allocation", "add within=FUNCTION"},
		{"kernel hook=page p=5% every=7^", "a rule that fails each page allocation", ""},
		{"kernel hook=slab backend=^kprobe", `unknown backend "kprobe"`, "did you mean override?"},
		{"kernel hook=slab backend=^fmodret", `unknown backend "fmodret"`, "did you mean fmod_ret?"},
		{"kernel hook=slab backend=^x", `unknown backend "x"`, "the backends are fmod_ret, override and lsm"},
		{"kernel hook=slab backend=^lsm", "the backend lsm cannot fail hook=slab", "it can be fmod_ret or override"},
		{"kernel hook=lsm:file_open error=EIO backend=^override", "the backend override cannot fail hook=lsm:file_open", "it can be lsm or fmod_ret"},

		{"kernel hook=slab ^exe=/bin/dd", `"exe" is a field of io rules`, "use comm"},
		{"kernel hook=slab ^path=/data", `"path" is a field of io rules`, "narrow the rule with a predicate"},
		{"kernel ^op=write", `"op" is a field of io rules`, "hook=syscall:write"},
		{"kernel hook=slab ^latency=5ms", `"latency" is a field of io rules`, "use an io rule to make operations wait"},
		{"kernel hook=slab ^lost", `"lost" is a field of io rules`, "only answers with an error"},
		{"kernel hook=slab ^size=1-", `"size" is a field of io rules`, ""},
		{"kernel hook=slab ^afterBytes=1MiB", `"afterBytes" is a field of io rules`, "use after"},
		{"io ^hook=slab", `"hook" is a field of kernel rules`, "begin the rule with kernel"},
		{"io error=EIO ^within=a", `"within" is a field of kernel rules`, ""},
		{"io error=EIO ^stack", `"stack" is a field of kernel rules`, ""},
		{"io error=EIO ^backend=lsm", `"backend" is a field of kernel rules`, ""},

		{"kernel ^failtype=0", `unknown field "failtype"`, "did you mean hook?"},
		{"kernel ^callchain=a", `unknown field "callchain"`, "did you mean within?"},
		{`kernel ^funcname=d_alloc_parallel`, `unknown field "funcname"`, "did you mean within?"},
		{`kernel ^predicate=STRNCMP(name->name, "bananas", 8)`, `unknown field "predicate"`, "did you mean within=FUNCTION(PREDICATE)"},
		{"kernel ^parameters=x", `unknown field "parameters"`, "the kernel's own type information has it"},
		{"kernel ^headers=linux/mmzone.h", `unknown field "headers"`, "leave it out"},
		{"kernel ^probability=5", `unknown field "probability"`, "did you mean p?"},
		{"kernel ^interval=5", `unknown field "interval"`, "did you mean every?"},
		{"kernel ^function=f", `unknown field "function"`, "did you mean hook=function:NAME?"},
		{"kernel ^inject=mount:error=ENOMEM:when=3", `"inject" is strace's`, "did you mean hook=syscall:mount error=ENOMEM nth=3?"},
		{"kernel ^inject=mount:retval=0", `"inject" is strace's`, "did you mean hook=syscall:mount error=ENOSYS?"},
		{"kernel ^fault=openat:error=EMFILE:when=2+3", `"fault" is strace's`, "did you mean hook=syscall:openat error=EMFILE after=1 every=3?"},
		{"kernel ^inject=mount:error=EIO:when=5..9", `"inject" is strace's`, "did you mean hook=syscall:mount error=EIO after=4 times=5?"},

		{"kernel hook=slab comm=p^?", "cannot be decided inside the kernel", "beginnings with a * after them"},
		{"kernel hook=slab comm=a,^*b", "cannot be decided inside the kernel", ""},
		{"kernel hook=slab comm=^/bin/dd", "comm=/bin/dd is a path", ""},
		{"kernel hook=slab pid=^pg", "pid=pg is not a number", "use comm"},
		{"kernel hook=slab delay=^20m", "is not shorter than the rule lives", ""},
		{"kernel hook=slab ^active=1s", "active without idle", ""},
		{"kernel hook=slab ttl=^25h", "is longer than this node allows", ""},
	}
	for _, tt := range tests {
		checkRefused(t, tt.text, tt.message, tt.fix)
	}
}

// TestPredicateError shows that a place in a predicate becomes one in the rule, however it was written.
func TestPredicateError(t *testing.T) {
	tests := []struct {
		marked       string
		which        int
		line, column int
	}{
		{"kernel hook=slab( s->^size > 5)", -1, 1, 4},
		{`kernel within=a,d_alloc_parallel(name->^nam == "ä") hook=slab`, 1, 1, 7},
		{`kernel within=a(x),b(y == "äö" && ^z) hook=slab`, 1, 1, 14},
		{`kernel hook=slab within="f(a == \"b\" && ^c)"`, 0, 1, 13},
		{"kernel hook=slab(a &&\n\t^b)", -1, 2, 2},
		{"kernel hook=slab within=f(int a)(^b)", 0, 1, 1},
		{"kernel hook=slab(a^)", -1, 1, 99},
	}
	for _, tt := range tests {
		before, after, _ := strings.Cut(tt.marked, "^")
		r, err := ParseRule("oom", before+after, Defaults{})
		if err != nil {
			t.Error(err)
			continue
		}
		got := r.PredicateError(tt.which, tt.line, tt.column, "no 100% field", "did you mean x?")
		want := &SyntaxError{Kind: "rule", Source: "oom", Column: len([]rune(before)) + 1, Text: before + after, Message: "no 100% field", Fix: "did you mean x?"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", tt.marked, diff)
		}
		r.Text = "" // as from JSON
		if got := r.PredicateError(tt.which, tt.line, tt.column, "m", ""); got.Column == 0 || got.Text != r.String() {
			t.Errorf("%s without its text: %s", tt.marked, got.Detail())
		}
	}
}

func TestCheckKernel(t *testing.T) {
	good := func() Rule {
		return Rule{
			Name: "r", Trigger: Trigger{P: 1, TTL: time.Minute},
			Kernel: &KernelFault{Hook: Hook{Kind: "slab"}, Where: "a", Within: []Frame{{"f", "b", "int b"}}, Error: Errno(syscall.ENOMEM), Caller: Caller{Comm: []string{"x"}}},
		}
	}
	if err := good().Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Rule){
		"hook":              func(r *Rule) { r.Kernel.Hook.Kind = "slap" },
		"name":              func(r *Rule) { r.Kernel.Hook.Name = "x" },
		"escape":            func(r *Rule) { r.Kernel.Where = "a) backend=lsm x=(b" },
		"unbalanced":        func(r *Rule) { r.Kernel.Where = "(a" },
		"blank":             func(r *Rule) { r.Kernel.Where = "a " },
		"error of the hook": func(r *Rule) { r.Kernel.Error = Errno(syscall.EIO) },
		"no error":          func(r *Rule) { r.Kernel.Hook, r.Kernel.Error = Hook{"lsm", "file_open"}, 0 },
		"restart":           func(r *Rule) { r.Kernel.Hook, r.Kernel.Error = Hook{"lsm", "file_open"}, 512 },
		"frame":             func(r *Rule) { r.Kernel.Within[0].Function = "f,g" },
		"frames":            func(r *Rule) { r.Kernel.Within = slices.Repeat(r.Kernel.Within, MaxFrames+1) },
		"predicate":         func(r *Rule) { r.Kernel.Within[0].Predicate = `"` },
		"exe":               func(r *Rule) { r.Kernel.Caller.Exe = []string{"/bin/dd"} },
		"comm":              func(r *Rule) { r.Kernel.Caller.Comm = []string{"a?b"} },
		"backend":           func(r *Rule) { r.Kernel.Backend = "lsm" },
		"afterBytes":        func(r *Rule) { r.Trigger.AfterBytes = 1 },
		"page":              func(r *Rule) { r.Kernel = &KernelFault{Hook: Hook{Kind: "page"}, Error: Errno(syscall.ENOMEM)} },
	} {
		r := good()
		if spoil(&r); r.Check() == nil {
			t.Errorf("%s: not refused: %v", name, r)
		}
	}
}

func TestKernelJSON(t *testing.T) {
	r, err := ParseRule("oom", `kernel hook=syscall:mount(flags & 1) error=EPERM within=f(a) stack`, Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r.Kernel)
	want := `{"hook":{"kind":"syscall","name":"mount"},"where":"flags \u0026 1","within":[{"function":"f","predicate":"a"}],"error":"EPERM","stack":true}`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v, want %s", b, err, want)
	}
	var e Errno
	if json.Unmarshal([]byte(`"EWOULDBLOCK"`), &e) != nil || e != Errno(syscall.EAGAIN) || json.Unmarshal([]byte(`"EBANANA"`), &e) == nil {
		t.Errorf("the errno is %v", e)
	}
}

func TestExplainKernel(t *testing.T) {
	tests := []struct{ rule, want string }{
		{"kernel hook=slab within=ext4_file_write_iter,d_alloc_parallel(name->len\n> 5) comm=dd uid=0 after=100 every=50 stack backend=override", `
does: fails with ENOMEM (cannot allocate memory)
on: slab allocations
within: ext4_file_write_iter, in it d_alloc_parallel where name->len > 5
by: threads named dd, uid 0
in: the container's cgroup and those below it
backend: override
records: the kernel stack with each of them
when: number 101 and each 50 after it
from: its activation on
until: a ttl of 10m0s is over`},
		{"kernel hook=syscall:mount(flags & 1) error=EPERM p=5%", `
does: fails with EPERM (operation not permitted)
on: the system call mount
where: flags & 1
in: the container's cgroup and those below it
when: all of them, each with a probability of 5%
from: its activation on
until: a ttl of 10m0s is over
seed: drawn when the rule is applied, and shown there`},
	}
	for _, tt := range tests {
		r, err := ParseRule("r", tt.rule, Defaults{})
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for _, m := range r.Explain() {
			got.WriteString("\n" + m.Name + ": " + m.Text)
		}
		if diff := cmp.Diff(tt.want, got.String()); diff != "" {
			t.Errorf("%s: %s", tt.rule, diff)
		}
	}
	for rule, on := range map[string]string{"hook=page times=1": "page allocations", "hook=bio": "block requests", "hook=function:f error=EIO": "the function f", "hook=lsm:l error=EIO": "the LSM hook l"} {
		r, err := ParseRule("r", "kernel "+rule, Defaults{})
		if err != nil || r.Explain()[1].Text != on {
			t.Errorf("%s is explained as %q, %v", rule, r.Explain(), err)
		}
	}
}

// TestGraftPathsOfKernelRules shows that a kernel rule needs no layer.
func TestGraftPathsOfKernelRules(t *testing.T) {
	k, err := ParseRule("k", "kernel hook=slab", Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	io, err := ParseRule("i", "io error=EIO op=read path=/d/**", Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	if got := GraftPaths([]Rule{k, io, k}); len(got) != 1 || len(got["/d"]) != 1 {
		t.Errorf("the layers %v", got)
	}
}
