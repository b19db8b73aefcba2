package faultpolicy

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// documents gives the policies in the YAML blocks of a page.
func documents(page string) (all []string) {
	for _, block := range strings.Split(page, "```yaml\n")[1:] {
		text, _, _ := strings.Cut(block, "```")
		if strings.Contains(text, "kind: FaultPolicy") {
			all = append(all, text)
		}
	}
	return all
}

// TestPage reads every example of docs/policies.md, checks the errors that it
// shows, and shows that it has a word about each field and an example of it.
func TestPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	used := make(map[string]bool)
	for _, text := range documents(page) {
		all, err := Decode("docs/policies.md", []byte(text))
		if err != nil {
			t.Errorf("%s\n%v", text, err)
			continue
		}
		for _, p := range all {
			if _, err := p.Rules(policy.Defaults{}); err != nil {
				t.Error(err)
			}
			b, err := json.Marshal(p)
			var v any
			if err == nil {
				err = json.Unmarshal(b, &v)
			}
			if err != nil {
				t.Fatal(err)
			}
			keys(v, used)
		}
	}
	eachField(reflect.TypeFor[FaultPolicy](), func(name string) {
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("the page does not explain %s", name)
		}
		if !used[name] {
			t.Errorf("the page has no example of %s", name)
		}
	})
	// A block of an error: the policy, and what is said about it.
	shown := 0
	for _, block := range strings.Split(page, "<!-- wrong -->\n```\n")[1:] {
		text, rest, _ := strings.Cut(block, "```")
		_, want, ok := strings.Cut(rest, "```\n")
		want, _, _ = strings.Cut(want, "```")
		_, err := Decode("pg.yaml", []byte(text))
		errs, is := err.(strictyaml.Errors)
		if !ok || !is || strings.TrimSpace(errs.Detail()) != strings.TrimSpace(want) {
			t.Errorf("%s\ngives\n%v\nand the page shows\n%s", text, err, want)
		}
		shown++
	}
	if shown == 0 {
		t.Error("the page shows no error")
	}
}

// keys notes the keys of objects, however deep.
func keys(v any, used map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			used[k] = true
			keys(inner, used)
		}
	case []any:
		for _, inner := range v {
			keys(inner, used)
		}
	}
}

// eachField calls visit with the name of each field of a type, however deep.
func eachField(t reflect.Type, visit func(string)) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return
	}
	for _, f := range strictyaml.Fields(t) {
		visit(f.Name)
		eachField(t.FieldByIndex(f.Index).Type, visit)
	}
}
