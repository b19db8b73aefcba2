package predicate

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

type tokenKind int

const (
	tokenEnd tokenKind = iota
	tokenName
	tokenNumber // value in number
	tokenString // value in text
	tokenOperator
)

type token struct {
	kind   tokenKind
	at     place
	text   string // the name, the operator, the string's value, the number as written
	number uint64
}

func (t token) String() string {
	switch t.kind {
	case tokenEnd:
		return "the end"
	case tokenString:
		return quote(t.text)
	}
	return strconv.Quote(t.text)
}

// operators, longest first.
var operators = []string{
	"->", "==", "!=", "<=", ">=", "&&", "||", "<<", ">>",
	"<", ">", "&", "|", "^", "!", "~", "+", "-", "*", "(", ")", "[", "]", ".", ",",
}

type lexer struct {
	rest string
	at   place
}

// skip moves over n bytes.
func (l *lexer) skip(n int) {
	for _, r := range l.rest[:n] {
		l.at.column++
		if r == '\n' {
			l.at = place{l.at.line + 1, 1}
		}
	}
	l.rest = l.rest[n:]
}

func (l *lexer) next() (token, *Error) {
	l.skip(len(l.rest) - len(strings.TrimLeft(l.rest, " \t\r\n")))
	t := token{at: l.at}
	if l.rest == "" {
		return t, nil
	}
	c := l.rest[0]
	switch {
	case nameStart(c):
		n := 1
		for n < len(l.rest) && (nameStart(l.rest[n]) || digit(l.rest[n])) {
			n++
		}
		t.kind, t.text = tokenName, l.rest[:n]
		l.skip(n)
		return t, nil
	case digit(c):
		return l.number()
	case c == '"':
		return l.quoted('"')
	case c == '\'':
		return l.char()
	}
	for _, op := range operators {
		if strings.HasPrefix(l.rest, op) {
			t.kind, t.text = tokenOperator, op
			l.skip(len(op))
			return t, nil
		}
	}
	r, _ := utf8.DecodeRuneInString(l.rest)
	err := t.at.errorf("%q is not part of a predicate", r)
	switch {
	case r == '=':
		err = t.at.errorf(`"=" assigns in C`).fix(`compare with "=="`)
	case strings.ContainsRune("“”„‘’«»", r):
		err = err.fix(`strings are in straight quotes: "…"`)
	case strings.ContainsRune("/%?:;{}", r):
		err = err.fix("the operators are == != < <= > >= && || ! & | ^ ~ << >> + - and startswith")
	}
	return t, err
}

func nameStart(c byte) bool { return c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z' }
func digit(c byte) bool     { return c >= '0' && c <= '9' }

// number reads a C integer: decimal, 0x hexadecimal, 0 octal, 0b binary, with an
// optional suffix of u and l, which says nothing here.
func (l *lexer) number() (token, *Error) {
	n := 1
	for n < len(l.rest) && (nameStart(l.rest[n]) || digit(l.rest[n])) {
		n++
	}
	t := token{kind: tokenNumber, at: l.at, text: l.rest[:n]}
	digits := strings.TrimRight(t.text, "uUlL")
	if strings.Contains(digits, "_") || len(t.text)-len(digits) > 3 {
		return t, t.at.errorf("%q is not a number", t.text)
	}
	v, err := strconv.ParseUint(digits, 0, 64)
	if err != nil {
		if n, ok := err.(*strconv.NumError); ok && n.Err == strconv.ErrRange {
			return t, t.at.errorf("%s does not fit into 64 bits", t.text)
		}
		return t, t.at.errorf("%q is not a number", t.text).fix("numbers are written as 12, 0x1f or 017 (octal)")
	}
	if n < len(l.rest) && l.rest[n] == '.' && n+1 < len(l.rest) && digit(l.rest[n+1]) {
		return t, t.at.errorf("numbers are whole")
	}
	t.number = v
	l.skip(n)
	return t, nil
}

// char reads a character literal such as 'a' or '\n'.
func (l *lexer) char() (token, *Error) {
	at := l.at
	t, err := l.quoted('\'')
	if err != nil {
		return t, err
	}
	if len(t.text) != 1 {
		return t, at.errorf("%d bytes in a character literal", len(t.text)).fix("strings are in double quotes: %s", quote(t.text))
	}
	t.kind, t.number = tokenNumber, uint64(t.text[0])
	t.text = "'" + escape(t.text, '\'') + "'"
	return t, nil
}

// quoted reads a literal with C's escapes up to the quote that began it.
func (l *lexer) quoted(end byte) (token, *Error) {
	t := token{kind: tokenString, at: l.at}
	l.skip(1)
	var value []byte
	for {
		if l.rest == "" || l.rest[0] == '\n' {
			return t, t.at.errorf("a quote that does not end")
		}
		c := l.rest[0]
		at := l.at
		switch c {
		case end:
			l.skip(1)
			t.text = string(value)
			if end == '"' && len(t.text) > MaxString {
				return t, t.at.errorf("a string of %d bytes; %d are allowed", len(t.text), MaxString)
			}
			return t, nil
		case '\\':
			b, n := unescape(l.rest)
			if n == 0 {
				return t, at.errorf("an unknown escape").fix(`there are \n \t \r \0 \\ \" \' \xHH and three octal digits`)
			}
			if b == 0 && end == '"' {
				return t, at.errorf(`\0 ends a string in C`).fix("leave it out; a comparison with == is with the whole string")
			}
			value = append(value, b)
			l.skip(n)
		default:
			r, n := utf8.DecodeRuneInString(l.rest)
			if r == utf8.RuneError && n == 1 {
				return t, at.errorf("a byte that is not UTF-8").fix(`write it as \xHH`)
			}
			if !unicode.IsPrint(r) && r != '\t' {
				return t, at.errorf("a control character in a literal").fix(`write it as \xHH`)
			}
			value = append(value, l.rest[:n]...)
			l.skip(n)
		}
	}
}

// unescape reads the escape at the beginning of s; its length is 0 when it is none.
func unescape(s string) (byte, int) {
	if len(s) < 2 {
		return 0, 0
	}
	switch s[1] {
	case 'n':
		return '\n', 2
	case 't':
		return '\t', 2
	case 'r':
		return '\r', 2
	case '\\', '"', '\'':
		return s[1], 2
	case 'x':
		if len(s) >= 4 {
			if v, err := strconv.ParseUint(s[2:4], 16, 8); err == nil {
				return byte(v), 4
			}
		}
		return 0, 0
	}
	n := 1
	for n < len(s) && n < 4 && s[n] >= '0' && s[n] <= '7' {
		n++
	}
	v, err := strconv.ParseUint(s[1:n], 8, 8)
	if err != nil {
		return 0, 0
	}
	return byte(v), n
}

func quote(s string) string { return `"` + escape(s, '"') + `"` }

// escape writes s so that quoted reads it again.
func escape(s string, end byte) string {
	var b strings.Builder
	for s != "" {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1 || !unicode.IsPrint(r):
			for _, c := range []byte(s[:n]) {
				b.WriteString(`\x` + strconv.FormatUint(uint64(c)|0x100, 16)[1:])
			}
		case r == '\\' || r == rune(end):
			b.WriteString(`\` + s[:n])
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}
