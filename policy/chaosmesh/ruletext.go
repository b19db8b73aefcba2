package chaosmesh

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/faultgraft/faultgraft/policy"
)

// problem is something wrong with a field of a manifest.
type problem struct {
	// path is the field: spec.methods[2].
	path string
	// at is the place in the field's text, bytes.
	at           int
	message, fix string
}

// ruleText is the text of a rule that remembers from which field each part comes.
type ruleText struct {
	b     strings.Builder
	parts []part
	// whole is the field for a mistake that is in none of the parts.
	whole string
}

// part is a piece of the text, bytes.
type part struct {
	from, to int
	path     string
	verbatim bool // it is the field's text, character by character
}

func (t *ruleText) write(text, path string, verbatim bool) {
	from := t.b.Len()
	t.b.WriteString(text)
	t.parts = append(t.parts, part{from, t.b.Len(), path, verbatim})
}

// field adds NAME=VALUE, which comes from the field at path.
func (t *ruleText) field(name, value, path string) {
	t.b.WriteByte(' ')
	t.write(name+"="+value, path, false)
}

// glob adds a canonical glob, in quotes where the rule language wants them.
func (t *ruleText) glob(name, glob, path string) {
	if strings.ContainsAny(glob, "\" ") {
		// Before a quote there is no backslash in a canonical glob.
		glob = `"` + strings.ReplaceAll(glob, `"`, `\"`) + `"`
	}
	t.field(name, glob, path)
}

// problem gives the field that a mistake in the text comes from.
func (t *ruleText) problem(err *policy.SyntaxError) *problem {
	p := &problem{path: t.whole, message: err.Message, fix: err.Fix}
	at := 0
	for range max(err.Column-1, 0) {
		_, n := utf8.DecodeRuneInString(t.b.String()[at:])
		at += n
	}
	for _, part := range t.parts {
		if err.Column == 0 || at < part.from || at >= part.to {
			continue
		}
		if p.path = part.path; part.verbatim {
			p.at = at - part.from
		}
	}
	return p
}

// parse makes the rule. Its ttl is that of the defaults: an experiment's
// duration is the policy's.
func (t *ruleText) parse(name string, d policy.Defaults) (policy.Rule, *problem) {
	rule, err := policy.ParseRule(name, t.b.String(), d)
	var syntax *policy.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return policy.Rule{}, t.problem(syntax)
	case err != nil:
		return policy.Rule{}, &problem{path: t.whole, message: err.Error()}
	}
	return rule, nil
}
