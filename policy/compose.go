package policy

import "strings"

// Field is a field of a rule that is put together. Value is what the language
// has after the =, without quotes around it.
type Field struct {
	Name, Value string
	// Bare is for a word without a value: hang, lost, stack.
	Bare bool
}

// FieldError is an error about one of the fields of Compose, or about a place
// in its text.
type FieldError struct {
	*SyntaxError
	// Field is the index of the field; -1 for the rule as a whole, InText for the text.
	Field int
	// Offset is the place in the value or in the text, in bytes.
	Offset int
}

// InText is for an error in the text that Compose got.
const InText = -2

// Unwrap gives the error as ParseRule would have it.
func (e *FieldError) Unwrap() error { return e.SyntaxError }

// Compose makes a rule from text, which may be only io or kernel, and fields
// that are added to it. The rule is that of ParseRule, with the whole as its
// Text. A value that would be more than one, such as one with a quote in the
// wrong place, is an error and never a field of its own. The error is a *FieldError.
func Compose(name, text string, fields []Field, d Defaults) (Rule, error) {
	l, wrong := layOut(text, fields)
	if wrong != nil {
		return Rule{}, wrong
	}
	p, err := parse(l.source, name, d)
	if err != nil {
		return Rule{}, l.locate(err)
	}
	return p.rule, nil
}

// Locate finds the field that an error is about, which is one about the rule
// that Compose makes of text and fields; see Rule.PredicateError.
func Locate(text string, fields []Field, about *SyntaxError) *FieldError {
	l, wrong := layOut(text, fields)
	if wrong != nil || l.text != about.Text {
		return &FieldError{about, -1, 0}
	}
	return l.locate(about)
}

// layout is a rule that is put together.
type layout struct {
	source
	given int // the length of the text that the fields are added to
	spans []span
}

func layOut(text string, fields []Field) (*layout, *FieldError) {
	l := &layout{source: source{name: "rule", text: text}, given: len(text)}
	words, err := l.lex()
	if err != nil {
		return nil, &FieldError{err, InText, byteOffset(text, err.Column)}
	}
	kernel := len(words) > 0 && words[0].bare && words[0].name == "kernel"
	for i, f := range fields {
		s, ok := f.write(kernel)
		if !ok {
			return nil, &FieldError{l.whole("look at its quotes and parentheses", "%q cannot be written as one value of %s", f.Value, f.Name), i, 0}
		}
		s.start = len(l.text) + 1
		l.text += " " + s.text
		l.spans = append(l.spans, s)
	}
	return l, nil
}

func (l *layout) locate(err *SyntaxError) *FieldError {
	wrong := &FieldError{err, -1, 0}
	offset := byteOffset(l.text, err.Column)
	switch {
	case err.Column == 0 || offset == len(l.text) && len(l.spans) > 0: // of the rule, or what is missing
	case offset <= l.given:
		wrong.Field, wrong.Offset = InText, offset
	default:
		for i, s := range l.spans {
			if at := offset - s.start; at >= 0 && at <= len(s.text) {
				wrong.Field, wrong.Offset = i, s.offset(at)
			}
		}
	}
	return wrong
}

// FieldNames gives the names of the fields in the text of a rule, and its kind,
// in their order, without checking them.
func FieldNames(text string) ([]string, error) {
	words, err := source{name: "rule", text: text}.lex()
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(words))
	for _, w := range words {
		names = append(names, w.name)
	}
	return names, nil
}

// span is a field as it is written.
type span struct {
	start int // in the rule
	text  string
	from  []int // the offsets in text of the bytes of the value
}

// offset gives that in the value of an offset in the text.
func (s span) offset(at int) int {
	i := 0
	for i < len(s.from)-1 && s.from[i] < at {
		i++
	}
	return i
}

// write gives the field as a word of a rule, if it can be one.
func (f Field) write(kernel bool) (span, bool) {
	if f.Bare {
		return span{text: f.Name, from: []int{0}}, true
	}
	glob := !kernel || f.Name == "comm"
	quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(f.Value) + `"`
	value := f.Value
	if glob {
		// Backslashes are those of globs and stay; in them \" means ".
		value = escapeQuotes(f.Value)
		quoted = `"` + value + `"`
	}
	for _, v := range []string{f.Value, quoted} {
		text := f.Name + "=" + v
		// The word is to be one between others, as in a rule.
		before := "io "
		if kernel {
			before = "kernel "
		}
		words, err := source{text: before + text + " x"}.lex()
		if err != nil || len(words) != 3 || words[1].bare || words[1].name != f.Name || words[1].value.text != value {
			continue
		}
		from := words[1].value.from
		for i := range from {
			from[i] -= len(before)
		}
		return span{text: text, from: from}, true
	}
	// So that its character is complained about at its place.
	if (source{text: f.Value}).checkRunes() != nil {
		from := make([]int, len(f.Value)+1)
		for i := range from {
			from[i] = len(f.Name) + 1 + i
		}
		return span{text: f.Name + "=" + f.Value, from: from}, true
	}
	return span{}, false
}

// escapeQuotes puts a backslash before each quote that has none.
func escapeQuotes(glob string) string {
	var b strings.Builder
	for i := 0; i < len(glob); i++ {
		switch {
		case glob[i] == '\\' && i+1 < len(glob):
			b.WriteByte(glob[i])
			i++
		case glob[i] == '"':
			b.WriteByte('\\')
		}
		b.WriteByte(glob[i])
	}
	return b.String()
}

// byteOffset turns a column, counted in characters from 1, into an offset.
func byteOffset(text string, column int) int {
	for i := range text {
		if column--; column <= 0 {
			return i
		}
	}
	return len(text)
}

// Balanced reports whether a predicate can stand in parentheses: its own, and its quotes, fit together.
func Balanced(predicate string) bool {
	text := "(" + predicate + ")"
	end, _, open := closeParen(text, 0)
	return open == "" && end == len(text)
}
