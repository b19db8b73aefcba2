package chaosmesh

import (
	"errors"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// TestRefused shows what is refused, with the field, its place, and the reason.
// The mark ^ in a manifest is where the error has to be; it is not part of it.
func TestRefused(t *testing.T) {
	latency := func(lines string) string { return ioManifest("action: latency\ndelay: 1s\n" + lines) }
	selector := func(lines string) string {
		return strings.Replace(latency(""), "selector: {}", "selector: "+lines, 1)
	}
	mode := func(lines string) string { return strings.Replace(latency(""), "mode: one", lines, 1) }
	tests := []struct{ manifest, path, want string }{
		// objects
		{strings.Replace(latency(""), "IOChaos", "^PodChaos", 1), "kind", "faultgraft makes faults of files"},
		{strings.Replace(latency(""), "IOChaos", "^IoChaos", 1), "kind", "did you mean IOChaos?"},
		{strings.Replace(latency(""), "chaos-mesh.org/v1alpha1", "^chaos-mesh.org/v1", 1), "apiVersion", "write chaos-mesh.org/v1alpha1"},
		{strings.Replace(latency(""), "metadata: {name: x}", "^metadata: {namespace: x}", 1), "metadata.name", "name is missing"},
		{strings.Replace(latency(""), "metadata: {name: x}", "metadata: {name: x, ^deletionTimestampp: x}", 1), "metadata", "did you mean deletionTimestamp?"},
		{strings.Replace(latency(""), "metadata: {name: x}", "metadata: {name: x, deletionTimestamp: ^now}", 1), "metadata.deletionTimestamp", "being deleted"},
		{strings.Replace(latency(""), "metadata: {name: x}", "metadata: {^generateName: x}", 1), "metadata", "unknown field"},

		{strings.Replace(latency(""), "metadata: {name: x}", "metadata: {name: ^My_Name}", 1), "metadata.name", "is not a name"},
		{strings.Replace(latency(""), "selector: {}", "selector: {labelSelectors: {'': ^x}}", 1), `spec.selector.labelSelectors[""]`, "a key is empty"},

		// IOChaos
		{latency("^percnt: 5"), "spec", "did you mean percent?"},
		{latency("percent: ^101"), "spec.percent", "0 to 100"},
		{latency("percent: ^-1"), "spec.percent", "0 to 100"},
		{latency("percent: ^'5'"), "spec.percent", "leave the quotes out"},
		{latency("errno: ^5"), "spec.errno", "errno means nothing for action latency"},
		{latency("^attr: {perm: 72}"), "spec.attr", "attr means nothing for action latency"},
		{latency("^mistake: {filling: zero}"), "spec.mistake", "mistake means nothing for action latency"},
		{latency("remoteCluster: ^east"), "spec.remoteCluster", "another cluster"},
		{latency("duration: ^-5s"), "spec.duration", ""},
		{latency("duration: ^5 parsecs"), "spec.duration", ""},
		{strings.Replace(latency("duration: 500ms"), "delay: ", "delay: ^", 1), "spec.delay", "longer than the rule lives"},
		{latency("methods: [read, ^forget]"), "spec.methods[1]", "forget cannot fail or wait"},
		{latency("methods: [^bmap]"), "spec.methods[0]", "bmap cannot fail or wait"},
		{latency("methods: [^reed]"), "spec.methods[0]", "did you mean read?"},
		{latency("path: ^data/**"), "spec.path", "not absolute"},
		{latency("path: ^/other/*"), "spec.path", "does not lie in volumePath /data"},
		{latency("path: ^/data/a**"), "spec.path", "** is only a part"},
		{latency("path: ^/data/[a"), "spec.path", "[ without ]"},
		{latency("path: ^/**/data/x"), "spec.path", "in more than one way"},
		{latency("path: ^/data/../x"), "spec.path", `segment ".."`},
		{strings.Replace(latency(""), "volumePath: /data", "volumePath: ^data", 1), "spec.volumePath", "not absolute"},
		{ioManifest("action: ^delay"), "spec.action", "unknown action"},
		{strings.Replace(ioManifest("percent: 5"), "spec:", "^spec:", 1), "spec.action", "action is missing"},
		{strings.Replace(ioManifest("action: latency"), "spec:", "^spec:", 1), "spec.delay", "delay is missing"},
		{strings.Replace(ioManifest("action: fault"), "spec:", "^spec:", 1), "spec.errno", "errno is missing"},
		{strings.Replace(ioManifest("action: attrOverride"), "spec:", "^spec:", 1), "spec.attr", "attr is missing"},
		{strings.Replace(ioManifest("action: mistake"), "spec:", "^spec:", 1), "spec.mistake", "mistake is missing"},
		{ioManifest("action: fault\nerrno: ^0"), "spec.errno", "not the number of an error"},
		{ioManifest("action: fault\nerrno: ^5000"), "spec.errno", "not the number of an error"},
		{ioManifest("action: fault\nerrno: ^38"), "spec.errno", "use EOPNOTSUPP"},
		{ioManifest("action: fault\nerrno: ^EIO"), "spec.errno", "not a whole number"},
		{ioManifest("action: fault\nerrno: 5\nmethods: [open, ^release]"), "spec.methods[1]", "release cannot fail"},
		{ioManifest("action: attrOverride\nattr: {perm: 72}\n^methods: [getattr]"), "spec.methods", "methods means nothing for attrOverride"},
		{ioManifest("action: attrOverride\nattr: {perm: ^5000}"), "spec.attr.perm", "not permissions"},
		{ioManifest("action: attrOverride\nattr: {perm: 72, kind: ^socket}"), "spec.attr.kind", "cannot be overridden"},
		{ioManifest("action: attrOverride\nattr: {rdev: ^1}"), "spec.attr.rdev", "cannot be overridden"},
		{ioManifest("action: attrOverride\nattr: {ino: ^0}"), "spec.attr.ino", ""},
		{ioManifest("action: attrOverride\nattr: {^mode: 72}"), "spec.attr", "unknown field"},
		{ioManifest("action: attrOverride\nattr: {^atime: {nsec: 1}}"), "spec.attr.atime", "sec is missing"},
		{ioManifest("action: attrOverride\nattr: {^mtime: {sec: 1, nsec: 1000000000}}"), "spec.attr.mtime", "within a second"},
		{ioManifest("action: attrOverride\n^attr: {}"), "spec.attr", "no attribute"},
		{ioManifest("action: mistake\nmistake: {filling: ^ones, maxOccurrences: 1, maxLength: 1}"), "spec.mistake.filling", "zero or random"},
		{ioManifest("action: mistake\n^mistake: {filling: zero, maxLength: 1}"), "spec.mistake.maxOccurrences", "maxOccurrences is missing"},
		{ioManifest("action: mistake\nmistake: {filling: zero, maxOccurrences: ^1001, maxLength: 1}"), "spec.mistake.maxOccurrences", "too large"},
		{ioManifest("action: mistake\nmistake: {filling: zero, maxOccurrences: 1, maxLength: ^0}"), "spec.mistake.maxLength", ""},
		{ioManifest("action: mistake\nmistake: {filling: zero, maxOccurrences: 1, maxLength: 1}\nmethods: [read, ^getattr]"), "spec.methods[1]", "corrupt means nothing for getattr"},

		// selectors
		{mode("^mod: one"), "spec", "did you mean mode?"},
		{mode("mode: ^some"), "spec.mode", "unknown mode"},
		{mode("mode: one\n  value: '^2'"), "spec.value", "value means nothing for mode one"},
		{mode("mode: fixed\n  value: ^none"), "spec.value", "1 to"},
		{mode("mode: fixed-percent\n  value: '^101'"), "spec.value", "1 to 100"},
		{strings.Replace(mode("mode: random-max-percent"), "spec:", "^spec:", 1), "spec.value", "value is missing"},
		{selector("{^nodes: [a]}"), "spec.selector.nodes", "apply the manifest on those nodes"},
		{selector("{^nodeSelectors: {a: b}}"), "spec.selector.nodeSelectors", "apply the manifest on those nodes"},
		{selector("{podPhaseSelectors: [^Runing]}"), "spec.selector.podPhaseSelectors[0]", "did you mean Running?"},
		{selector("{^podPhaseSelectors: [Pending]}"), "spec.selector.podPhaseSelectors", "Running is not among"},
		{selector("{podPhaseSelectors: ['^!Running']}"), "spec.selector.podPhaseSelectors[0]", "leaves out all"},
		{selector("{pods: {a: [b]}, ^namespaces: [a]}"), "spec.selector.namespaces", "leave one of them out"},
		{selector("{pods: {a: [b]}, ^labelSelectors: {a: b}}"), "spec.selector.labelSelectors", "leave one of them out"},
		{selector("{pods: {^a: []}}"), "spec.selector.pods.a", "has no pods"},
		{selector("{fieldSelectors: {spec.nodeName: ^n}}"), `spec.selector.fieldSelectors["spec.nodeName"]`, "nodes cannot be chosen"},
		{selector("{fieldSelectors: {status.podIP: ^n}}"), `spec.selector.fieldSelectors["status.podIP"]`, "does not know"},
		{selector("{fieldSelectors: {metadata.nam: ^n}}"), `spec.selector.fieldSelectors["metadata.nam"]`, "did you mean metadata.name?"},
		{selector("{fieldSelectors: {metadata.namespace: ^n}}"), `spec.selector.fieldSelectors["metadata.namespace"]`, "nothing could match"},
		{selector("{expressionSelectors: [{key: a, operator: ^Inn}]}"), "spec.selector.expressionSelectors[0].operator", "did you mean In?"},
		{selector("{expressionSelectors: [^{operator: In, values: [a]}]}"), "spec.selector.expressionSelectors[0].key", "key is missing"},
		{selector("{expressionSelectors: [^{key: a}]}"), "spec.selector.expressionSelectors[0].operator", "operator is missing"},
		{selector("{expressionSelectors: [^{key: a, operator: In}]}"), "spec.selector.expressionSelectors[0].values", "values is missing"},
		{selector("{expressionSelectors: [{key: a, operator: Exists, ^values: [b]}]}"), "spec.selector.expressionSelectors[0].values", "takes no values"},
		{selector("{^physicalMachines: {a: [b]}}"), "spec.selector", "unknown field"},

		// KernelChaos
		{strings.Replace(kernelManifest("times: 1"), "failKernRequest", "^failKernRequest", 1), "spec.failKernRequest.failtype", "failtype is missing"},
		{kernelManifest("failtype: ^3"), "spec.failKernRequest.failtype", "0 for slab"},
		{kernelManifest("failtype: 0\nprobability: ^0"), "spec.failKernRequest.probability", "takes for always"},
		{kernelManifest("failtype: 0\nprobability: ^101"), "spec.failKernRequest.probability", "1 to 100"},
		{kernelManifest("failtype: 0\ntimes: ^-1"), "spec.failKernRequest.times", ""},
		{strings.Replace(kernelManifest("failtype: 1"), "failKernRequest", "^failKernRequest", 1), "spec.failKernRequest", "fails each page allocation"},
		{kernelManifest("failtype: 0\n^pid: 1"), "spec.failKernRequest", "unknown field"},
		{kernelManifest("failtype: 0\ncallchain: [^{funcname: ''}]"), "spec.failKernRequest.callchain[0]", "neither funcname nor predicate"},
		{kernelManifest("failtype: 0\ncallchain: [^{predicate: a}, {funcname: b}]"), "spec.failKernRequest.callchain[0]", "funcname is missing"},
		{kernelManifest("failtype: 0\ncallchain: [{parameters: ^int a, predicate: a}]"), "spec.failKernRequest.callchain[0].parameters", "are known"},
		{kernelManifest("failtype: 0\ncallchain: [{funcname: vfs_write^+0x10}]"), "spec.failKernRequest.callchain[0].funcname", "leave the offset out"},
		{kernelManifest("failtype: 0\ncallchain: [{funcname: '^f times=1'}]"), "spec.failKernRequest.callchain[0].funcname", "f times"},
		{kernelManifest("failtype: 0\ncallchain: [{funcname: f, predicate: '^a) times=5 stack comm=(x'}]"), "spec.failKernRequest.callchain[0].predicate", "do not match"},
		{kernelManifest("failtype: 0\ncallchain: [{funcname: f, predicate: 'a == \"b'}]"), "", "close"},
	}
	for _, tt := range tests {
		manifest := strings.Replace(tt.manifest, "^", "", 1)
		line, column := 0, 0
		if before, _, marked := strings.Cut(tt.manifest, "^"); marked {
			line, column = strings.Count(before, "\n")+1, len(before)-strings.LastIndexByte(before, '\n')
		}
		_, err := readText(manifest)
		var errs strictyaml.Errors
		if !errors.As(err, &errs) {
			t.Errorf("%s\nerror %v, want %q", manifest, err, tt.want)
			continue
		}
		e := errs[0]
		if !strings.Contains(e.Error(), tt.want) || line > 0 && (e.Line != line || e.Column != column || e.Path != tt.path) || e.File != "a.yaml" {
			t.Errorf("%s\n%v\nwant %d:%d: %s: … %s", manifest, errs, line, column, tt.path, tt.want)
		}
	}
}

// TestRuleError shows that a mistake in a predicate which only the running
// kernel's types tell has its place in the manifest.
func TestRuleError(t *testing.T) {
	text := kernelManifest("failtype: 0\ncallchain:\n- funcname: f\n  predicate: name->len > 5")
	docs, err := strictyaml.Read("a.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Decode(docs[0], policy.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	rule := p.Spec.Faults[0].Rule
	wrong := &policy.SyntaxError{Text: rule, Column: strings.Index(rule, "len") + 1, Message: "no member len", Fix: "did you mean hash_len?"}
	got := RuleError(docs[0], wrong).Error()
	if want := "a.yaml:11:24: spec.failKernRequest.callchain[0].predicate: no member len; did you mean hash_len?"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// TestScheduleRefused shows the same of schedules.
func TestScheduleRefused(t *testing.T) {
	manifest := func(replace ...string) string {
		return strings.NewReplacer(replace...).Replace(`apiVersion: chaos-mesh.org/v1alpha1
kind: Schedule
metadata: {name: s}
spec:
  schedule: '5 * * * *'
  type: IOChaos
  ioChaos: {action: latency, delay: 1ms, mode: one, selector: {}, volumePath: /d, duration: 400s}
`)
	}
	tests := []struct{ manifest, want string }{
		{manifest("type: IOChaos", "type: PodChaos"), `a.yaml:6:9: spec.type: the type "PodChaos" cannot be scheduled; faultgraft makes faults of files`},
		{manifest("type: IOChaos", "type: KernelChaos"), "a.yaml:4:1: spec.kernelChaos: kernelChaos is missing"},
		{manifest("  type: IOChaos\n", ""), "a.yaml:4:1: spec.type: type is missing"},
		{manifest("ioChaos:", "podChaos:"), "a.yaml:7:3: spec: unknown field \"podChaos\"; faultgraft makes faults of files"},
		{manifest(", duration: 400s", ""), "a.yaml:7:3: spec.ioChaos.duration: duration is missing"},
		{manifest("delay: 1ms", "delay: 1m", "400s", "5s"), "a.yaml:7:37: spec.ioChaos.delay: a latency of 1m0s is longer"},
		{manifest("'5 * * * *'", "'61 * * * *'"), "a.yaml:5:14: spec.schedule: "},
		{manifest("'5 * * * *'", "'5 5 * * * *'"), "a.yaml:5:14: spec.schedule: the schedule \"5 5 * * * *\" names seconds"},
		{manifest("  type", "  concurrencyPolicy: Allow\n  type"), "a.yaml:6:22: spec.concurrencyPolicy: the same fault cannot be on a container twice"},
		{manifest("  type", "  historyLimit: 0\n  type"), "a.yaml:6:17: spec.historyLimit: the limit is below 1"},
		{manifest("  type", "  startingDeadlineSeconds: -1\n  type"), "a.yaml:6:28: spec.startingDeadlineSeconds: "},
		{manifest("  ioChaos", "  kernelChaos: {}\n  ioChaos"), "a.yaml:7:3: spec.kernelChaos: the type is IOChaos"},
	}
	for _, tt := range tests {
		if _, err := readText(tt.manifest); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s\n%v\nwant %s", tt.manifest, err, tt.want)
		}
	}
}

// TestGlobsOfRust shows how globs are translated, beside those of the page.
func TestGlobsOfRust(t *testing.T) {
	tests := []struct{ volume, path, want string }{
		{"/", "", "/**"},
		{"/", "/**/*", "/**/*"},
		{"/data/", "/data/x", "/data/x"},
		{"/data/../data", "/data/*", "/data/*"},
		{"/d*t", "", `/d\*t/**`},
		{"/d*t", "/d?t/x", `/d\*t/x`},
		{"/data", "/**/*", "/data/**"},
		{"/data", "/**/**/x", "/data/**/x"},
		{"/data", "**/**/x", "/data/**/x"},
		{"/data", "/*/*", "/data/*"},
		{"/data", "/*", "/data"},
		{"/data", `/data/\x`, `/data/\\x`},
		{"/data", "/data/[]x]", `/data/[\]x]`},
		{"/data", "/data/[[]", `/data/[\[]`},
		{"/data", "/data/[^a-c-]", `/data/[\^a-c\-]`},
		{"/data", "/data/[!-z]", `/data/[!/\-z]`},
		{"/data", "/data/a]", `/data/a\]`},
		{"/var/run/etcd", "/var/**/*.log", "/var/run/etcd/**/*.log"},
		{"/var/run/etcd", "/**/etcd/*", ""},
		{"/data", "/dat", ""},
		{"/data", "", "/data/**"},
		{"/data", "*.log", ""},
		{"/data", "/data/***", ""},
		{"/data", "/data/", ""},
		{"/data", "/data//x", ""},
		{"/data", "/data/[]", ""},
		{"/data", "/data/[!]", ""},
		{"/data/sub", "/data/*.log", ""},
	}
	for _, tt := range tests {
		got, err := pathGlob(tt.volume, tt.path)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("volume %s, path %s: %q, %v; want %q", tt.volume, tt.path, got, err, tt.want)
		}
	}
}

// TestToda shows toda's configuration in the forms in which it comes, and what is refused of it.
func TestToda(t *testing.T) {
	tests := []struct{ text, want string }{
		{`[{"type": "latency", "path": "", "percent": 100, "latency": "1m 30s"}]`, "latency io latency=1m30s op=all path=/data/**"},
		{`{"jsonrpc": "2.0", "method": "update", "params": [[{"type": "latency", "percent": 100, "latency": "10s"}]], "id": 1}`, "latency io latency=10s op=all path=/data/**"},
		// As Chaos Mesh's daemon sends it.
		{`[{"type":"latency","path":"/data/*","percent":50,"faults":[{"errno":0,"weight":1}],"latency":"2sec","source":"shop/x"}]`, "latency io latency=2s op=all p=50% path=/data/*"},
		{`[{"type":"attrOverride","path":"/data/x","percent":100,"atime":{"sec":1,"nsec":2}}]`, "attr-override io attr=atime:1970-01-01T00:00:01.000000002Z path=/data/x"},

		{`[]`, "a.json:1:1: there is no injector in the list"},
		{`{"jsonrpc": "2.0", "method": "get_status", "params": [], "id": 1}`, `a.json:1:31: method: the method "get_status" brings no injectors`},
		{`{"method": "update", "params": []}`, "a.json:1:22: params: update has 0 parameters"},
		{`[{"type": "latency", "latency": "10s"}]`, "a.json:1:2: [0].percent: percent is missing"},
		{`[{"percent": 1}]`, "a.json:1:2: [0].type: type is missing"},
		{`[{"type": "latency", "percent": 1, "latency": "10 parsecs"}]`, `a.json:1:51: [0].latency: unknown unit "parsecs"`},
		{`[{"type": "latency", "percent": 1, "latency": "1.5s"}]`, `a.json:1:48: [0].latency: "1.5s" is not a time`},
		{`[{"type": "latency", "percent": 1, "latency": "99999999999999999999s"}]`, "a.json:1:48: [0].latency: the time 99999999999999999999s is too long"},
		{`[{"type": "latency", "percent": 1, "latency": "0s"}]`, "a.json:1:48: [0].latency: the time is 0"},
		{`[{"type": "latency", "percent": 1, "latency": "1s", "perm": 5}]`, "a.json:1:61: [0].perm: perm means nothing for type latency"},
		{`[{"type": "latency", "percent": 1, "latency": "1s", "faults": [{"errno": 5, "weight": 1}]}]`, "a.json:1:53: [0].faults: faults means nothing for type latency"},
		{`[{"type": "fault", "percent": 1, "faults": []}]`, "a.json:1:34: [0].faults: faults is missing"},
		{`[{"type": "fault", "percent": 1, "faults": [{"errno": 5, "weight": 0}]}]`, "a.json:1:55: [0].faults[0].errno: the weight 0 of EIO makes no sense"},
		{`[{"type": "fault", "percent": 1, "faults": [{"errno": 5}]}]`, "a.json:1:45: [0].faults[0].weight: weight is missing"},
		{`[{"type": "fault", "percent": 1, "faults": [{"errno": 5, "weight": 1}, {"errno": 5, "weight": 1}]}]`, "a.json:1:82: [0].faults[1].errno: the errno EIO is given twice"},
		{`[{"type": "attrOverride", "percent": 1, "perm": 5}]`, "a.json:1:2: [0].path: path is missing"},
		{`[{"type": "attrOverride", "path": "/data/x", "percent": 1, "kind": "socket"}]`, "a.json:1:69: [0].kind: the attribute kind cannot be overridden"},
		{`[{"type": "mistake", "percent": 1, "mistake": {"filling": "zero", "maxOccurrences": 1, "maxLength": 1}, "methods": ["STATFS"]}]`, "a.json:1:118: [0].methods[0]: corrupt means nothing for statfs"},
		{`[{"type": "latency", "percent": 1, "latency": "1s", "path": "/other/*"}]`, "a.json:1:62: [0].path: the path does not lie in volumePath /data"},
		{`[{"type": "latency", "percentage": 1}]`, "a.json:1:22: [0]: unknown field \"percentage\""},
		{`[`, "a.json"},
		{``, "a.json: the file has 0 documents"},
	}
	for _, tt := range tests {
		rules, err := DecodeToda("a.json", []byte(tt.text), "/data", policy.Defaults{})
		got := ""
		switch {
		case err != nil:
			got = err.Error()
		case len(rules) == 1:
			got = rules[0].Name + " " + rules[0].Text
		}
		if !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s\n%s\nwant %s", tt.text, got, tt.want)
		}
	}
	if _, err := DecodeToda("a.json", []byte("[]"), "data", policy.Defaults{}); err == nil {
		t.Error("a path that is not absolute was taken")
	}
}
