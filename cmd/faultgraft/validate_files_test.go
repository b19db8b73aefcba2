package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/policy/faultpolicy"
)

const goodPolicy = `apiVersion: faultgraft.io/v1alpha1
kind: FaultPolicy
metadata: {name: pg-wal}
spec:
  selector: {matchLabels: {app: pg}}
  mode: one
  faults:
  - {name: wal, io: {path: /data/**, ops: [fsync], error: EIO}, trigger: {p: 5%}}
`

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestValidateFiles(t *testing.T) {
	good := write(t, "good.yaml", goodPolicy)
	bad := write(t, "bad.yaml", strings.Replace(strings.Replace(goodPolicy, "pg-wal", "other", 1), "EIO", "EIOO", 1))
	twice := write(t, "twice.yaml", goodPolicy)
	got, err := validate(good)
	want := "ok  " + good + ":3: policy pg-wal, one of the containers that match\n    wal: io error=EIO op=fsync path=/data/** p=0.05 ttl=10m0s\n"
	if err != nil || got != want {
		t.Errorf("got\n%s%v\nwant\n%s", got, err, want)
	}
	// All files are looked at, and each mistake has its place.
	got, err = validate(bad, good, twice, filepath.Join(t.TempDir(), "missing.yaml"))
	if err == nil || got != want {
		t.Fatalf("got\n%s%v", got, err)
	}
	for _, part := range []string{
		bad + `:8:59: spec.faults[0].io.error[0]: unknown errno "EIOO"; did you mean EIO?` + "\n    - {name: wal,",
		twice + `:3: metadata.name: the policy "pg-wal" is there twice; the first is at ` + good + ":3\n",
		"missing.yaml: no such file or directory",
	} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v\ndoes not say %s", err, part)
		}
	}
	got, err = validate("-o", "json", bad, good)
	var out validFiles
	if err == nil || json.Unmarshal([]byte(got), &out) != nil || len(out.Policies) != 1 || len(out.Errors) != 1 {
		t.Fatalf("%v\n%s", err, got)
	}
	if e := out.Errors[0]; e.File != bad || e.Line != 8 || e.Column != 59 || e.Path != "spec.faults[0].io.error[0]" || e.Message == "" || e.Fix == "" {
		t.Errorf("%+v", e)
	}
	if p := out.Policies[0]; p.Policy.Spec.Mode != faultpolicy.ModeOne || p.Policy.Spec.WhenNothingMatches != faultpolicy.Wait || len(p.Rules) != 1 || p.Rules[0].GraftPath != "/data" || p.Line != 3 {
		t.Errorf("%+v", p)
	}
	if _, err = validate(good, "--rule", "io"); err == nil || !strings.Contains(err.Error(), "not both") {
		t.Errorf("%v", err)
	}
}

// TestValidateFilePredicate shows that a predicate that the running kernel does not know is a mistake at its place.
func TestValidateFilePredicate(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		t.Skip("this kernel has no type information (BTF)")
	}
	const text = `apiVersion: faultgraft.io/v1alpha1
kind: FaultPolicy
metadata: {name: oom}
spec:
  selector: {matchLabels: {app: pg}}
  faults:
  - name: oom
    kernel:
      hook: slab
      within:
      - func: d_alloc_parallel
        where: >-
          name->len > 3 &&
          name->nme == "bananas"
  - name: text
    rule: 'kernel hook=lsm:file_open(fiel->f_flags) error=EIO'
`
	file := write(t, "oom.yaml", text)
	out, err := validate(file)
	if err == nil || out != "" {
		t.Fatalf("%s%v", out, err)
	}
	for _, want := range []string{
		file + ":14:17: spec.faults[0].kernel.within[0].where: struct qstr has no member nme; did you mean name?\n",
		file + ":16:38: spec.faults[1].rule: ", "did you mean file?",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %s", err, want)
		}
	}
}

func TestSchemaCommand(t *testing.T) {
	var out strings.Builder
	c := newRootCommand()
	c.SetArgs([]string{"schema"})
	c.SetOut(&out)
	if err := c.Execute(); err != nil || out.String() != string(faultpolicy.Schema()) {
		t.Errorf("%v\n%s", err, out.String())
	}
}
