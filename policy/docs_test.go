package policy

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// TestDocs checks the errors that docs/rules.md shows, and that it has every field.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../docs/rules.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(page), "\n")
	seen := 0
	for i := 0; i+2 < len(lines); i++ {
		if strings.Trim(lines[i+2], " ") != "^" {
			continue
		}
		seen++
		shown := strings.Join(lines[i:i+3], "\n")
		text := strings.TrimPrefix(lines[i+1], "  ")
		var syntax *SyntaxError
		if _, err := ParseRule("r", text, Defaults{}); !errors.As(err, &syntax) {
			t.Errorf("%s: error %v", text, err)
			continue
		}
		if key, ok := strings.CutPrefix(lines[i], "label "); ok {
			syntax.Kind, syntax.Source = "label", key[:strings.Index(key, ":")]
		}
		if got := syntax.Detail(); got != shown {
			t.Errorf("the page shows\n%s\nand this is\n%s", shown, got)
		}
	}
	for _, names := range [][]string{fieldNames, opNames[:], groupNames, attrNames} {
		for _, n := range names {
			if !strings.Contains(string(page), "`"+n+"`") {
				t.Errorf("the page does not explain %s", n)
			}
		}
	}
	if seen < 4 {
		t.Errorf("found only %d errors on the page", seen)
	}
}
