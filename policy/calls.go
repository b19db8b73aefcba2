package policy

import "strings"

// lexCalls reads a value of a kernel rule that begins at offset i. It ends at
// the next blank outside of parentheses and quotes: a predicate stands in
// parentheses as it is, with blanks, commas and string literals. Quotes around a
// value or an item of a list are taken off, where \" and \\ stand for " and \.
func (s source) lexCalls(i int) (value, int, *SyntaxError) {
	var text []byte
	var from []int
	take := func(to int) {
		for ; i < to; i++ {
			text, from = append(text, s.text[i]), append(from, i)
		}
	}
	start := true // of the value, or of an item of a list
	for i < len(s.text) && !isBlank(s.text[i]) {
		switch c := s.text[i]; c {
		case '(':
			end, err := s.closing(i)
			if err != nil {
				return value{}, 0, err
			}
			take(end)
		case ')':
			return value{}, 0, s.at(i, "leave it out, or write the ( that it closes", ") without (")
		case '"':
			open := i
			if !start {
				return value{}, 0, s.at(open, `put the whole value in quotes, with \" for a quote in it; string literals stand in parentheses`, "a quote in the middle of a value")
			}
			for i++; i < len(s.text) && s.text[i] != '"'; take(i + 1) {
				if s.text[i] == '\\' && i+1 < len(s.text) && strings.IndexByte(`"\`, s.text[i+1]) >= 0 {
					i++
				}
			}
			if i == len(s.text) {
				return value{}, 0, s.at(open, `close it with "`, "a quote that is not closed")
			}
			i++
			if i < len(s.text) && !isBlank(s.text[i]) && s.text[i] != ',' {
				return value{}, 0, s.at(i, "leave a blank between two fields", "%q directly after a closing quote", firstRune(s.text[i:]))
			}
		default:
			take(i + 1)
		}
		start = i > 0 && s.text[i-1] == ','
	}
	return value{text: string(text), from: append(from, i)}, i, nil
}

// closing gives the offset after the ) that closes the ( at offset i.
func (s source) closing(i int) (int, *SyntaxError) {
	end, open, what := closeParen(s.text, i)
	if what != "" {
		return 0, s.unclosed(open, what)
	}
	return end, nil
}

func (s source) unclosed(at int, what string) *SyntaxError {
	if what == "(" {
		return s.at(at, "close it with )", "( without )")
	}
	return s.at(at, "close it with "+what, "a %s literal that is not closed", map[string]string{`"`: "string", `'`: "character"}[what])
}

// closeParen gives the offset after the ) that closes the ( at offset i of a
// text; those in string and character literals do not count. What is not closed
// is what, at the offset open.
func closeParen(text string, i int) (end, open int, what string) {
	var opened []int
	for ; i < len(text); i++ {
		switch c := text[i]; c {
		case '(':
			opened = append(opened, i)
		case ')':
			if opened = opened[:len(opened)-1]; len(opened) == 0 {
				return i + 1, 0, ""
			}
		case '"', '\'':
			quote := i
			for i++; i < len(text) && text[i] != c; i++ {
				if text[i] == '\\' {
					i++
				}
			}
			if i >= len(text) {
				return 0, quote, string(c)
			}
		}
	}
	return 0, opened[len(opened)-1], "("
}

// group takes apart what stands in parentheses at offset i of a value: what is
// between them, without blanks around it, and the offset after them.
func (p *ruleParser) group(v value, i int) (inner value, end int, err *SyntaxError) {
	end, open, what := closeParen(v.text, i)
	if what != "" { // only in quotes; else the lexer has seen it
		return value{}, 0, p.unclosed(v.at(open), what)
	}
	return v.part(i+1, end-1).trim(), end, nil
}

// items cuts a value at the commas outside of parentheses.
func (p *ruleParser) items(v value) ([]value, *SyntaxError) {
	var all []value
	from := 0
	for i := 0; i < len(v.text); i++ {
		switch v.text[i] {
		case '(':
			_, end, err := p.group(v, i)
			if err != nil {
				return nil, err
			}
			i = end - 1
		case ',':
			all = append(all, v.part(from, i))
			from = i + 1
		}
	}
	return append(all, v.part(from, len(v.text))), nil
}
