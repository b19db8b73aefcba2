package strictyaml

import (
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// place gives the line and column of a byte offset in the text of a scalar. It
// is exact where the text stands in the document as it is, or with the usual
// escapes; else it is the start of the scalar.
func (d *Document) place(n *yaml.Node, offset int) (line, column int) {
	offset = min(max(offset, 0), len(n.Value))
	if offset == 0 && n.Style&(yaml.LiteralStyle|yaml.FoldedStyle|yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) == 0 || n.Line < 1 || n.Line > len(d.lines) {
		return n.Line, n.Column
	}
	if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return d.placeInBlock(n, offset)
	}
	text := d.lines[n.Line-1]
	start := byteOffset(text, n.Column)
	raw := text[start:]
	var i int
	switch {
	case n.Style&yaml.SingleQuotedStyle != 0:
		i = walk(raw, n.Value, offset, 1, singleQuoted)
	case n.Style&yaml.DoubleQuotedStyle != 0:
		i = walk(raw, n.Value, offset, 1, doubleQuoted)
	default:
		i = walk(raw, n.Value, offset, 0, verbatim)
	}
	return n.Line, n.Column + utf8.RuneCountInString(raw[:i])
}

// walk finds the place in raw of an offset of the value that raw begins with;
// step gives the lengths in raw and in the value of the next character. 0 if the value goes on in other lines.
func walk(raw, value string, offset, i int, step func(string) (raw, value int)) int {
	for at := 0; at < offset; {
		if i >= len(raw) {
			return 0
		}
		r, v := step(raw[i:])
		if r > len(raw)-i || v > len(value)-at {
			return 0
		}
		i, at = i+r, at+v
	}
	return min(i, len(raw))
}

func verbatim(string) (int, int) { return 1, 1 }

func singleQuoted(raw string) (int, int) {
	if strings.HasPrefix(raw, "''") {
		return 2, 1
	}
	return 1, 1
}

func doubleQuoted(raw string) (int, int) {
	if raw[0] != '\\' || len(raw) < 2 {
		return 1, 1
	}
	if strings.IndexByte("xuUN_LP", raw[1]) >= 0 { // of several bytes: the place is not known
		return len(raw) + 1, 1
	}
	return 2, 1
}

// placeInBlock is for | and >. The lines of the text follow that of the sign.
func (d *Document) placeInBlock(n *yaml.Node, offset int) (line, column int) {
	rest := n.Value
	for i := n.Line; i < len(d.lines); i++ { // lines[n.Line] is the first after the sign
		text := strings.TrimSuffix(d.lines[i], "\r")
		words := strings.TrimLeft(text, " ")
		if n.Style&yaml.LiteralStyle != 0 { // blanks beyond the indentation are part of the text
			one, _, _ := strings.Cut(rest, "\n")
			if !strings.HasSuffix(text, one) {
				break
			}
			words = one
		}
		if words == "" && strings.HasPrefix(rest, "\n") {
			if offset == 0 {
				break
			}
			rest, offset = rest[1:], offset-1
			continue
		}
		if words == "" || !strings.HasPrefix(rest, words) {
			break
		}
		if offset <= len(words) {
			return i + 1, utf8.RuneCountInString(text[:len(text)-len(words)+offset]) + 1
		}
		rest, offset = rest[len(words):], offset-len(words)
		if rest == "" {
			break
		}
		rest, offset = rest[1:], offset-1 // the end of the line, or the blank that > makes of it
	}
	return n.Line, n.Column
}
