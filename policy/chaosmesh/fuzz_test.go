package chaosmesh

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// FuzzDecode shows that a manifest is refused with a place, or gives a policy
// with one rule that can be parsed, stays in the volume, and has no more
// operations and no other trigger than the manifest says.
func FuzzDecode(f *testing.F) {
	f.Add(ioManifest("action: fault\nerrno: 5\nmethods: [read]\npath: /data/**/*.{a}\npercent: 3"))
	f.Add(ioManifest("action: attrOverride\nattr: {perm: 72, atime: {sec: 1, nsec: 2}}\npath: '**/[!a-z]'"))
	f.Add(ioManifest("action: mistake\nmistake: {filling: zero, maxOccurrences: 1, maxLength: 1}\npath: /*/x"))
	f.Add(kernelManifest("failtype: 0\ncallchain: [{funcname: f, parameters: int a, predicate: 'a) times=5 within=(b'}, {predicate: 'x == \"(\"'}]\ntimes: 3"))
	f.Add("apiVersion: chaos-mesh.org/v1alpha1\nkind: Schedule\nmetadata: {name: s}\nspec: {schedule: '@every 10m', type: IOChaos, ioChaos: {action: latency, delay: 1ms, mode: fixed, value: 2, selector: {pods: {a: [b]}}, volumePath: /d, duration: 400s}}\n")
	f.Fuzz(func(t *testing.T, text string) {
		docs, err := strictyaml.Read("f", []byte(text))
		if err != nil {
			return
		}
		for _, doc := range docs {
			p, err := Decode(doc, policy.Defaults{})
			var errs strictyaml.Errors
			if err != nil {
				if !errors.As(err, &errs) || len(errs) == 0 || errs[0].Line < 1 || errs[0].Column < 1 || errs[0].Message == "" {
					t.Errorf("%s\n%#v", text, err)
				}
				continue
			}
			if len(p.Spec.Faults) != 1 || p.Metadata.Name == "" || p.Spec.Mode == "" {
				t.Fatalf("%s\n%+v", text, p)
			}
			r, err := policy.ParseRule(p.Spec.Faults[0].Name, p.Spec.Faults[0].Rule, withTTL(&p.Spec, policy.Defaults{}))
			if err != nil {
				t.Fatalf("%s\n%v", text, err)
			}
			at := "spec"
			if inner, _ := doc.Text("spec.type"); inner != "" {
				at = map[string]string{KindIOChaos: "spec.ioChaos", KindKernelChaos: "spec.kernelChaos"}[inner]
			}
			times, _ := doc.Text(at + ".failKernRequest.times")
			tr := r.Trigger
			if tr.After != 0 || tr.Every != 0 || tr.Delay != 0 || tr.Active != 0 || tr.AfterBytes != 0 || tr.Times != 0 && times == "" {
				t.Errorf("%s\nthe trigger %+v", text, tr)
			}
			if r.IO == nil {
				continue
			}
			volume, _ := doc.Text(at + ".volumePath")
			if !r.IO.Touches(strings.TrimSuffix(volume, "/") + "/") {
				t.Errorf("%s\nthe path %s is outside of %s", text, r.IO.Path, volume)
			}
			// One action, and nothing that Chaos Mesh has not.
			actions := []bool{r.IO.Latency != nil, len(r.IO.Errors) > 0, r.IO.Attr != nil, r.IO.Corrupt != nil}
			actions = slices.DeleteFunc(actions, func(is bool) bool { return !is })
			if len(actions) != 1 || len(r.IO.Exclude) > 0 || !r.IO.Caller.Empty() || r.IO.Offset != nil || r.IO.Size != nil || r.IO.Hang || r.IO.Lost || r.IO.Torn != nil || r.IO.Space != nil {
				t.Errorf("%s\nthe rule %s", text, r.Text)
			}
		}
	})
}

// FuzzToda shows the same of toda's injectors.
func FuzzToda(f *testing.F) {
	f.Add(`[{"type": "latency", "path": "/data/**/*", "methods": ["read"], "percent": 50, "latency": "10ms"}]`)
	f.Add(`{"jsonrpc": "2.0", "method": "update", "params": [[{"type": "fault", "percent": 1, "faults": [{"errno": 5, "weight": 1}]}]], "id": 1}`)
	f.Add(`[{"type":"attrOverride","path":"/data/x","percent":100,"atime":{"secs_since_epoch":1,"nanos_since_epoch":2},"perm":1}]`)
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := DecodeToda("f", []byte(text), "/data", policy.Defaults{})
		var errs strictyaml.Errors
		if err != nil {
			if !errors.As(err, &errs) {
				t.Errorf("%s\n%#v", text, err)
			}
			return
		}
		for _, r := range rules {
			if err := r.Check(); err != nil || !r.IO.Touches("/data") {
				t.Errorf("%s\n%s: %v", text, r.Text, err)
			}
		}
	})
}
