package policy

import (
	"math"
	"reflect"
	"strings"
	"unicode/utf8"
)

// PredicateError makes an error inside a predicate one of the rule, with its
// column in the rule's text. which is -1 for Kernel.Where and i for
// Kernel.Within[i]; line and column count from 1, the column in characters, as
// package kernel/predicate gives them. fix may be empty.
func (r Rule) PredicateError(which int, line, column int, message, fix string) *SyntaxError {
	p := r.reparsed(r.Text)
	if p == nil { // made without a text, or the text is not this rule's
		p = r.reparsed(r.String())
	}
	if p == nil {
		return source{name: "rule", text: r.String()}.whole(fix, "%s", message)
	}
	v := p.where
	if which >= 0 && which < len(p.frames) {
		v = p.frames[which]
	}
	i := 0
	for ; line > 1; line-- {
		next := strings.IndexByte(v.text[i:], '\n')
		if next < 0 {
			break
		}
		i += next + 1
	}
	for ; column > 1 && i < len(v.text); column-- {
		_, n := utf8.DecodeRuneInString(v.text[i:])
		i += n
	}
	err := p.at(v.at(i), fix, "")
	err.Message = message
	return err
}

// reparsed parses a text of the rule again, for the places in it; nil if it is not the rule's.
func (r Rule) reparsed(text string) *ruleParser {
	src := source{name: "rule", text: text}
	if r.Name != "rule" {
		src.kind, src.name = "rule", r.Name
	}
	p, err := parse(src, "rule", Defaults{MaxTTL: math.MaxInt64})
	if err != nil || !reflect.DeepEqual(p.rule.Kernel, r.Kernel) {
		return nil
	}
	return p
}
