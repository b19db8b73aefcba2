package faultpolicy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// around puts a spec, indented by two blanks, into a policy.
func around(spec string) string {
	return "apiVersion: faultgraft.io/v1alpha1\nkind: FaultPolicy\nmetadata: {name: p}\nspec:\n" + spec
}

const (
	selects = "  selector: {matchLabels: {app: pg}}\n"
	fault   = "  faults: [{name: a, rule: 'io hang op=read path=/d'}]\n"
)

// TestErrors has one mistake in each spec; ^ marks the place of it.
func TestErrors(t *testing.T) {
	io := func(fields string) string { return selects + "  faults:\n  - name: a\n    io: {" + fields + "}\n" }
	kernel := func(fields string) string {
		return selects + "  faults:\n  - name: a\n    kernel:\n      " + strings.ReplaceAll(fields, "\n", "\n      ") + "\n"
	}
	with := func(fields string) string { return selects + fault + "  " + fields + "\n" }
	for _, c := range []struct{ spec, want string }{
		{fault + "  ^selector: {}\n", `spec.selector: the selector is empty; say which`},
		{fault + "  selector: {^images: []}\n", `spec.selector.images: the list is empty`},
		{fault + "  selector: {containerNames: ['^pg[']}\n", `spec.selector.containerNames[0]: "pg[" is not a pattern; write \[`},
		{fault + "  selector: {pods: [^pg]}\n", `spec.selector.pods[0]: "pg" has no slash; write NAMESPACE/NAME`},
		{fault + "  selector: {matchExpressions: [{key: a, operator: ^in, values: [b]}]}\n", `spec.selector.matchExpressions[0].operator: unknown operator "in"; did you mean In?`},
		{fault + "  selector: {matchExpressions: [^{key: a, operator: In}]}\n", `spec.selector.matchExpressions[0].values: In has no values`},
		{fault + "  selector: {matchExpressions: [{key: a, operator: Exists, ^values: [b]}]}\n", `spec.selector.matchExpressions[0].values: Exists takes no values`},
		{fault + "  selector: {minAge: 1h, maxAge: ^10m}\n", `spec.selector.maxAge: maxAge 10m0s is not above minAge 1h0m0s`},
		{fault + "  selector: {minAge: ^10}\n", `spec.selector.minAge: 10 has no unit; did you mean 10s?`},
		{with("mode: ^fixd"), `spec.mode: unknown mode "fixd"; did you mean fixed?`},
		{"  selector: {matchLabels: {app: pg}}\n  faults: [{name: a, rule: 'io hang op=read path=/d'}]\n  mode: one\n  value: ^2\n", `spec.value: the mode one takes no value`},
		{with("mode: fixed-percent\n  value: ^101"), `spec.value: the mode fixed-percent needs a value from 1 to 100`},
		{with("seed: ^-1"), `spec.seed: -1 is negative`},
		{with("guard: {maxContainers: ^0}"), `spec.guard.maxContainers: 0 makes no sense`},
		{with("guard: {maxPercent: ^101}"), `spec.guard.maxPercent: 101 is not a share`},
		{with("guard: {stopConditions: [^{interval: 5s}]}"), `spec.guard.stopConditions[0]: a stop condition is http or command`},
		{with("guard: {stopConditions: [{http: {url: '^ftp://x'}}]}"), `spec.guard.stopConditions[0].http.url: "ftp://x" is not a URL of http or https`},
		{with("guard: {stopConditions: [{http: {url: '^http://u:p@x/'}}]}"), `spec.guard.stopConditions[0].http.url: a URL with a password`},
		{with("guard: {stopConditions: [{^command: [probe]}]}"), `spec.guard.stopConditions[0].command: the program is not an absolute path`},
		{with("guard: {stopConditions: [{command: [/p], interval: ^10ms}]}"), `spec.guard.stopConditions[0].interval: an interval of 10ms; the least is 1s`},
		{with("guard: {stopConditions: [{command: [/p], interval: 5s, timeout: ^6s}]}"), `spec.guard.stopConditions[0].timeout: a timeout of 6s is longer`},
		{with("timing: {active: ^1s}"), `spec.timing.active: active without idle`},
		{with("timing: {delay: ^1m, ttl: 1m}"), `spec.timing.delay: a delay of 1m0s is not shorter`},
		{with("^timing: {schedule: '* * * * *'}"), `spec.timing.ttl: a schedule without ttl`},
		{with("timing: {ttl: 1m, schedule: '^* * *'}"), `spec.timing.schedule: schedule "* * *"`},
		{with("timing: {ttl: 1m, schedule: '* * * * *', timeZone: ^Mars}"), `spec.timing.timeZone: time zone "Mars"`},
		{with("timing: {timeZone: ^UTC}"), `spec.timing.timeZone: timeZone without schedule`},
		{with("^duration: 5m"), `spec: unknown field "duration"; did you mean timing: {ttl: ...}?`},
		{selects + "  ^faults: []\n", `spec.faults: the policy has no faults`},
		{selects + "  faults: [{name: ^A, rule: 'io hang op=read path=/d'}]\n", `spec.faults[0].name: "A" is not a name for a rule`},
		{selects + "  faults: [^{name: a}]\n", `spec.faults[0]: a fault is one of io, kernel and rule; give one of them`},
		{selects + "  faults: [{name: a, rule: 'io hang op=read path=/d', ^trigger: {p: 1}}]\n", `spec.faults[0].trigger: rule and trigger cannot stand together`},
		{selects + "  faults: [{name: a, rule: 'io hang op=^raed path=/d'}]\n", `spec.faults[0].rule: unknown operation "raed"; did you mean read?`},
		{selects + "  faults:\n  - name: a\n    rule: >-\n      io hang\n      op=^raed path=/d\n", `spec.faults[0].rule: unknown operation "raed"; did you mean read?`},
		{io("path: ^data, ops: [read], error: EIO"), `spec.faults[0].io.path: the path is not absolute`},
		{io("path: /d, ops: [read, ^raed], error: EIO"), `spec.faults[0].io.ops[1]: unknown operation "raed"; did you mean read?`},
		{io("path: /d, ops: read, error: [EIO:2, ^EIOO:1]"), `spec.faults[0].io.error[1]: unknown errno "EIOO"; did you mean EIO?`},
		{io("path: /d, ops: read, latency: ^5"), `spec.faults[0].io.latency: 5 has no unit; did you mean 5s?`},
		{io("path: /d, attr: {size: ^x}"), `spec.faults[0].io.attr.size: "x" is not a size`},
		{io("path: /d, ops: read, error: EIO, ^op: read"), `spec.faults[0].io: unknown field "op"; did you mean ops?`},
		{io("path: /d, ops: read, error: EIO, ^p: 5%"), `spec.faults[0].io: unknown field "p"; it is a field of trigger, next to io`},
		{io("path: /d, ops: read, error: '^EIO op=all'"), `spec.faults[0].io.error[0]: unknown errno "EIO op=all"`},
		{strings.Replace(io("path: /d, error: EIO"), "    io", "    ^io", 1), `spec.faults[0].io: ops is missing; add ops: read`},
		{io("path: /d, ops: read, error: EIO") + "    trigger: {p: ^5}\n", `spec.faults[0].trigger.p: 5 is above 1; did you mean 5%?`},
		{io("path: /d, ops: read, error: EIO") + "    trigger: {ttl: ^2h}\n  timing: {ttl: 1h}\n", `spec.faults[0].trigger.ttl: a ttl of 2h0m0s is longer than the policy's (1h0m0s)`},
		{kernel("hook: ^slap"), `spec.faults[0].kernel.hook: unknown hook point "slap"; did you mean slab?`},
		{kernel("hook: slab\nwhere: '^a == 1) || (b == 2'"), `spec.faults[0].kernel.where: the parentheses or quotes do not fit together`},
		{kernel("hook: slab\nwhere: '^a == ('"), `spec.faults[0].kernel.where: the parentheses or quotes do not fit together`},
		{kernel("hook: slab\nwithin: [{func: f, where: '^a),g(b'}]"), `spec.faults[0].kernel.within[0].where: the parentheses or quotes do not fit together`},
		{kernel("hook: slab\nwithin: [{func: f}, {func: '^g(a == 1)'}]"), `spec.faults[0].kernel.within[1].func: this is more than the name of a function`},
		{kernel("hook: slab\nerror: ^EIO"), `spec.faults[0].kernel.error: EIO: what slab fails with is ENOMEM, whatever the hook says; write ENOMEM, or leave error out`},
	} {
		before, after, found := strings.Cut(c.spec, "^")
		_, err := Decode("a.yaml", []byte(around(before+after)))
		var errs strictyaml.Errors
		if !found || !errors.As(err, &errs) || len(errs) != 1 {
			t.Errorf("%s:\n%v\nwant one error: %s", c.spec, err, c.want)
			continue
		}
		before = around(before)
		place := fmt.Sprintf("a.yaml:%d:%d: ", strings.Count(before, "\n")+1, len(before)-strings.LastIndexByte(before, '\n'))
		got := errs.Error()
		if !strings.HasPrefix(got, place) || !strings.Contains(got, c.want) {
			t.Errorf("%s:\n got %s\nwant %s%s", c.spec, got, place, c.want)
		}
	}
}

