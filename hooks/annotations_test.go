package hooks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestAnnotations(t *testing.T) {
	const config = `{"ociVersion":"1.3.0","process":{"args":["sh"]},"annotations":{"a":"1","b":"1","enable.faultgraft.io":"no","enable.faultgraft.io/pod":"true"}}`
	state := map[string]string{"b": "2", "c": "2", "enable.faultgraft.io": "true", "enable.faultgraft.io/pod": "false"}
	tests := []struct {
		name, config string
		want         map[string]string
		err          string
	}{
		{name: "both", config: config, want: map[string]string{
			"a": "1", "b": "2", "c": "2", "enable.faultgraft.io": "no", "enable.faultgraft.io/pod": "false",
		}},
		{name: "config.json without any", config: "{}", want: state},
		{name: "no config.json", want: state},
		{name: "not JSON", config: "{", err: "config.json: not JSON"},
		{name: "not text", config: `{"annotations":{"a":true}}`, err: "config.json: JSON of another shape: bool in annotations"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bundle := t.TempDir()
			if tt.config != "" {
				if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(tt.config), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := Annotations(&specs.State{Bundle: bundle, Annotations: state})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAnnotationsOfAFIFO(t *testing.T) {
	bundle := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(bundle, "config.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Annotations(&specs.State{Bundle: bundle}); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("error %v", err)
	}
}
