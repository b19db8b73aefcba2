package wrapper

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func TestParse(t *testing.T) {
	tests := []struct {
		line string
		env  map[string]string
		want *Invocation // nil: this is no runtime
	}{
		{line: "faultgraft ps"},
		{line: "faultgraft"},
		{line: "/opt/nri/plugins/10-faultgraft"},
		{line: "faultgraft inject runc"},
		{line: "/x/runc", want: &Invocation{Name: "runc"}},
		{line: "/x/faultgraft-crun state c", want: &Invocation{Name: "crun", Command: "state"}},
		{
			// As containerd's shim calls it (go-runc 1.2).
			line: "runc --root /run/runc/ns --log /b/log.json --log-format json --systemd-cgroup create --bundle /b/id --pid-file /b/id/init.pid --console-socket /tmp/s --preserve-fds 2 id",
			want: &Invocation{Name: "runc", Command: "create", Create: Create{
				ID: "id", Bundle: "/b/id", PIDFile: "/b/id/init.pid", Log: "/b/log.json", JSON: true,
				Globals: strings.Fields("--root /run/runc/ns --log /b/log.json --log-format json --systemd-cgroup"),
			}},
		},
		{
			line: "runc --rootless=false -log=/l --debug create -b b --no-pivot -- id",
			want: &Invocation{Name: "runc", Command: "create", Create: Create{ID: "id", Bundle: "b", Log: "/l", Globals: strings.Fields("--rootless=false -log=/l --debug")}},
		},
		{line: "runc create", want: &Invocation{Name: "runc", Command: "create", Create: Create{Globals: []string{}}}},
		{line: "runc create --bundle", want: &Invocation{Name: "runc", Command: "create", Create: Create{Globals: []string{}}}},
		{line: "runc --root create start c", want: &Invocation{Name: "runc", Command: "start"}},
		{
			line: "faultgraft runc --real /usr/bin/crun --state-dir=/s --budget 3s --root /r kill c 9",
			want: &Invocation{Name: "runc", Command: "kill", Options: Options{Real: "/usr/bin/crun", StateDir: "/s", Budget: 3 * time.Second}},
		},
		{
			line: "runc list", env: map[string]string{"FAULTGRAFT_RUNTIME": "crun", "FAULTGRAFT_RUNTIME_BUDGET": "soon"},
			want: &Invocation{Name: "runc", Command: "list", Options: Options{Real: "crun"}, Problems: []string{`FAULTGRAFT_RUNTIME_BUDGET "soon": give a duration above zero, as in 5s`}},
		},
		{line: "runc --without-agent refuse list", want: &Invocation{Name: "runc", Command: "list", Options: Options{WithoutAgent: "refuse"}}},
		{
			line: "runc --without-agent=start list", env: map[string]string{"FAULTGRAFT_WITHOUT_AGENT": "refuse"},
			want: &Invocation{Name: "runc", Command: "list", Options: Options{WithoutAgent: "start"}},
		},
		{line: "runc --without-agent=stop list", want: &Invocation{Name: "runc", Command: "list", Problems: []string{`--without-agent "stop": give start or refuse`}}},
		{line: "faultgraft runc --real", want: &Invocation{Name: "runc", Problems: []string{"--real needs a value"}}},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			got, is := Parse(strings.Fields(tt.line), env(tt.env))
			if is != (tt.want != nil) {
				t.Fatalf("a runtime: %v", is)
			}
			if !is {
				return
			}
			got.Args = nil // see FuzzParse
			if diff := cmp.Diff(*tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// FuzzParse shows that the real runtime gets what was given, whatever it is: the
// end of the arguments, without the wrapper's own flags.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"create --bundle b id", "--root r create -- x", "--real a --budget b state", "--log", "- -- --", "--preserve-fds=3 create"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, " ")
		inv, is := Parse(append([]string{"/x/runc"}, args...), env(nil))
		if !is {
			t.Fatal("not taken for a runtime")
		}
		if n := len(args) - len(inv.Args); n < 0 || !slices.Equal(args[n:], inv.Args) {
			t.Fatalf("arguments %q became %q", args, inv.Args)
		}
		for _, own := range args[:len(args)-len(inv.Args)] {
			if len(inv.Args) == len(args) {
				t.Fatalf("%q was dropped", own)
			}
		}
		if inv.Command != "" && !slices.Contains(inv.Args, inv.Command) {
			t.Fatalf("command %q is none of %q", inv.Command, inv.Args)
		}
		if inv.Create.ID != "" && inv.Command != "create" {
			t.Fatalf("an id without create: %+v", inv)
		}
	})
}
