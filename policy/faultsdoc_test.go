package policy

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docExample is an example of docs/faults.md: a code span that begins as an io rule does.
var docExample = regexp.MustCompile("`(io [^`]*)`")

// TestFaultsPage parses every example of docs/faults.md and shows that each
// operation, group, action, filter, trigger and attribute has one. That the
// examples do on a layer what the page says is shown in fusefs.
func TestFaultsPage(t *testing.T) {
	page, err := os.ReadFile("../docs/faults.md")
	if err != nil {
		t.Fatal(err)
	}
	ops := make(map[string]bool)
	fields := make(map[string]bool)
	values := make(map[string]bool) // latency=uniform and the like
	for _, m := range docExample.FindAllStringSubmatch(string(page), -1) {
		r, err := ParseRule("example", m[1], Defaults{})
		if err != nil {
			t.Error(err.(*SyntaxError).Detail())
			continue
		}
		if !strings.HasPrefix(r.IO.Path, "/data") {
			t.Errorf("%s: the examples are about /data", m[1])
		}
		checkRoundTrip(t, r)
		for _, w := range strings.Fields(m[1])[1:] {
			name, value, _ := strings.Cut(w, "=")
			fields[name] = true
			kind, _, _ := strings.Cut(value, "(")
			values[name+"="+kind] = true
			for _, part := range strings.FieldsFunc(value, func(r rune) bool { return r == '+' || r == ',' }) {
				switch name {
				case "op":
					ops[part] = true
				case "attr":
					attribute, _, _ := strings.Cut(part, ":")
					values["attr="+attribute] = true
				}
			}
		}
	}
	need := func(what string, has map[string]bool, prefix string, names []string) {
		for _, n := range names {
			if !has[prefix+n] {
				t.Errorf("the page has no example for the %s %s", what, n)
			}
			if !strings.Contains(string(page), "`"+n+"`") && prefix == "" {
				t.Errorf("the page does not explain the %s %s", what, n)
			}
		}
	}
	need("operation", ops, "", slices.Concat(opNames[:], groupNames))
	need("field", fields, "", fieldNames)
	need("distribution", values, "latency=", distributionNames[Uniform:])
	need("corruption", values, "corrupt=", corruptNames[:])
	need("torn write", values, "torn=", tornNames[:])
	need("short transfer", values, "short=", []string{"random"})
	need("attribute", values, "attr=", attrNames)
	for name := range laterFields {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("the page does not say that %s is not there yet", name)
		}
	}
}
