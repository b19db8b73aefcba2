package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// cdiCommand runs `faultgraft cdi`.
func cdiCommand(args ...string) (string, error) {
	root := newRootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"cdi", "--program", "/x/faultgraft"}, args...))
	err := root.Execute()
	return out.String(), err
}

func TestCDI(t *testing.T) {
	out, err := cdiCommand("slow", "--rule", "io latency=20ms op=fsync path=/data/**", "--rule", "wal=io error=EIO op=read path=/data/**")
	if err != nil {
		t.Fatal(err)
	}
	var spec struct {
		CDIVersion, Kind string
		Devices          []struct {
			Name           string
			ContainerEdits struct {
				Hooks []struct {
					HookName, Path string
					Args           []string
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &spec); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	want := []string{"faultgraft", "hook", "poststart", "--rule", "slow=io latency=20ms op=fsync path=/data/**", "--rule", "wal=io error=EIO op=read path=/data/**"}
	h := spec.Devices[0].ContainerEdits.Hooks[0]
	if spec.CDIVersion != "0.6.0" || spec.Kind != "faultgraft.io/fault" || spec.Devices[0].Name != "slow" || h.HookName != "poststart" || h.Path != "/x/faultgraft" || !slices.Equal(h.Args, want) {
		t.Errorf("%s", out)
	}
}

func TestCDIOfPolicy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.yaml")
	text := `apiVersion: faultgraft.io/v1alpha1
kind: FaultPolicy
metadata: {name: pg-wal}
spec:
  selector: {matchLabels: {app: pg}}
  faults:
  - {name: wal, io: {path: "/data/**", ops: [fsync], error: EIO}, trigger: {p: 0.05}}
`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	out, err := cdiCommand("-f", file, "--install="+dir)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "faultgraft.io-fault-pg-wal.json")
	spec, err := os.ReadFile(name)
	if err != nil || !strings.Contains(string(spec), "wal=io ") || out != "faultgraft.io/fault=pg-wal: "+name+"\n" {
		t.Errorf("%v, %s, %s", err, out, spec)
	}
}

func TestCDIRefusals(t *testing.T) {
	const rule = "io error=EIO op=read path=/data/**"
	for want, args := range map[string][]string{
		"unknown errno":         {"d", "--rule", "io error=EIOO op=read path=/data/**"},
		"use up to 63":          {"a_b", "--rule", "a=" + rule},
		"give a name":           {"d"},
		"not an absolute path":  {"d", "--rule", rule, "--program", "faultgraft"},
		"no such file":          {"-f", "/no/such/file"},
		"accepts at most 1 arg": {"a", "b", "--rule", rule},
	} {
		if out, err := cdiCommand(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %q, error %v, want %q", args, out, err, want)
		}
	}
}
