package plugin

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestSpecMetadata(t *testing.T) {
	const hooked = `{"ociVersion":"1.3.0","annotations":{"org.example":"x","wal.faultgraft.io":"A"},"hooks":{"poststart":[` +
		`{"path":"/x/other","args":["other","hook","poststart","--rule","no=X"]},` +
		`{"path":"/x/faultgraft","args":["faultgraft","--state-dir","/s","hook","poststart","--rule","a=io p=5%","--rule=b=B","--rule","bare","--rule"]}]}}`
	tests := []struct {
		name, spec           string
		annotations, devices map[string]string
		err                  string
	}{
		{name: "nothing", spec: `{"annotations":{"org.example":"x"}}`},
		{name: "not JSON, and nothing of ours", spec: `{`},
		{name: "both", spec: hooked, annotations: map[string]string{"wal.faultgraft.io": "A"}, devices: map[string]string{"a.faultgraft.io": "io p=5%", "b.faultgraft.io": "B"}},
		{name: "not JSON", spec: `{"wal.faultgraft.io"`, err: "its OCI configuration: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			annotations, devices, err := specMetadata([]byte(tt.spec))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.annotations, annotations, cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tt.devices, devices, cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
		})
	}
}

// What a container itself carries hides a device's rule of that name.
func TestDeviceRuleIsHidden(t *testing.T) {
	merged, annotated := metadata{
		devices: map[string]string{"a.faultgraft.io": "device", "b.faultgraft.io": "device"},
		labels:  map[string]string{"a.faultgraft.io": "label"},
	}.merge()
	want := map[string]string{"a.faultgraft.io": "label", "b.faultgraft.io": "device"}
	if d := cmp.Diff(want, merged); d != "" || annotated["a.faultgraft.io"] || !annotated["b.faultgraft.io"] {
		t.Errorf("%s; annotated %v", d, annotated)
	}
}

// FuzzSpecMetadata shows that of whatever stands in a container's configuration
// only keys of faultgraft's domain come out.
func FuzzSpecMetadata(f *testing.F) {
	f.Add([]byte(`{"annotations":{"a.faultgraft.io":"x","b":"faultgraft.io"}}`))
	f.Add([]byte(`{"hooks":{"poststart":[{"args":["faultgraft","hook","--rule","a=b"]},null]}}`))
	f.Fuzz(func(t *testing.T, spec []byte) {
		annotations, devices, err := specMetadata(spec)
		if err != nil && json.Valid(spec) && len(annotations)+len(devices) > 0 {
			t.Fatal("an error and rules")
		}
		for _, m := range []map[string]string{annotations, devices} {
			for k := range m {
				if !hasRules(map[string]string{k: ""}) {
					t.Fatalf("key %q", k)
				}
			}
		}
	})
}
