package strictyaml

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/faultgraft/faultgraft/policy"
)

// Error is one thing that is wrong with a document.
type Error struct {
	// File is the file's name. Line and Column count from 1, the column in
	// characters; 0 where the place is not known.
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	// Path is the field, such as spec.faults[0].io.path; empty for the whole document.
	Path string `json:"path,omitempty"`
	// Message says what is wrong, Fix what to do about it; Fix may be empty.
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
	// Source is the line of the text.
	Source string `json:"-"`
}

// Error gives the error on one line, such as
//
//	a.yaml:7:9: spec.mode: unknown mode "fixd"; did you mean fixed?
func (e *Error) Error() string {
	var parts []string
	place := policy.Printable(e.File)
	if e.Line > 0 {
		if place == "" {
			place = "line " + strconv.Itoa(e.Line)
		} else {
			place += ":" + strconv.Itoa(e.Line)
		}
		if e.Column > 0 {
			place += ":" + strconv.Itoa(e.Column)
		}
	}
	for _, part := range []string{place, policy.Printable(e.Path), e.Message} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	s := strings.Join(parts, ": ")
	if e.Fix != "" {
		s += "; " + e.Fix
	}
	return s
}

// Detail gives the error and, below it, the line with a caret under the place.
func (e *Error) Detail() string {
	if e.Column <= 0 || strings.TrimSpace(e.Source) == "" || e.Column > utf8.RuneCountInString(e.Source)+1 {
		return e.Error()
	}
	return e.Error() + "\n  " + policy.Printable(e.Source) + "\n  " + strings.Repeat(" ", e.Column-1) + "^"
}

// Errors are all that is wrong with a text.
type Errors []*Error

// Error gives one line for each.
func (e Errors) Error() string { return e.join((*Error).Error) }

// Detail gives each with its place in the text.
func (e Errors) Detail() string { return e.join((*Error).Detail) }

func (e Errors) join(one func(*Error) string) string {
	lines := make([]string, 0, len(e))
	for _, err := range e {
		lines = append(lines, one(err))
	}
	return strings.Join(lines, "\n")
}

// OrNil is nil when there are no errors, which Errors in an error is not.
func (e Errors) OrNil() error {
	if len(e) == 0 {
		return nil
	}
	return e
}

// ValueError is what UnmarshalText of a value can return to say a way out, and
// where in the text the mistake is.
type ValueError struct {
	Message, Fix string
	// Offset is in bytes.
	Offset int
}

// Error gives message and way out.
func (e *ValueError) Error() string {
	if e.Fix == "" {
		return e.Message
	}
	return e.Message + "; " + e.Fix
}

// valueError makes a ValueError of any error about a text.
func valueError(err error, text string) *ValueError {
	var v *ValueError
	var syntax *policy.SyntaxError
	switch {
	case errors.As(err, &v):
		return v
	case errors.As(err, &syntax):
		return &ValueError{Message: syntax.Message, Fix: syntax.Fix, Offset: byteOffset(text, syntax.Column)}
	}
	return &ValueError{Message: err.Error()}
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

// brief quotes a text for a message, cut to a line.
func brief(s string) string {
	const most = 60
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return strconv.Quote(s)
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntaxHints are ways out of what the YAML parser says.
var syntaxHints = []struct{ message, fix string }{
	{"tab character", "indent with blanks"},
	{"cannot start any token", "indent with blanks, not tabs; put text that begins with % @ or ` in quotes"},
	{"mapping values are not allowed", "put text with a colon and a blank in quotes; look at the indentation"},
	{"did not find expected key", "look at the indentation; put text with special characters in quotes"},
	{"did not find expected ',' or", "close the [ or {, or put its text in quotes"},
	{"could not find expected ':'", "write NAME: VALUE"},
	{"unknown anchor", "put text that begins with * in quotes"},
	{"did not find expected alphabetic or numeric character", "put text that begins with * or & in quotes"},
	{"block sequence entries are not allowed", "begin the list on a line of its own"},
}

// syntaxError makes an error of the YAML parser's. It has no column.
func syntaxError(file string, lines []string, err error) *Error {
	e := &Error{File: file, Message: err.Error()}
	if m := yamlLine.FindStringSubmatch(strings.TrimSpace(err.Error())); m != nil {
		e.Line, _ = strconv.Atoi(m[1]) // without a line: 0
		e.Line = min(e.Line, len(lines))
		e.Message = fmt.Sprintf("not YAML: %s", policy.Printable(m[2]))
	}
	for _, h := range syntaxHints {
		if strings.Contains(e.Message, h.message) {
			e.Fix = h.fix
			break
		}
	}
	return e
}
