package policy

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/bmatcuk/doublestar/v4"
)

// Limits of one glob. They bound the time that one match can take (a few
// microseconds on a usual path): globs come in labels, from strangers.
const (
	// MaxGlobLength is the length of a glob, in bytes.
	MaxGlobLength = 1024
	// MaxAlternatives is how many globs the {} of one glob may stand for.
	MaxAlternatives = 16
	// MaxPaths is how many they may be for the path and the excludes of a rule together.
	MaxPaths = 32
	// MaxStars is how many * and ** each of them may have.
	MaxStars = 16
)

// globError is a wrong glob; at is the byte offset in it.
type globError struct {
	at           int
	message, fix string
}

func (e *globError) Error() string {
	if e.fix == "" {
		return e.message
	}
	return e.message + "; " + e.fix
}

func badGlob(at int, fix, format string, args ...any) *globError {
	return &globError{at: at, message: fmt.Sprintf(format, shorten(args)...), fix: fix}
}

// cellKind says what a byte of a canonical glob is.
type cellKind uint8

const (
	cellLiteral cellKind = iota // part of a name, also its escaping backslash
	cellSlash                   // between two segments
	cellWild                    // * ?
	cellClass                   // [...] with all that is in it
	cellOpen                    // {
	cellComma                   // , between alternatives
	cellClose                   // }
)

// cell is one byte of a canonical glob, with the place that it comes from.
type cell struct {
	b    byte
	kind cellKind
	at   int
}

func text(cells []cell) string {
	b := make([]byte, len(cells))
	for i, c := range cells {
		b[i] = c.b
	}
	return string(b)
}

// CheckGlob checks a glob and gives its canonical spelling, which is the one
// that IOFault.Match needs: only escapes that matter, and no character class
// that could match a slash. It refuses what doublestar would take in another
// sense than its author: ** that is only a part of a segment, a slash at the
// end, a segment ".." and the like.
func CheckGlob(glob string) (string, error) {
	canonical, _, err := checkGlob(glob)
	if err != nil {
		return "", fmt.Errorf("glob %q, character %d: %w", glob, utf8.RuneCountInString(glob[:err.at])+1, err)
	}
	return canonical, nil
}

// checkGlob also says how many globs without {} the glob stands for.
func checkGlob(glob string) (canonical string, paths int, err *globError) {
	if glob == "" {
		return "", 0, badGlob(0, "give an absolute path such as /data/**", "the path is empty")
	}
	if glob[0] != '/' {
		return "", 0, badGlob(0, "write it from the root of the container, such as /data/**", "the path is not absolute")
	}
	if len(glob) > MaxGlobLength {
		return "", 0, badGlob(MaxGlobLength, "use a shorter glob", "the path is longer than %d bytes", MaxGlobLength)
	}
	s := globScanner{in: glob}
	if err := s.scan(); err != nil {
		return "", 0, err
	}
	if len(s.out) > MaxGlobLength {
		return "", 0, badGlob(0, "use a shorter glob", "the path is longer than %d bytes with its special characters escaped", MaxGlobLength)
	}
	if glob == "/" {
		return glob, 1, nil
	}
	all, err := expand(s.out)
	if err != nil {
		return "", 0, err
	}
	for _, one := range all {
		if err := checkSegments(one); err != nil {
			return "", 0, err
		}
	}
	canonical = text(s.out)
	if !doublestar.ValidatePattern(canonical) {
		return "", 0, badGlob(0, "", "this is not a glob")
	}
	return canonical, len(all), nil
}

// expand replaces each {a,b} by its alternatives.
func expand(in []cell) ([][]cell, *globError) {
	todo, done := [][]cell{in}, [][]cell(nil)
	for len(todo) > 0 {
		g := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		open := slices.IndexFunc(g, func(c cell) bool { return c.kind == cellOpen })
		if open < 0 {
			done = append(done, g)
		} else {
			closed, commas := closing(g, open)
			from := open + 1
			for _, to := range append(commas, closed) {
				todo = append(todo, slices.Concat(g[:open], g[from:to], g[closed+1:]))
				from = to + 1
			}
		}
		if len(done)+len(todo) > MaxAlternatives {
			return nil, badGlob(in[0].at, "use several rules", "the {} stand for more than %d paths", MaxAlternatives)
		}
	}
	return done, nil
}

