package process

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// P13: toda's own configuration, as its JSON-RPC call, does to a file that was
// open before what it says.
func TestTodaConfig(t *testing.T) {
	r := newRig(t)
	h := r.start()
	const content = "0123456789"
	for _, n := range []string{"fault", "mistake", "attr", "other"} {
		h.ok("open %s %s rdwr", n, r.write(n, content))
	}
	config := filepath.Join(t.TempDir(), "injectors.json")
	text := `{"jsonrpc": "2.0", "method": "update", "id": 1, "params": [[
	  {"type": "latency", "path": "` + r.data + `/**/*", "methods": ["READ"], "percent": 100, "latency": "1ms"},
	  {"type": "fault", "path": "` + r.data + `/fault", "methods": ["WRITE", "FSYNC"], "percent": 100, "faults": [{"errno": 28, "weight": 1}]},
	  {"type": "mistake", "path": "` + r.data + `/mis*", "methods": ["READ"], "percent": 100, "mistake": {"filling": "zero", "maxOccurrences": 1, "maxLength": 4}},
	  {"type": "attrOverride", "path": "` + r.data + `/attr", "percent": 100, "size": 99}
	]]}`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	g := r.inject(h, r.data, "--toda-config", config, "--ttl", "2m")
	h.is("ENOSPC", "pwrite fault 0 A")
	h.is("ENOSPC", "fsync fault")
	h.is("ok "+content, "pread fault 0 10")
	if got := h.ok("pread mistake 0 10"); got == content {
		t.Errorf("mistake: %q", got)
	}
	h.is("ok 99", "stat %s", filepath.Join(r.data, "attr"))
	h.is("ok 1", "pwrite other 0 A")
	fired := map[string]uint64{"latency-1": 2, "fault-2": 2, "mistake-3": 1, "attr-override-4": 1}
	for _, rule := range r.recover(g).Rules {
		if rule.Fired != fired[rule.Name] {
			t.Errorf("%s fired %d times, want %d: %s", rule.Name, rule.Fired, fired[rule.Name], rule.Text)
		}
	}
	h.is("ok "+content, "pread mistake 0 10")
	h.is("ok 10", "stat %s", filepath.Join(r.data, "attr"))
}

// What is wrong in it is refused with its place, and changes nothing.
func TestTodaConfigRefused(t *testing.T) {
	r := newRig(t)
	h := r.start()
	config := filepath.Join(t.TempDir(), "injectors.json")
	if err := os.WriteFile(config, []byte("[\n  {\"type\": \"latency\", \"percent\": 100, \"latency\": \"10 parsecs\"}\n]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--toda-config", config}, "--toda-config: give --path"},
		{[]string{"--toda-config", config, "--path", r.data}, config + `:2:54: [0].latency: unknown unit "parsecs"`},
		{[]string{"--toda-config", config + "x", "--path", r.data}, "no such file"},
		{[]string{"--toda-config", config, "--path", r.data, "--ttl", "25h"}, "--ttl 25h0m0s"},
	} {
		out, err := r.run(append([]string{"inject", "--pid", strconv.Itoa(h.pid())}, tt.args...)...)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %q, %v", tt.args, out, err)
		}
	}
	if grafts := r.list(); len(grafts) > 0 {
		t.Errorf("grafts: %+v", grafts)
	}
}
