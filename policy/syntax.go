package policy

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// SyntaxError is one thing that is wrong with a rule, with its place and, where
// there is one, the way out.
type SyntaxError struct {
	// Kind is what Source is: "label", "annotation", or empty for a rule given directly.
	Kind string
	// Source is where the text comes from: the key of the label, or "rule".
	Source string
	// Column is the place in Text, counted in characters from 1; 0 when the
	// error is not about a place in the text (a wrong key, a limit).
	Column int
	// Text is the text that was parsed; cut off when it is over the limit.
	Text string
	// Message says what is wrong.
	Message string
	// Fix says what to do about it; may be empty.
	Fix string
}

// Error gives the error on one line, such as
//
//	label wal.faultgraft.io: column 10: unknown errno "EIOO"; did you mean EIO?
func (e *SyntaxError) Error() string {
	var b strings.Builder
	if e.Kind != "" {
		b.WriteString(e.Kind + " ")
	}
	b.WriteString(Printable(e.Source))
	if e.Column > 0 {
		fmt.Fprintf(&b, ": column %d", e.Column)
	}
	b.WriteString(": " + e.Message)
	if e.Fix != "" {
		b.WriteString("; " + e.Fix)
	}
	return b.String()
}

// Detail gives the error and, below it, the text with a caret under the place.
// The text is made safe for a terminal: labels come from strangers.
func (e *SyntaxError) Detail() string {
	if e.Column <= 0 || e.Text == "" {
		return e.Error()
	}
	return e.Error() + "\n  " + Printable(e.Text) + "\n  " + strings.Repeat(" ", e.Column-1) + "^"
}

// Printable replaces what would move a terminal's cursor, rune by rune so that
// columns stay where they are.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			return ' '
		case !unicode.IsPrint(r) || r == utf8.RuneError:
			return '?'
		}
		return r
	}, s)
}

// source is a text under parsing; it makes errors with the right column.
type source struct {
	kind, name, text string
}

// shorten keeps what a message quotes of a text within a line.
func shorten(args []any) []any {
	const most = 60
	for i, a := range args {
		if s, ok := a.(string); ok && len(s) > most {
			args[i] = strings.ToValidUTF8(s[:most], "") + "..."
		}
	}
	return args
}

// at makes an error at a byte offset of the text.
func (s source) at(offset int, fix, format string, args ...any) *SyntaxError {
	offset = min(max(offset, 0), len(s.text))
	return &SyntaxError{
		Kind: s.kind, Source: s.name, Text: s.text,
		Column:  utf8.RuneCountInString(s.text[:offset]) + 1,
		Message: fmt.Sprintf(format, shorten(args)...), Fix: fix,
	}
}

// whole makes an error that has no column.
func (s source) whole(fix, format string, args ...any) *SyntaxError {
	return &SyntaxError{
		Kind: s.kind, Source: s.name, Text: s.text[:min(len(s.text), MaxRuleLength)],
		Message: fmt.Sprintf(format, shorten(args)...), Fix: fix,
	}
}

// suggest gives "did you mean X?" for the nearest of the known words, or
// otherwise when nothing is near.
func suggest(word string, known []string, otherwise string) string {
	// Long words cannot be near anything; do not spend time on them.
	if len(word) > 64 {
		return otherwise
	}
	best, distance := "", 3
	for _, k := range known {
		if strings.EqualFold(k, word) {
			return "did you mean " + k + "?"
		}
		d := EditDistance(strings.ToLower(word), strings.ToLower(k))
		// A short word is not near to one that shares hardly a letter with it.
		if d < distance && d*2 <= max(len(word), len(k)) {
			best, distance = k, d
		}
	}
	if best == "" {
		return otherwise
	}
	return "did you mean " + best + "?"
}

// EditDistance counts insertions, deletions, substitutions and swaps of
// neighbours between two words (optimal string alignment), in bytes.
func EditDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
