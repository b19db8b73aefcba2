package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestTroubleshootingPage shows that the errors which docs/troubleshooting.md
// explains are errors of this program.
func TestTroubleshootingPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(page), "| the error says |")
	if !found {
		t.Fatal("there is no table of errors")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var source strings.Builder
	err = filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		source.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(table, -1)
	for _, m := range rows {
		if !strings.Contains(source.String(), m[1]) {
			t.Errorf("no error says %q", m[1])
		}
	}
	if len(rows) < 5 {
		t.Errorf("%d rows", len(rows))
	}
}