// closing finds the end of the {} that begins at open, and its commas.
func closing(g []cell, open int) (closed int, commas []int) {
	depth := 0
	for i := open; i < len(g); i++ {
		switch g[i].kind {
		case cellOpen:
			depth++
		case cellClose:
			if depth--; depth == 0 {
				return i, commas
			}
		case cellComma:
			if depth == 1 {
				commas = append(commas, i)
			}
		}
	}
	return len(g) - 1, commas // cannot be: the scanner has counted them
}

// segments cuts a glob without {} at its slashes; the empty segment before the
// first slash is left out. A segment keeps at least the cell of its slash, so
// that an empty one has a place, too.
func segments(g []cell) [][]cell {
	var out [][]cell
	for i, c := range g {
		if c.kind == cellSlash {
			out = append(out, g[i:i+1:i+1])
		} else if len(out) > 0 {
			out[len(out)-1] = append(out[len(out)-1], c)
		}
	}
	return out
}

func checkSegments(g []cell) *globError {
	stars, last := 0, ""
	segs := segments(g)
	for i, seg := range segs {
		at, seg := seg[0].at, seg[1:]
		if len(seg) > 0 {
			at = seg[0].at
		}
		name := text(seg)
		switch {
		case name == "" && i == len(segs)-1:
			return badGlob(at, "leave the last slash out, or write /** for all below", "the path ends in a slash")
		case name == "":
			return badGlob(at, "write one slash", "the path has two slashes side by side")
		case name == "." || name == "..":
			return badGlob(at, "write the path that it leads to", "the path has a segment %q", name)
		case isDoubleStar(seg) && last == "**":
			return badGlob(at, "one is enough", "the path has two ** side by side")
		case !isDoubleStar(seg) && hasDouble(seg):
			return badGlob(at, "write /**/ with nothing else between the slashes, or a single *", "** is only a part of %q, where it means the same as *", name)
		}
		last = ""
		if isDoubleStar(seg) {
			last = "**"
		}
		for _, c := range seg {
			if c.kind == cellWild && c.b == '*' {
				stars++
			}
		}
	}
	if stars > MaxStars {
		return badGlob(g[0].at, "use a simpler glob", "the path has more than %d stars", MaxStars)
	}
	return nil
}

// isDoubleStar reports whether a segment is ** as its author wrote it: not one
// that two {} happen to put together.
func isDoubleStar(seg []cell) bool {
	return len(seg) == 2 && hasDouble(seg) && seg[0].at+1 == seg[1].at
}

func hasDouble(seg []cell) bool {
	for i := 1; i < len(seg); i++ {
		if seg[i].kind == cellWild && seg[i].b == '*' && seg[i-1].kind == cellWild && seg[i-1].b == '*' {
			return true
		}
	}
	return false
}

// splitGlobs cuts a list at its commas. It gives the byte offsets of the parts.
func splitGlobs(s string) (parts [][2]int) {
	from := 0
	for i := range outermost(s, ',') {
		parts = append(parts, [2]int{from, i})
		from = i + 1
	}
	return append(parts, [2]int{from, len(s)})
}

// cutSegment cuts a canonical glob at its first slash.
func cutSegment(glob string) (seg, rest string, more bool) {
	for i := range outermost(glob, '/') {
		return glob[:i], glob[i+1:], true
	}
	return glob, "", false
}

// outermost yields the byte offsets at which a separator stands outside of {} and []
// and has no backslash before it.
func outermost(s string, separator byte) iter.Seq[int] {
	return func(yield func(int) bool) {
		depth, class := 0, false
		for i := 0; i < len(s); i++ {
			switch c := s[i]; {
			case c == '\\':
				i++
			case class:
				class = c != ']'
			case c == '[':
				class = true
			case c == '{':
				depth++
			case c == '}':
				depth--
			case c == separator && depth <= 0 && !yield(i):
				return
			}
		}
	}
}

// EscapeGlob gives the glob that matches exactly this path.
func EscapeGlob(path string) string {
	var b strings.Builder
	for i := range len(path) {
		if strings.IndexByte(globSpecial, path[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(path[i])
	}
	return b.String()
}

// globSpecial are the characters that a canonical glob escapes in a name.
const globSpecial = `*?[]{},\`

// printableRune reports whether a rune may stand in a rule. Control characters
// could move the cursor of a terminal that shows the rule, and U+FFFD would
// match every byte that is not UTF-8.
func printableRune(r rune) bool { return r != utf8.RuneError && unicode.IsPrint(r) }
