// Package strictyaml reads YAML into Go structs by their json tags and refuses
// what it does not know: a field, a type, a duplicate key. Each error has its
// file, line and column and, where there is one, the way out. JSON is YAML.
//
// Anchors, aliases, merge keys and explicit tags are refused, so that a
// document is as large as its text and says what it seems to say.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Limits of what is read.
const (
	// MaxSize is the size of a text, bytes.
	MaxSize = 1 << 20
	// MaxDocuments is how many documents one text can have.
	MaxDocuments = 1000
	maxDepth     = 64
	maxPath      = 4096 // bytes
	maxErrors    = 20   // of one document
)

// Document is one document of a YAML text.
type Document struct {
	file  string
	lines []string
	root  *yaml.Node
}

// Read gives the documents of a text that are not empty. file names the text in
// errors, which are Errors.
func Read(file string, data []byte) ([]*Document, error) {
	if len(data) > MaxSize {
		return nil, Errors{{File: file, Message: fmt.Sprintf("the text has %d bytes, the limit is %d", len(data), MaxSize), Fix: "split it into several files"}}
	}
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		if !utf8.ValidString(line) {
			return nil, Errors{{File: file, Line: i + 1, Message: "the text is not UTF-8", Fix: "save it as UTF-8"}}
		}
	}
	var docs []*Document
	for decoder := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var node yaml.Node
		err := decoder.Decode(&node)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, Errors{syntaxError(file, lines, err)}
		}
		root := node.Content[0]
		if root.ShortTag() == "!!null" && root.Value == "" && root.Style&yaml.TaggedStyle == 0 && root.Anchor == "" {
			continue
		}
		d := &Document{file: file, lines: lines, root: root}
		if len(docs) == MaxDocuments {
			return nil, Errors{d.at(root, "", "the text has more than "+strconv.Itoa(MaxDocuments)+" documents", "split it into several files")}
		}
		var c checker
		if c.node(d, root, "", 0); len(c.errs) > 0 {
			return nil, c.errs
		}
		docs = append(docs, d)
	}
}

// Decode reads a text of one document, or of none, which leaves into as it is.
// The error is Errors.
func Decode(file string, data []byte, into any) error {
	docs, err := Read(file, data)
	switch {
	case err != nil:
		return err
	case len(docs) == 0:
		return nil
	case len(docs) > 1:
		return Errors{docs[1].at(docs[1].root, "", "a second document", "write one document")}
	}
	return docs[0].Decode(into)
}

// Text gives the text of a scalar, and whether the document has one at this path.
func (d *Document) Text(path string) (string, bool) {
	n, _, found := d.find(path)
	if !found || n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		return "", false
	}
	return n.Value, true
}

// Has reports whether the document has this path, such as spec.faults[0].io.
func (d *Document) Has(path string) bool {
	_, _, found := d.find(path)
	return found
}

// ErrorAt makes an error about what stands at a path. offset is a place in the
// text of a scalar, in bytes; 0 is its start. What is not there has the place
// of the nearest thing around it.
func (d *Document) ErrorAt(path string, offset int, message, fix string) *Error {
	n, key, found := d.find(path)
	switch {
	case found && n.Kind == yaml.ScalarNode:
		line, column := d.place(n, offset)
		return d.errorAt(line, column, path, message, fix)
	case key != nil:
		n = key
	}
	return d.at(n, path, message, fix)
}

// find gives the node at a path, with that of its name if it is a field; or
// else those of the last part of the path that is there.
func (d *Document) find(path string) (n, key *yaml.Node, found bool) {
	n = d.root
	for path != "" {
		var inner, name *yaml.Node
		field, index, rest := cutPath(path)
		switch {
		case n.Kind == yaml.SequenceNode && index >= 0 && index < len(n.Content):
			inner = n.Content[index]
		case n.Kind == yaml.ScalarNode && index == 0 && rest == "":
			return n, key, true // Scalars: one stands for a list of one
		case n.Kind == yaml.MappingNode && index < 0:
			for i := 0; i+1 < len(n.Content) && inner == nil; i += 2 {
				if n.Content[i].Value == field {
					name, inner = n.Content[i], n.Content[i+1]
				}
			}
		}
		if inner == nil {
			return n, key, false
		}
		n, key, path = inner, name, rest
	}
	return n, key, true
}

