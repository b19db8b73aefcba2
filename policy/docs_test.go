package policy

import (
	"errors"
	"os"
	"regexp"
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
	for _, names := range [][]string{fieldNames, kernelRules.fields, hookKinds[:3], backendNames, opNames[:], groupNames, attrNames} {
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

var kernelExample = regexp.MustCompile("`(kernel [a-zA-Z]+=[^`…]*)`")

// TestKernelPage parses every example of docs/kernel.md and shows that each
// field, hook point and way to write a predicate has one. That they do what the
// page says is shown in package kernel, for what runs there.
func TestKernelPage(t *testing.T) {
	page, err := os.ReadFile("../docs/kernel.md")
	if err != nil {
		t.Fatal(err)
	}
	has := make(map[string]bool)
	for _, m := range kernelExample.FindAllStringSubmatch(string(page), -1) {
		r, err := ParseRule("example", m[1], Defaults{})
		if err != nil {
			t.Error(err.(*SyntaxError).Detail())
			continue
		}
		checkRoundTrip(t, r)
		checkKernelFault(t, r)
		has[r.Kernel.Hook.Kind] = true
		p, syntax := parse(source{text: m[1]}, "example", Defaults{})
		if syntax != nil {
			t.Fatal(syntax)
		}
		for name := range p.seen {
			has[name] = true
		}
	}
	for _, name := range append(hookKinds, kernelRules.fields...) {
		if !has[name] {
			t.Errorf("the page has no example for %s", name)
		}
	}
}
