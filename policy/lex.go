package policy

import (
	"strings"
	"unicode/utf8"
)

// word is one blank-separated part of a rule: `name=value`, or a bare name.
type word struct {
	name  string
	at    int // byte offset of the name in the source
	value value
	bare  bool // there is no =
}

// value is the value of a field without its quotes. Each byte remembers its
// offset in the source, so that an error inside it has its column.
type value struct {
	text string
	from []int // len(text)+1 offsets
}

func (v value) at(i int) int { return v.from[i] }

// part is the piece of a value between two of its offsets.
func (v value) part(from, to int) value {
	return value{text: v.text[from:to], from: v.from[from : to+1]}
}

// split cuts a value at any of these characters.
func (v value) split(separators string) []value {
	var parts []value
	from := 0
	for i := range len(v.text) {
		if strings.IndexByte(separators, v.text[i]) >= 0 {
			parts = append(parts, v.part(from, i))
			from = i + 1
		}
	}
	return append(parts, v.part(from, len(v.text)))
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// lex cuts a rule into words.
func (s source) lex() ([]word, *SyntaxError) {
	if err := s.checkRunes(); err != nil {
		return nil, err
	}
	var words []word
	for i := 0; i < len(s.text); {
		if isBlank(s.text[i]) {
			i++
			continue
		}
		w := word{at: i}
		kernel := len(words) > 0 && words[0].bare && words[0].name == "kernel"
		for i < len(s.text) && !isBlank(s.text[i]) && s.text[i] != '=' {
			if i++; kernel && s.text[i-1] == '(' {
				end, err := s.closing(i - 1)
				if err != nil {
					return nil, err
				}
				i = end
			}
		}
		w.name = s.text[w.at:i]
		if i == len(s.text) || s.text[i] != '=' {
			w.bare = true
			words = append(words, w)
			continue
		}
		if w.name == "" && kernel && strings.HasPrefix(s.text[i:], "=>") {
			return nil, s.at(i, "part the functions of a call chain by commas, the outermost first: within=btrfs_mount,mount_subtree", "=> is not of this language")
		}
		if w.name == "" {
			return nil, s.at(i, "write name=value without blanks around =", "= without a field's name before it")
		}
		var err *SyntaxError
		lexValue := s.lexValue
		if kernel && w.name != "comm" {
			lexValue = s.lexCalls
		}
		if w.value, i, err = lexValue(i + 1); err != nil {
			return nil, err
		}
		if w.value.text == "" {
			return nil, s.at(w.at, "give it a value, or leave the field out", "field %q has no value", w.name)
		}
		words = append(words, w)
	}
	return words, nil
}

func (s source) checkRunes() *SyntaxError {
	for i, r := range s.text {
		if printableRune(r) || r < utf8.RuneSelf && isBlank(byte(r)) {
			continue
		}
		_, n := utf8.DecodeRuneInString(s.text[i:])
		return s.at(i, "write ? for such a character in a path", "the character %q cannot be written in a rule", s.text[i:i+n])
	}
	return nil
}

// lexValue reads a value that begins at offset i, to the next blank outside of
// quotes. Quotes open at the start of the value or after a comma; a quote with a
// backslash before it does not close them. Backslashes stay in the value: they
// are those of the globs. It gives the offset after the value.
func (s source) lexValue(i int) (value, int, *SyntaxError) {
	var text []byte
	var from []int
	take := func(n int) {
		for ; n > 0; n-- {
			text, from = append(text, s.text[i]), append(from, i)
			i++
		}
	}
	start := true // of the value, or of an item of a list
	for i < len(s.text) && !isBlank(s.text[i]) {
		c := s.text[i]
		if c != '"' {
			take(1)
			start = c == ','
			continue
		}
		open := i
		if !start {
			return value{}, 0, s.at(open, `put the whole value in quotes, with \" for a quote in it`, "a quote in the middle of a value")
		}
		start = false
		for i++; i < len(s.text) && s.text[i] != '"'; {
			if s.text[i] == '\\' && i+1 < len(s.text) {
				take(1)
			}
			take(1)
		}
		if i == len(s.text) {
			return value{}, 0, s.at(open, `close it with "`, "a quote that is not closed")
		}
		i++
		if i < len(s.text) && !isBlank(s.text[i]) && s.text[i] != ',' {
			return value{}, 0, s.at(i, "leave a blank between two fields", "%q directly after a closing quote", firstRune(s.text[i:]))
		}
	}
	return value{text: string(text), from: append(from, i)}, i, nil
}

func firstRune(s string) string {
	_, n := utf8.DecodeRuneInString(s)
	return s[:n]
}

// quote writes a value of canonical globs so that lexValue reads it back.
func quote(v string) string {
	if !strings.ContainsAny(v, "\" ") {
		return v
	}
	// In a canonical glob no backslash stands before a quote, so that the one
	// put here cannot be taken for a part of the glob.
	return `"` + strings.ReplaceAll(v, `"`, `\"`) + `"`
}
