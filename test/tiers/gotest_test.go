package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCountsOfRealRun runs go test over a module with every way a package can end.
func TestCountsOfRealRun(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module example.test\n\ngo 1.21\n",
		"a/a_test.go": `package a
import "testing"
func TestPass(t *testing.T) {}
func TestTable(t *testing.T) {
	t.Run("one", func(t *testing.T) {})
	t.Run("two", func(t *testing.T) { t.Error("two is wrong") })
	t.Run("three", func(t *testing.T) { t.Skip("no such machine") })
}`,
		"broken/b_test.go": "package broken\nimport \"testing\"\nfunc TestX(t *testing.T) { undefined() }\n",
		"dies/d_test.go": `package dies
import ("os"; "testing")
func TestFine(t *testing.T) {}
func TestElsewhere(t *testing.T) { t.Skip("runs in an emulated machine only: make test-vm") }
func TestDies(t *testing.T) { os.Exit(5) }`,
		"fine/f_test.go": "package fine\nimport \"testing\"\nfunc TestX(t *testing.T) {}\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "test", "-json", "./...")
	cmd.Dir = dir
	var out strings.Builder
	got, err := report(cmd, &out)
	if err != nil {
		t.Fatal(err)
	}
	if want := (counts{passed: 4, failed: 3, skipped: 1, elsewhere: 1}); got.counts != want {
		t.Errorf("counts %+v, want %+v in:\n%s", got.counts, want, &out)
	}
	for _, want := range []string{"two is wrong", "no such machine", "undefined: undefined", "FAILED TestDies", "ok   example.test/fine"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report does not say %q:\n%s", want, &out)
		}
	}
}

// TestFailedTestsRunAgain: what passes then is named, what fails again has failed.
func TestFailedTestsRunAgain(t *testing.T) {
	const first = `package a
import ("os"; "testing")
func TestFirstTime(t *testing.T) {
	t.Run("below", func(t *testing.T) {
		if _, err := os.Stat("mark"); err != nil {
			os.WriteFile("mark", nil, 0o600)
			t.Error("not yet")
		}
	})
}
func TestFine(t *testing.T) {}
`
	for _, c := range []struct {
		name, more string
		want       counts
		flaky      string
	}{
		{"flaky", "", counts{passed: 2}, "example.test/a TestFirstTime"},
		{"and one that fails", `func TestNever(t *testing.T) { t.Error("never") }`, counts{passed: 1, failed: 2}, "example.test/a TestFirstTime"},
		{"too many", `func TestA(t *testing.T) { t.Error(1) }; func TestB(t *testing.T) { t.Error(1) }; func TestC(t *testing.T) { t.Error(1) }`, counts{passed: 1, failed: 4}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			for name, text := range map[string]string{"go.mod": "module example.test\n\ngo 1.21\n", "a/a_test.go": first + c.more} {
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			one := tier{run: goTest, again: goTestAgain}
			var out strings.Builder
			r, _, err := one.run(t.Context(), one, []string{"./a"}, &out)
			if err != nil {
				t.Fatal(err)
			}
			flaky, err := one.repeat(t.Context(), &r, &out)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(flaky, ", "); r.counts != c.want || got != c.flaky {
				t.Errorf("counts %+v, flaky %q; want %+v, %q in:\n%s", r.counts, got, c.want, c.flaky, &out)
			}
		})
	}
}

func TestRunThatCannotStartIsAnError(t *testing.T) {
	cmd := exec.Command("go", "test", "-json", "./...")
	cmd.Dir = t.TempDir() // no go.mod
	var out strings.Builder
	if got, err := report(cmd, &out); err == nil && got.failed == 0 {
		t.Errorf("counts %+v and no error:\n%s", got, &out)
	}
}

func TestEachPackageIsInOneTier(t *testing.T) {
	got := assign([]string{module + "/policy", module + "/plugin", module + "/plugin/graft", module + "/fusefs", module + "/fusefs/x", module + "/fusefsx", module + "/test/e2e", module + "/test/bench", module + "/kernel", module + "/test/kernel"})
	for tier, want := range map[string]string{
		"unit": "policy plugin fusefsx kernel", "vm": "plugin kernel test/kernel", "fs": "fusefs fusefs/x", "swap": "plugin/graft", "lab": "test/e2e",
	} {
		if s := strings.ReplaceAll(strings.Join(got[tier], " "), module+"/", ""); s != want {
			t.Errorf("tier %s has %q, want %q", tier, s, want)
		}
	}
}