// TestSamePlan shows P1: a fault in YAML, structured or as text, gives the rule that a label gives.
func TestSamePlan(t *testing.T) {
	for _, c := range []struct{ label, yaml string }{
		{"io error=EIO op=fsync path=/data/** p=5% times=10 ttl=5m", "io: {error: EIO, ops: [fsync], path: '/data/**'}, trigger: {p: 5%, times: 10, ttl: 5m}"},
		{"io error=EIO:3,ENOSPC op=write+fsync path=/d", "io: {error: [EIO:3, ENOSPC], ops: [write, fsync], path: /d}"},
		{"io throttle=10MiB/s,5ops/s burst=1MiB latency=pareto(10ms,1.5) cap=1s hang op=data path=/d", "io: {throttle: '10MiB/s,5ops/s', burst: 1MiB, latency: 'pareto(10ms,1.5)', cap: 1s, hang: true, ops: data, path: /d}"},
		{"io short=50% op=read path=/d comm=dd,cp exe=/bin/* uid=0,1000-1999 pid=1- offset=4096 size=1-4KiB", "io: {short: 50%, ops: read, path: /d, comm: [dd, cp], exe: ['/bin/*'], uid: [0, 1000-1999], pid: [1-], offset: 4096, size: 1-4KiB}"},
		{"io corrupt=zero(4,16) op=read path=/d afterBytes=1MiB every=2 after=1 seed=0", "io: {corrupt: 'zero(4,16)', ops: read, path: /d}, trigger: {afterBytes: 1MiB, every: 2, after: 1, seed: 0}"},
		{"io torn=prefix(4KiB) error=EIO op=write path=/d nth=3", "io: {torn: 'prefix(4KiB)', error: EIO, ops: write, path: /d}, trigger: {nth: 3}"},
		{"io lost op=sync path=/d delay=1s active=2s idle=3s", "io: {lost: true, ops: sync, path: /d}, trigger: {delay: 1s, active: 2s, idle: 3s}"},
		{"io nospace=1GiB path=/d", "io: {nospace: 1GiB, path: /d}"},
		{"io quota=0 path=/d", "io: {quota: 0, path: /d}"},
		{"io attr=size:0,perm:0600,mtime:2020-01-01 path=/d", "io: {attr: {size: 0, perm: 0600, mtime: 2020-01-01}, path: /d}"},
		{`io error=EIO op=read path="/my files/a\"b/**" exclude="/my files/x",/tmp/**`, `io: {error: EIO, ops: read, path: '/my files/a"b/**', exclude: [/my files/x, '/tmp/**']}`},
		{`kernel hook=slab error=ENOMEM within=ext4_file_write_iter,d_alloc_parallel(name->name == "a b") after=100 every=50 times=10 ttl=60s`,
			`kernel: {hook: slab, error: ENOMEM, within: [{func: ext4_file_write_iter}, {func: d_alloc_parallel, where: 'name->name == "a b"'}]}, trigger: {after: 100, every: 50, times: 10, ttl: 60s}`},
		{"kernel hook=syscall:mount(flags & 1) error=EPERM comm=a*,b uid=0 pid=1 backend=lsm stack", "kernel: {hook: syscall:mount, where: flags & 1, error: EPERM, comm: ['a*', b], uid: 0, pid: 1, backend: lsm, stack: true}"},
		{"kernel hook=bio within=f(struct dentry *parent, int a)(a > 1)", "kernel: {hook: bio, within: [{func: f, parameters: 'struct dentry *parent, int a', where: a > 1}]}"},
	} {
		want := policy.ParseLabels(policy.Subject{Labels: map[string]string{"r.faultgraft.io": c.label}}, policy.Defaults{})
		if len(want.Rules) != 1 {
			t.Fatalf("%s: %v", c.label, want.Problems)
		}
		for _, yaml := range []string{c.yaml, "rule: '" + strings.ReplaceAll(c.label, "'", "''") + "'"} {
			all, err := Decode("a", []byte(around(selects+"  faults: [{name: r, "+yaml+"}]\n")))
			if err != nil {
				t.Errorf("%s: %v", yaml, err)
				continue
			}
			rules, err := all[0].Rules(policy.Defaults{})
			if err != nil || len(rules) != 1 {
				t.Errorf("%s: %v", yaml, err)
				continue
			}
			text := rules[0].Text
			rules[0].Text = want.Rules[0].Text
			if diff := cmp.Diff(want.Rules[0], rules[0]); diff != "" {
				t.Errorf("%s, as %s: %s", yaml, text, diff)
			}
			again, err := policy.ParseRule("r", text, policy.Defaults{})
			if again.Text = rules[0].Text; err != nil || !cmp.Equal(again, rules[0]) {
				t.Errorf("%s is not the text of its rule: %v", text, err)
			}
		}
	}
}

