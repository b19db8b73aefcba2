package faultpolicy

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"
)

func compiledSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("faultpolicy.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("faultpolicy.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// accepts asks the schema about one document of YAML.
func accepts(t *testing.T, s *jsonschema.Schema, text string) error {
	t.Helper()
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(doc)
}

// TestSchemaAgrees shows that the schema accepts what Decode accepts, and that
// both refuse what is wrong in shape.
func TestSchemaAgrees(t *testing.T) {
	s := compiledSchema(t)
	page, err := os.ReadFile("../../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	good := documents(string(page))
	if len(good) < 5 {
		t.Fatalf("docs/policies.md has only %d policies", len(good))
	}
	for _, text := range good {
		if err := accepts(t, s, text); err != nil {
			t.Errorf("%s\nis refused by the schema: %v", text, err)
		}
	}
	for _, spec := range []string{
		selects + fault + "  mod: all\n", selects + fault + "  mode: fixd\n", selects + fault + "  paused: yes please\n", selects + fault + "  value: 0\n",
		selects + fault + "  timing: {ttl: 5}\n", selects + fault + "  timing: {ttl: 5 minutes}\n", selects + fault + "  timing: []\n", selects + fault + "  seed: -1\n",
		selects + fault + "  guard: {maxPercent: 101}\n", selects + fault + "  guard: {stopConditions: [{interval: 5s}]}\n", selects + fault + "  guard: {stopConditions: [{command: [/p], http: {url: 'http://x'}}]}\n",
		selects + fault + "  guard: {stopConditions: [{http: {}}]}\n", selects + fault + "  selector: {images: postgres}\n",
		fault, selects, selects + "  faults: []\n", selects + "  faults: [{name: a}]\n", selects + "  faults: [{rule: io hang op=read path=/d}]\n",
		selects + "  faults: [{name: A, rule: io hang op=read path=/d}]\n", selects + "  faults: [{name: a, rule: io hang op=read path=/d, io: {hang: true, ops: read, path: /d}}]\n",
		selects + "  faults: [{name: a, io: {hang: 1, ops: read, path: /d}}]\n", selects + "  faults: [{name: a, io: {error: [], ops: read, path: /d}}]\n", selects + "  faults: [{name: a, io: {op: read}}]\n",
		selects + "  faults: [{name: a, io: {error: true, ops: read, path: /d}}]\n", selects + "  faults: [{name: a, kernel: {error: EIO}}]\n", selects + "  faults: [{name: a, kernel: {hook: slab, within: [{where: a}]}}]\n",
		selects + "  faults: [{name: a, rule: io hang op=read path=/d, trigger: {P: 1}}]\n",
	} {
		text := around(spec)
		if strings.Count(text, "selector:") < 2 { // a key that is there twice is not JSON's to tell
			if err := accepts(t, s, text); err == nil {
				t.Errorf("%s\nis accepted by the schema", text)
			}
		}
		if _, err := Decode("a", []byte(text)); err == nil {
			t.Errorf("%s\nis accepted by Decode", text)
		}
	}
	for _, text := range []string{"apiVersion: faultgraft.io/v1\nkind: FaultPolicy\nmetadata: {name: a}\nspec:\n" + selects + fault, strings.Replace(around(selects+fault), "name: p", "name: P", 1)} {
		if err := accepts(t, s, text); err == nil {
			t.Errorf("%s\nis accepted by the schema", text)
		}
		if _, err := Decode("a", []byte(text)); err == nil {
			t.Errorf("%s\nis accepted by Decode", text)
		}
	}
}

// TestSchemaIsShipped keeps contrib/schema what the command prints.
func TestSchemaIsShipped(t *testing.T) {
	shipped, err := os.ReadFile("../../contrib/schema/faultpolicy.schema.json")
	if err != nil || !bytes.Equal(shipped, Schema()) {
		t.Errorf("run faultgraft schema > contrib/schema/faultpolicy.schema.json (%v)", err)
	}
}
