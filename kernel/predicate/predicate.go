// Package predicate compiles conditions over the parameters of a kernel
// function to eBPF instructions, such as
//
//	name->name == "bananas" && parent->d_inode->i_ino > 5
//
// [Parse] reads the text, [Check] and [Compile] take the parameters' names and
// types and the offsets of members from the kernel's BTF. Nothing else is
// needed: no compiler, no kernel headers.
//
// The language is C's, as far as it goes, with two differences that follow from
// what it is for. Numbers are compared as numbers: -1 is less than any unsigned
// value. And a read that fails (a NULL pointer, memory that is not there) makes
// the whole predicate false, also below a "!".
package predicate

import (
	"fmt"
	"strings"
)

// Limits of a predicate.
const (
	MaxLength       = 4096 // characters of its text
	MaxDepth        = 32   // operators and parentheses inside each other
	MaxString       = 255  // bytes of a string literal: the longest file name, see NAME_MAX
	MaxInstructions = 2048 // eBPF instructions
)

// Error is what is wrong with a predicate, at its place in the text.
type Error struct {
	Line, Column int // from 1; Column counts characters
	Message      string
	Fix          string // what would be valid; may be empty
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%d:%d: %s", e.Line, e.Column, e.Message)
	if e.Fix != "" {
		s += "; " + e.Fix
	}
	return s
}

// place is a place in the text, counted from 1, in characters.
type place struct{ line, column int }

func (p place) errorf(format string, args ...any) *Error {
	return &Error{Line: p.line, Column: p.column, Message: fmt.Sprintf(format, args...)}
}

func (e *Error) fix(format string, args ...any) *Error {
	e.Fix = fmt.Sprintf(format, args...)
	return e
}

// Expr is a parsed predicate.
type Expr struct {
	root node
	text string
}

// Text returns what was parsed.
func (e *Expr) Text() string { return e.text }

// String returns the predicate in one canonical form, which parses to the same.
func (e *Expr) String() string {
	var b strings.Builder
	e.root.write(&b)
	return b.String()
}

func (p place) String() string { return fmt.Sprintf("%d:%d", p.line, p.column) }
