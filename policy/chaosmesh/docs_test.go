package chaosmesh

import (
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
	"github.com/google/go-cmp/cmp"
)

func page(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/chaos-mesh.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// blocks are the code blocks of a language.
func blocks(page, language string) []string {
	var out []string
	for _, m := range regexp.MustCompile("(?s)\n```"+language+"\n(.*?)\n```\n").FindAllStringSubmatch(page, -1) {
		out = append(out, m[1])
	}
	return out
}

// TestPageManifests shows that each manifest of the page is the policy that stands after it.
func TestPageManifests(t *testing.T) {
	examples := blocks(page(t), "yaml")
	if len(examples) < 4 || len(examples)%2 != 0 {
		t.Fatalf("%d examples", len(examples))
	}
	for i := 0; i < len(examples); i += 2 {
		got := decode(t, examples[i])
		want, err := faultpolicy.Decode("page", []byte(examples[i+1]))
		if err != nil || len(want) != 1 {
			t.Fatal(len(want), err)
		}
		if diff := cmp.Diff(want[0], got); diff != "" {
			t.Errorf("%s\n%s", examples[i], diff)
		}
	}
}

// TestPageToda shows the same of toda's injectors.
func TestPageToda(t *testing.T) {
	list := blocks(page(t), "json")
	_, text, found := strings.Cut(page(t), "the same as these rules:\n\n```\n")
	text, _, _ = strings.Cut(text, "\n```")
	if len(list) != 1 || !found {
		t.Fatalf("%d lists, rules %v", len(list), found)
	}
	rules, err := DecodeToda("page", []byte(list[0]), "/data", policy.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rules {
		got = append(got, r.Text)
	}
	if diff := cmp.Diff(strings.Split(text, "\n"), got); diff != "" {
		t.Error(diff)
	}
}

// TestPageGlobs shows the rows of the table of globs.
func TestPageGlobs(t *testing.T) {
	seen := 0
	for _, m := range regexp.MustCompile("(?m)^\\| `(/[^`]*)` \\| (?:`([^`]*)` )?\\| `([^`]*)` \\|$").FindAllStringSubmatch(page(t), -1) {
		seen++
		if got, err := pathGlob(m[1], m[2]); got != m[3] || err != nil {
			t.Errorf("volume %s, path %s: %s, %v", m[1], m[2], got, err)
		}
	}
	if seen < 6 {
		t.Errorf("%d rows", seen)
	}
}

// names are the paths of a type's fields; those that are `any` have none below them.
func names(t reflect.Type, path string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return []string{path}
	}
	var out []string
	for _, f := range strictyaml.Fields(t) {
		out = append(out, names(t.FieldByIndex(f.Index).Type, strictyaml.Field(path, f.Name))...)
	}
	if len(out) == 0 {
		return []string{path}
	}
	return out
}

// TestPageHasEveryField shows that the tables of the page have every field
// that is read, and every method.
func TestPageHasEveryField(t *testing.T) {
	text := page(t)
	tables, toda, _ := strings.Cut(text, "## toda's injectors")
	var all []string
	all = append(all, names(reflect.TypeFor[metadata](), "metadata")...)
	all = append(all, names(reflect.TypeFor[ioChaos](), "spec")...)
	all = append(all, names(reflect.TypeFor[kernelChaos](), "spec")...)
	for _, f := range strictyaml.Fields(reflect.TypeFor[schedule]()) {
		all = append(all, "spec."+f.Name)
	}
	for _, name := range all {
		// What stands in lists and times is named after its owner.
		owner, inner := name[:strings.LastIndexByte(name, '.')], last(name)
		row := regexp.MustCompile("(?m)^\\| .*`" + regexp.QuoteMeta(name) + "`.* \\| .*\\|$")
		within := regexp.MustCompile("(?m)^\\| .*`" + regexp.QuoteMeta(owner) + "`.* with .*`" + inner + "`.* \\| .*\\|$")
		if !row.MatchString(tables) && !within.MatchString(tables) {
			t.Errorf("the page has no row for %s", name)
		}
	}
	for m := range methodOps {
		if !strings.Contains(tables, "`"+m+"`") {
			t.Errorf("the page has no row for the method %s", m)
		}
	}
	for m := range methodsRefused {
		if !strings.Contains(tables, "`"+m+"`") {
			t.Errorf("the page does not say that the method %s is refused", m)
		}
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[todaInjector](), reflect.TypeFor[todaFault](), reflect.TypeFor[request]()} {
		for _, f := range strictyaml.Fields(typ) {
			if !strings.Contains(toda, "`"+f.Name+"`") {
				t.Errorf("the page has no row for toda's %s", f.Name)
			}
		}
	}
}

// TestCRDFieldsAreKnown shows that the types have every field of Chaos Mesh's
// custom resource definitions, whose names testdata/fields.json lists.
func TestCRDFieldsAreKnown(t *testing.T) {
	b, err := os.ReadFile("testdata/fields.json")
	if err != nil {
		t.Fatal(err)
	}
	var crd map[string][]string
	if err := json.Unmarshal(b, &crd); err != nil {
		t.Fatal(err)
	}
	known := map[string][]string{
		"IOChaos":     names(reflect.TypeFor[ioChaos](), "spec"),
		"KernelChaos": names(reflect.TypeFor[kernelChaos](), "spec"),
		"Schedule":    names(reflect.TypeFor[schedule](), "spec"),
	}
	for kind, fields := range crd {
		for _, f := range fields {
			refused := (*schedule)(nil).FieldHints()[strings.ToLower(strings.Split(strings.TrimPrefix(f, "spec."), ".")[0])] != ""
			if !slices.Contains(known[kind], f) && (kind != KindSchedule || !refused) {
				t.Errorf("%s has the field %s, which is not known here", kind, f)
			}
		}
	}
	if len(crd["IOChaos"]) < 40 || len(crd["KernelChaos"]) < 20 || len(crd["Schedule"]) < 60 {
		t.Error("the list is not whole")
	}
}
