package hooks

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// As runc and crun write it.
const (
	runcState = `{"ociVersion":"1.3.0","id":"c1","status":"created","pid":4711,"bundle":"/b","annotations":{"a.faultgraft.io":"io error=EIO op=read path=/d"}}`
	crunState = `{"ociVersion":"1.0","id":"c1","pid":4711,"root":"/b/rootfs","bundle":"/b","status":"running"}`
)

func TestParseState(t *testing.T) {
	tests := []struct{ name, state, err string }{
		{"runc", runcState, ""},
		{"crun", crunState, ""},
		{"nothing", " \n", "no state on standard input"},
		{"cut off", runcState[:40], "not JSON: unexpected end of JSON input at byte 40"},
		{"more after it", runcState + "{}", "not JSON: invalid character '{' after top-level value at byte "},
		{"text", "hello", "not JSON: invalid character 'h'"},
		{"null", "null", "null instead of an object"},
		{"a list", "[]", "array at its top"},
		{"pid is text", `{"pid":"1"}`, "string in pid, where int is needed"},
		{"an annotation is a number", strings.Replace(runcState, `"io error=EIO op=read path=/d"`, "1", 1), "number in annotations"},
		{"another object", `{"x":1}`, "no ociVersion"},
		{"version 2", strings.Replace(runcState, "1.3.0", "2.0.0", 1), `ociVersion is "2.0.0"`},
		{"no id", strings.Replace(runcState, "c1", "", 1), "no id"},
		{"control characters in the id", strings.Replace(runcState, "c1", `c\n1`, 1), `the id "c\n1"`},
		{"stopped", strings.Replace(runcState, "created", "stopped", 1), `the status is "stopped"`},
		{"creating", strings.Replace(runcState, "created", "creating", 1), `the status is "creating"`},
		{"no pid", strings.Replace(runcState, `"pid":4711,`, "", 1), "the pid is 0"},
		{"negative pid", strings.Replace(runcState, "4711", "-1", 1), "the pid is -1"},
		{"relative bundle", strings.Replace(runcState, `"/b"`, `"b"`, 1), `the bundle "b" is not an absolute path`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ParseState([]byte(tt.state))
			if tt.err == "" {
				if err != nil || s.ID != "c1" || s.Pid != 4711 || s.Bundle != "/b" {
					t.Fatalf("state %+v, error %v", s, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if s != nil {
				t.Errorf("a state came with the error: %+v", s)
			}
		})
	}
}

func TestReadStateIsBounded(t *testing.T) {
	fill := func(n int) []byte { return append([]byte(runcState), bytes.Repeat([]byte(" "), n-len(runcState))...) }
	if _, err := ReadState(bytes.NewReader(fill(MaxState))); err != nil {
		t.Errorf("%d bytes: %v", MaxState, err)
	}
	_, err := ReadState(bytes.NewReader(fill(MaxState + 1)))
	if err == nil || !strings.Contains(err.Error(), "larger than 1048576 bytes") {
		t.Errorf("%d bytes: error %v", MaxState+1, err)
	}
}

// FuzzParseState shows that whatever a runtime writes is either refused in one
// line of words or gives a state that a hook can work with.
func FuzzParseState(f *testing.F) {
	for _, s := range []string{runcState, crunState, "", "null", "[]", `{"pid":1e99}`, `{"ociVersion":"1.0","id":"\u0000"}`, runcState + runcState} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseState(b)
		if err != nil {
			if s != nil || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Fatalf("state %v, error %q", s, err)
			}
			return
		}
		if s.Pid <= 0 || s.ID == "" || !strings.HasPrefix(s.Bundle, "/") || s.Status != specs.StateCreated && s.Status != specs.StateRunning {
			t.Fatalf("let through: %+v", s)
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		s2, err := ParseState(again)
		if err != nil {
			t.Fatalf("its own JSON is refused: %v", err)
		}
		if len(s.Annotations) == 0 {
			s.Annotations, s2.Annotations = nil, nil // omitempty
		}
		if diff := cmp.Diff(s, s2); diff != "" {
			t.Fatal(diff)
		}
	})
}
