package policy

import (
	"path"
	"strings"
)

// NameGlob is a pattern over a name (of a container, an image, a namespace): *
// stands for any characters, slashes too, ? for one, [a-c] for one of these, and
// \ takes the next character as it is.
type NameGlob struct {
	text string
	kind globKind
}

type globKind uint8

const (
	anyMatch globKind = iota
	literalMatch
	prefixMatch
	patternMatch
)

// slashless stands for a slash while path.Match looks, whose * stops at slashes.
const slashless = "\x1f"

// CompileNameGlob checks a pattern. The error is a *SyntaxError without a place.
func CompileNameGlob(text string) (NameGlob, error) {
	src := source{name: "glob", text: text}
	if text == "" {
		return NameGlob{}, src.whole("write a name, or * for all", "the pattern is empty")
	}
	if strings.Contains(text, slashless) {
		return NameGlob{}, src.whole("write ? for it", "a pattern with the character %q", slashless)
	}
	flat := strings.ReplaceAll(text, "/", slashless)
	if _, err := path.Match(flat, ""); err != nil {
		return NameGlob{}, src.whole(`write \[ or \] for a bracket, and \\ for a backslash`, "%q is not a pattern", text)
	}
	special := strings.IndexAny(text, `*?[\`)
	switch {
	case text == "*":
		return NameGlob{kind: anyMatch}, nil
	case special < 0:
		return NameGlob{text, literalMatch}, nil
	case special == len(text)-1 && text[special] == '*':
		return NameGlob{text[:special], prefixMatch}, nil
	}
	return NameGlob{flat, patternMatch}, nil
}

// Match reports whether the pattern matches the name. No pattern matches an empty one.
func (g NameGlob) Match(name string) bool {
	switch {
	case name == "":
		return false
	case g.kind == anyMatch:
		return true
	case g.kind == literalMatch:
		return name == g.text
	case g.kind == prefixMatch:
		return strings.HasPrefix(name, g.text)
	}
	ok, err := path.Match(g.text, strings.ReplaceAll(name, "/", slashless))
	return ok && err == nil // CompileNameGlob has checked it
}

// Literal is the one name that the pattern matches, if there is only one.
func (g NameGlob) Literal() (string, bool) { return g.text, g.kind == literalMatch }
