package policy

import (
	"strings"
	"unicode/utf8"
)

// globScanner reads a glob and writes its canonical spelling.
type globScanner struct {
	in    string
	i     int // where it reads
	out   []cell
	open  []int  // places of the { that are open
	comma []bool // whether each of them has had a comma
}

func (s *globScanner) put(kind cellKind, at int, str string) {
	for i := range len(str) {
		s.out = append(s.out, cell{b: str[i], kind: kind, at: at})
	}
}

// literal writes one character of a name, escaped if it has to be.
func (s *globScanner) literal(at int, r rune) {
	switch {
	case r == '/':
		s.put(cellSlash, at, "/")
	case strings.ContainsRune(globSpecial, r):
		s.put(cellLiteral, at, `\`+string(r))
	default:
		s.put(cellLiteral, at, string(r))
	}
}

// next reads one character. escaped says that a backslash was before it.
func (s *globScanner) next() (r rune, escaped bool, err *globError) {
	at := s.i
	if s.in[s.i] == '\\' {
		escaped = true
		if s.i++; s.i == len(s.in) {
			return 0, false, badGlob(at, `write \\ for a backslash in a name, and quote a path that has blanks`, "a backslash with nothing after it")
		}
	}
	r, n := utf8.DecodeRuneInString(s.in[s.i:])
	if !printableRune(r) {
		return 0, false, badGlob(s.i, "write ? in its place", "the character %q cannot be written in a path", s.in[s.i:s.i+n])
	}
	s.i += n
	return r, escaped, nil
}

func (s *globScanner) scan() *globError {
	for s.i < len(s.in) {
		at := s.i
		r, escaped, err := s.next()
		switch {
		case err != nil:
			return err
		case escaped:
			s.literal(at, r)
		case r == '*' && len(s.open) > 0 && s.i < len(s.in) && s.in[s.i] == '*':
			// doublestar does not match /a/{**,b} with /a, as it does /a/**.
			return badGlob(at, "write it outside, or use several rules", "** inside of {}")
		case r == '*' || r == '?':
			s.put(cellWild, at, string(r))
		case r == '[':
			err = s.class(at)
		case r == '{':
			s.put(cellOpen, at, "{")
			s.open, s.comma = append(s.open, at), append(s.comma, false)
		case r == '}':
			err = s.closeBrace(at)
		case r == ',' && len(s.open) > 0:
			s.put(cellComma, at, ",")
			s.comma[len(s.comma)-1] = true
		case r == ',':
			return badGlob(at, `write {a,b} for alternatives, or \, for a comma in a name`, "a comma between two paths")
		default:
			s.literal(at, r)
		}
		if err != nil {
			return err
		}
	}
	if len(s.open) > 0 {
		return badGlob(s.open[len(s.open)-1], `close it, or write \{ for a brace in a name`, "{ without }")
	}
	return nil
}

func (s *globScanner) closeBrace(at int) *globError {
	last := len(s.open) - 1
	if last < 0 {
		return badGlob(at, `write \} for a brace in a name`, "} without {")
	}
	if !s.comma[last] {
		return badGlob(s.open[last], `write {a,b}, or \{ for a brace in a name`, "{} without alternatives")
	}
	s.put(cellClose, at, "}")
	s.open, s.comma = s.open[:last], s.comma[:last]
	return nil
}

// class reads the rest of [...]. doublestar lets a class match a slash, so that
// [!a] would reach into the next directory; here a class never does.
func (s *globScanner) class(at int) *globError {
	const fix = `write it as [abc], [a-z] or [!a], or \[ for a bracket in a name`
	unclosed := badGlob(at, fix, "[ without ]")
	negated := s.i < len(s.in) && (s.in[s.i] == '!' || s.in[s.i] == '^')
	if negated {
		s.i++
	}
	s.put(cellClass, at, "[")
	if negated {
		s.put(cellClass, at, "!/")
	}
	for empty := true; ; empty = false {
		if s.i >= len(s.in) {
			return unclosed
		}
		if s.in[s.i] == ']' {
			if empty {
				return badGlob(at, fix, "a character class that is empty")
			}
			s.i++
			s.put(cellClass, at, "]")
			return nil
		}
		from := s.i
		lo, _, err := s.next()
		if err != nil {
			return err
		}
		hi := lo
		if rest := s.in[s.i:]; len(rest) > 1 && rest[0] == '-' && rest[1] != ']' {
			s.i++
			if hi, _, err = s.next(); err != nil {
				return err
			}
		}
		switch {
		case hi < lo:
			return badGlob(from, "write the lower end first", "the range %c-%c is empty", lo, hi)
		case lo == '/' && hi == '/' && !negated:
			return badGlob(from, "leave it out", "a character class never matches a slash")
		}
		s.member(at, lo, hi)
	}
}

// member writes the range lo to hi, less the slash.
func (s *globScanner) member(at int, lo, hi rune) {
	if lo <= '/' && '/' <= hi {
		if lo < '/' {
			s.span(at, lo, '/'-1)
		}
		if '/' < hi {
			s.span(at, '/'+1, hi)
		}
		return
	}
	s.span(at, lo, hi)
}

func (s *globScanner) span(at int, lo, hi rune) {
	s.put(cellClass, at, classRune(lo))
	if lo != hi {
		s.put(cellClass, at, "-"+classRune(hi))
	}
}

func classRune(r rune) string {
	if strings.ContainsRune(globSpecial+"-!^", r) {
		return `\` + string(r)
	}
	return string(r)
}