// cutPath takes the first part off a path: the name of a field, or an index of a list from 0.
func cutPath(path string) (field string, index int, rest string) {
	path = strings.TrimPrefix(path, ".")
	inner, ok := strings.CutPrefix(path, "[")
	if !ok {
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			end = len(path)
		}
		return path[:end], -1, path[end:]
	}
	if quoted, err := strconv.QuotedPrefix(inner); err == nil {
		field, _ = strconv.Unquote(quoted) // QuotedPrefix has checked it
		return field, -1, strings.TrimPrefix(inner[len(quoted):], "]")
	}
	number, rest, _ := strings.Cut(inner, "]")
	index, err := strconv.Atoi(number)
	if err != nil {
		return inner, -1, ""
	}
	return "", max(index, 0), rest
}

func (d *Document) at(n *yaml.Node, path, message, fix string) *Error {
	return d.errorAt(n.Line, n.Column, path, message, fix)
}

func (d *Document) errorAt(line, column int, path, message, fix string) *Error {
	if line > len(d.lines) { // what is missing at the end
		line, column = len(d.lines), math.MaxInt
	}
	source := strings.TrimSuffix(d.lines[line-1], "\r")
	column = min(column, utf8.RuneCountInString(source)+1)
	return &Error{File: d.file, Line: line, Column: column, Path: path, Message: message, Fix: fix, Source: source}
}

var plainKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)

// Field gives the path of a field, or of the value of a map's key.
func Field(path, name string) string {
	switch {
	case !plainKey.MatchString(name):
		return path + "[" + strconv.Quote(name) + "]"
	case path == "":
		return name
	}
	return path + "." + name
}

// Item gives the path of an item of a list.
func Item(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// checker refuses what no document may have.
type checker struct{ errs Errors }

func (c *checker) add(e *Error) {
	if len(c.errs) < maxErrors {
		c.errs = append(c.errs, e)
	}
}

func (c *checker) node(d *Document, n *yaml.Node, path string, depth int) {
	switch {
	case depth > maxDepth || len(path) > maxPath:
		c.add(d.at(n, "", "the document is nested too deeply", fmt.Sprintf("at most %d levels, with names of %d bytes together", maxDepth, maxPath)))
		return
	case n.Kind == yaml.AliasNode:
		c.add(d.at(n, path, "an alias", "write the value out; anchors and aliases are not taken"))
		return
	case n.Anchor != "":
		c.add(d.at(n, path, "an anchor", "leave it out; anchors and aliases are not taken"))
		return
	case n.Style&yaml.TaggedStyle != 0:
		c.add(d.at(n, path, fmt.Sprintf("the tag %s", brief(n.Tag)), "leave it out; put text that looks like a number in quotes"))
		return
	}
	switch n.Kind {
	case yaml.SequenceNode:
		for i, item := range n.Content {
			c.node(d, item, Item(path, i), depth+1)
		}
	case yaml.MappingNode:
		c.mapping(d, n, path, depth)
	}
}

func (c *checker) mapping(d *Document, n *yaml.Node, path string, depth int) {
	seen := make(map[string]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, v := n.Content[i], n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode:
			c.add(d.at(key, path, "a key that is no text", "write NAME: VALUE"))
			continue
		case key.ShortTag() == "!!merge":
			c.add(d.at(key, path, "a merge key", "write the fields out"))
			continue
		case key.Anchor != "" || key.Style&yaml.TaggedStyle != 0:
			c.add(d.at(key, path, "a key with an anchor or a tag", "leave it out"))
			continue
		case key.ShortTag() != "!!str":
			c.add(d.at(key, path, fmt.Sprintf("the key %s is not text", brief(key.Value)), "put it in quotes"))
			continue
		}
		if first := seen[key.Value]; first != nil {
			c.add(d.at(key, path, fmt.Sprintf("%s is given twice", brief(key.Value)), "leave one of them out; the first is on line "+strconv.Itoa(first.Line)))
			continue
		}
		seen[key.Value] = key
		c.node(d, v, Field(path, key.Value), depth+1)
	}
}
