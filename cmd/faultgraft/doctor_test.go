package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin/graft"
	"sigs.k8s.io/yaml"
)

// doctor runs the command; an error may only be about a missing requirement.
func doctor(t *testing.T, output string) string {
	t.Helper()
	var out bytes.Buffer
	c := newRootCommand()
	c.SetArgs([]string{"doctor", "-o", output, "--state-dir", t.TempDir()})
	c.SetOut(&out)
	err := c.Execute()
	missing := slices.ContainsFunc(graft.Doctor(), func(k graft.Check) bool { return k.Required && !k.OK })
	if (err != nil) != missing {
		t.Errorf("a requirement is missing: %t, but the command says: %v", missing, err)
	}
	return out.String()
}

func TestDoctorReportsKernelBackends(t *testing.T) {
	for _, output := range []string{"json", "yaml"} {
		var r struct {
			Checks []graft.Check    `json:"checks"`
			Kernel []kernel.Backend `json:"kernel"`
		}
		text, err := yaml.YAMLToJSONStrict([]byte(doctor(t, output)))
		if err == nil {
			d := json.NewDecoder(bytes.NewReader(text))
			d.DisallowUnknownFields()
			err = d.Decode(&r)
		}
		if err != nil {
			t.Fatalf("%s: %v", output, err)
		}
		if len(r.Checks) == 0 {
			t.Errorf("%s: no checks", output)
		}
		for _, name := range []string{"ptrace", "cgroup v2", "BTF", "containerd", "NRI", "agent", "configuration", "state directory", "keepers", "runc wrapper"} {
			i := slices.IndexFunc(r.Checks, func(k graft.Check) bool { return k.Name == name })
			if i < 0 || !r.Checks[i].OK && r.Checks[i].Fix == "" {
				t.Errorf("%s: %s is not among the findings, or has no fix: %+v", output, name, r.Checks)
			}
		}
		if want := kernel.Probe(); !slices.Equal(r.Kernel, want) {
			t.Errorf("%s: got %+v, want %+v", output, r.Kernel, want)
		}
	}
	table := doctor(t, "table")
	_, after, ok := strings.Cut(table, "\nkernel faults: hook points and backends ")
	if !ok || strings.Count(after, "\n")-1 != len(kernel.Probe()) {
		t.Errorf("the second table is not all there:\n%s", table)
	}
}

func TestDoctorFunctions(t *testing.T) {
	var out bytes.Buffer
	c := newRootCommand()
	c.SetArgs([]string{"doctor", "functions", "should_fail", "-o", "json"})
	c.SetOut(&out)
	err := c.Execute()
	all, kerr := kernel.Functions()
	if (err != nil) != (kerr != nil) || err != nil && err.Error() != kerr.Error() {
		t.Fatalf("%v, want %v", err, kerr)
	}
	if err != nil {
		t.Skip("this kernel has no list: ", err)
	}
	var got []string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(all, func(n string) bool { return !strings.Contains(n, "should_fail") })
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
