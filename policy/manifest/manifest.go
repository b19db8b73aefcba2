// Package manifest reads the YAML that users apply: FaultPolicies, and the
// manifests of Chaos Mesh that stand for one, told apart by apiVersion and kind.
package manifest

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/chaosmesh"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// Manifest is one document.
type Manifest struct {
	// Policy is checked and has its defaults.
	Policy faultpolicy.FaultPolicy
	// Rules are those of its faults, in their order.
	Rules []policy.Rule
	doc   *strictyaml.Document
}

// Read gives the policies of a text of one or more documents; see Open.
func Read(file string, data []byte, d policy.Defaults) ([]faultpolicy.FaultPolicy, error) {
	all, err := Open(file, data, d)
	if err != nil {
		return nil, err
	}
	policies := make([]faultpolicy.FaultPolicy, 0, len(all))
	for _, m := range all {
		policies = append(policies, m.Policy)
	}
	return policies, nil
}

// Open reads a text of one or more documents. d has the ttl that a rule gets
// without one and the longest that the node allows. All documents are read, so that
// the error, which is strictyaml.Errors, has what is wrong in any of them; then
// there are no manifests. A text without a document is an error.
func Open(file string, data []byte, d policy.Defaults) ([]*Manifest, error) {
	docs, err := strictyaml.Read(file, data)
	if err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, strictyaml.Errors{{File: file, Message: "there is no document", Fix: "write a FaultPolicy, see docs/policies.md"}}
	}
	var all []*Manifest
	var errs strictyaml.Errors
	lines := make(map[string]int) // of the policies' names
	for _, doc := range docs {
		m, wrong := open(doc, d)
		if errs = append(errs, wrong...); len(wrong) > 0 {
			continue
		}
		name := m.Policy.Metadata.Name
		place := doc.ErrorAt("metadata.name", 0, fmt.Sprintf("the policy %q is there twice", name), "")
		if line, twice := lines[name]; twice {
			place.Fix = "the first is on line " + strconv.Itoa(line)
			errs = append(errs, place)
		}
		lines[name] = place.Line
		all = append(all, m)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return all, nil
}

func open(doc *strictyaml.Document, d policy.Defaults) (*Manifest, strictyaml.Errors) {
	m := &Manifest{doc: doc}
	version, _ := doc.Text("apiVersion")
	kind, _ := doc.Text("kind")
	var err error
	switch {
	case version == chaosmesh.APIVersion:
		m.Policy, err = chaosmesh.Decode(doc, d)
	case version == faultpolicy.APIVersion && kind == faultpolicy.Kind:
		var wrong strictyaml.Errors
		m.Policy, wrong = faultpolicy.FromDocument(doc, d)
		err = wrong.OrNil()
	default:
		return nil, strictyaml.Errors{unknown(doc, version, kind)}
	}
	if err == nil {
		m.Rules, err = m.Policy.Rules(d)
	}
	var errs strictyaml.Errors
	switch {
	case errors.As(err, &errs):
		return nil, errs
	case err != nil:
		return nil, strictyaml.Errors{doc.ErrorAt("", 0, err.Error(), "")}
	}
	return m, nil
}

// unknown is the error about a document that is none of ours.
func unknown(doc *strictyaml.Document, version, kind string) *strictyaml.Error {
	versions := []string{faultpolicy.APIVersion, chaosmesh.APIVersion}
	const all = "write " + faultpolicy.APIVersion + " and " + faultpolicy.Kind + ", or a manifest of " + chaosmesh.APIVersion
	switch {
	case version == "" && kind == "":
		return doc.ErrorAt("", 0, "the document has no apiVersion and no kind", all)
	case version == "":
		return doc.ErrorAt("apiVersion", 0, "apiVersion is missing", all)
	case version == faultpolicy.APIVersion && kind == "":
		return doc.ErrorAt("kind", 0, "kind is missing", "add kind: "+faultpolicy.Kind)
	case version == faultpolicy.APIVersion:
		return doc.ErrorAt("kind", 0, fmt.Sprintf("unknown kind %.60q", kind), policy.Suggest(kind, []string{faultpolicy.Kind}, "write "+faultpolicy.Kind))
	}
	return doc.ErrorAt("apiVersion", 0, fmt.Sprintf("unknown apiVersion %.60q", version), policy.Suggest(version, versions, all))
}

// RuleError gives an error in a predicate, which package kernel finds, its
// place in the document. wrong is about the rule of fault i.
func (m *Manifest) RuleError(i int, wrong *policy.SyntaxError) *strictyaml.Error {
	if version, _ := m.doc.Text("apiVersion"); version == chaosmesh.APIVersion {
		return chaosmesh.RuleError(m.doc, wrong)
	}
	return m.Policy.RuleError(m.doc, i, wrong)
}

// Place gives the document's name, line and column, for messages.
func (m *Manifest) Place() (file string, line int) {
	e := m.doc.ErrorAt("metadata.name", 0, "", "")
	return e.File, e.Line
}