// TestTiming shows which faults have the policy's times.
func TestTiming(t *testing.T) {
	const yaml = selects + `  timing: {delay: 10s, active: 30s, idle: 60s, ttl: 5m}
  faults:
  - {name: a, io: {hang: true, ops: read, path: /d}}
  - {name: b, io: {hang: true, ops: read, path: /d}, trigger: {delay: 1s}}
  - {name: c, rule: io hang op=read path=/d ttl=1m}
  - {name: d, rule: io hang op=read path=/d active=1s idle=2s}
`
	all, err := Decode("a", []byte(around(yaml)))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := all[0].Rules(policy.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rules {
		got = append(got, fmt.Sprint(r.Trigger.Delay, r.Trigger.Active, r.Trigger.Idle, r.Trigger.TTL))
	}
	if want := []string{"10s 30s 1m0s 5m0s", "1s 0s 0s 5m0s", "10s 30s 1m0s 1m0s", "0s 1s 2s 5m0s"}; !cmp.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	// Neither the policy nor the fault says how long: the node does.
	all[0].Spec.Timing = Timing{}
	if rules, err = all[0].Rules(policy.Defaults{TTL: 7e9}); err != nil || rules[0].Trigger.TTL != 7e9 || strings.Contains(rules[0].Text, "ttl") {
		t.Errorf("%v, %v", rules, err)
	}
	// A node that allows less says so at the field.
	_, err = all[0].Rules(policy.Defaults{MaxTTL: 30e9})
	if err == nil || !strings.Contains(err.Error(), "spec.faults[2].rule: ttl=1m is longer than this node allows") {
		t.Errorf("%v", err)
	}
}

// FuzzDecode shows that a text is refused with places in it, or gives policies
// that are the same after JSON, pass Check, and whose rules are those of their texts.
func FuzzDecode(f *testing.F) {
	f.Add(around(selects + fault))
	f.Add(around(selects + "  faults: [{name: a, io: {path: '/a \"b', ops: [read], error: [EIO, ENOSPC:2], attr: {size: 0}}, trigger: {p: 5%}}]\n  timing: {ttl: 1h, schedule: '@hourly'}\n"))
	f.Add(around(selects + "  faults: [{name: a, kernel: {hook: slab, where: 'a)(\"', within: [{func: f, where: 'x == \"\\\\\"'}]}}]\n"))
	f.Add(around("  selector: {minAge: 1s, matchExpressions: [{key: a, operator: NotIn, values: ['']}]}\n  mode: fixed\n  value: 3\n" + fault))
	f.Fuzz(func(t *testing.T, text string) {
		all, err := Decode("f", []byte(text))
		var errs strictyaml.Errors
		if err != nil {
			if !errors.As(err, &errs) || len(errs) == 0 || all != nil && len(errs) == 0 {
				t.Fatalf("%T %v", err, err)
			}
			for _, e := range errs {
				if e.Message == "" || e.Line > strings.Count(text, "\n")+1 {
					t.Errorf("%+v", e)
				}
			}
			return
		}
		for _, p := range all {
			if err := p.Check(); err != nil {
				t.Errorf("%+v: %v", p, err)
			}
			b, err := json.Marshal(p)
			var again FaultPolicy
			if err == nil {
				err = json.Unmarshal(b, &again)
			}
			b2, err2 := json.Marshal(again)
			if err != nil || err2 != nil || string(b) != string(b2) {
				t.Errorf("%s\n%s: %v %v", b, b2, err, err2)
			}
			rules, err := p.Rules(unbounded)
			if err != nil || len(rules) != len(p.Spec.Faults) {
				t.Fatalf("%+v: %v", p, err)
			}
			for _, r := range rules {
				parsed, err := policy.ParseRule(r.Name, r.Text, unbounded)
				if err != nil || !cmp.Equal(parsed, r) {
					t.Errorf("%+v: %v", r, err)
				}
			}
		}
	})
}
