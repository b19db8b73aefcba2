package strictyaml

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/faultgraft/faultgraft/policy"
)

type colour string

func (colour) Values() []string { return []string{"red", "green", "blue"} }

// even is a text of its own: an even number of letters a.
type even int

func (e *even) UnmarshalText(text []byte) error {
	if i := strings.IndexFunc(string(text), func(r rune) bool { return r != 'a' }); i >= 0 {
		return &ValueError{Message: fmt.Sprintf("%q is no a", text[i]), Fix: "write a", Offset: i}
	}
	if len(text)%2 == 1 {
		return errors.New("odd")
	}
	*e = even(len(text))
	return nil
}

type inner struct {
	Size int8    `json:"size,omitempty"`
	Big  uint64  `json:"big,omitempty"`
	F    float64 `json:"f,omitempty"`
}

func (inner) FieldHints() map[string]string {
	return map[string]string{"length": "did you mean size?"}
}

type shared struct {
	Even even `json:"even,omitempty"`
}

type thing struct {
	Name   string            `json:"name"`
	On     bool              `json:"on,omitempty"`
	Colour colour            `json:"colour,omitempty"`
	One    Scalar            `json:"one,omitempty"`
	Many   Scalars           `json:"many,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	Inner  *inner            `json:"inner,omitempty"`
	List   []inner           `json:"list,omitempty"`
	Free   any               `json:"free,omitempty"`
	Words  []string          `json:"words,omitempty"`
	shared
	Hidden int `json:"-"`
}

func TestDecode(t *testing.T) {
	var got thing
	err := Decode("a.yaml", []byte(`# a comment
---
name: "it's"
on: true
colour: green
one: 0600
many: [1, "5%", a:b]
labels: {app.kubernetes.io/name: pg, a: ""}
inner: {size: -128, big: 18446744073709551615, f: 1e-3}
list:
- size: 127
- {}
free: {x: [1, null, two]}
words: [2020-01-01, "7", no]
even: aa
`), &got)
	want := thing{
		Name: "it's", On: true, Colour: "green", One: "0600", Many: Scalars{"1", "5%", "a:b"},
		Labels: map[string]string{"app.kubernetes.io/name": "pg", "a": ""}, Inner: &inner{Size: -128, Big: 1<<64 - 1, F: 0.001},
		List: []inner{{Size: 127}, {}}, Free: map[string]any{"x": []any{1, nil, "two"}}, Words: []string{"2020-01-01", "7", "no"}, shared: shared{Even: 2},
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(thing{})); diff != "" {
		t.Error(diff)
	}
	// One scalar is a list of one; JSON is YAML.
	got = thing{}
	if err := Decode("", []byte(`{"name": "x", "many": 7, "on": false, "inner": {"size": 3}}`), &got); err != nil || !cmp.Equal(got.Many, Scalars{"7"}) || got.Inner.Size != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	// What is empty leaves everything as it is.
	for _, text := range []string{"", "\n", "---\n", "# nothing\n", "---\n---\n"} {
		got := thing{Name: "stays"}
		if err := Decode("", []byte(text), &got); err != nil || got.Name != "stays" {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

// TestErrors has one mistake in each text; ^ marks the place of it.
func TestErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"^nam: x", `unknown field "nam"; did you mean name?`},
		{"name: x\n^foo: 1", `unknown field "foo"; the fields are name, on, colour, one, many, labels, inner, list, free, words, even`},
		{"inner:\n  ^lenght: 3", `inner: unknown field "lenght"; the fields are size, big, f`},
		{"inner:\n  ^length: 3", `inner: unknown field "length"; did you mean size?`},
		{"name: a\non: true\n^name: b", `"name" is given twice; leave one of them out; the first is on line 1`},
		{"labels: {a: x, ^a: y}", `labels: "a" is given twice; leave one of them out; the first is on line 1`},
		{"name: ^5", `name: "5" is a number where text should be; put it in quotes: "5"`},
		{"name: ^true", `name: "true" is a boolean where text should be; put it in quotes: "true"`},
		{"name: ^[x]", `name: a list where one value should be; write one value`},
		{"name: ^~", `name: there is no value; give it a value, or leave the field out`},
		{"labels:\n  a: ^1", `labels.a: "1" is a number where text should be; put it in quotes: "1"`},
		{"labels: {a.b/c: ^1}", `labels["a.b/c"]: "1" is a number where text should be; put it in quotes: "1"`},
		{"labels: {^1: a}", `labels: the key "1" is not text; put it in quotes`},
		{"labels: {? ^[a, b] : c}", `labels: a key that is no text; write NAME: VALUE`},
		{"one: ^''", `one: the value is empty; give it a value, or leave the field out`},
		{"many: [a, ^'']", `many[1]: the value is empty; give it a value, or leave the field out`},
		{"colour: ^''", `colour: the value is empty; give it a value, or leave the field out`},
		{"on: ^yes", `on: "yes" is neither true nor false; did you mean true?`},
		{`on: ^"false"`, `on: "false" is neither true nor false; did you mean false?`},
		{"on: ^maybe", `on: "maybe" is neither true nor false; write true or false`},
		{"colour: ^gren", `colour: unknown colour "gren"; did you mean green?`},
		{"colour: ^black", `colour: unknown colour "black"; write red, green or blue`},
		{"one: ^true", `one: "true" is a boolean where text or a number should be; put it in quotes: "true"`},
		{"many: [a, ^{b: c}]", `many[1]: fields where one value should be; write one value`},
		{"inner: {size: ^128}", `inner.size: 128 is too large; write a smaller one`},
		{"inner: {size: ^1.5}", `inner.size: "1.5" is not a whole number; write digits only`},
		{"inner: {size: ^0x10}", `inner.size: "0x10" is not a whole number; write digits only`},
		{"inner: {size: ^010}", `inner.size: "010" is not a whole number; write digits only`},
		{`inner: {size: ^"3"}`, `inner.size: "3" is not a whole number; leave the quotes out`},
		{"inner: {big: ^-1}", `inner.big: -1 is negative; write a number from 0`},
		{"inner: {f: ^.inf}", `inner.f: ".inf" is not a number; write a decimal number`},
		{"inner: ^x", `inner: one value where fields should be; write NAME: VALUE`},
		{"list: ^x", `list: one value where a list should be; write [x]`},
		{"list:\n- {}\n- ^3", `list[1]: one value where fields should be; write NAME: VALUE`},
		{"even: aa^b", `even: 'b' is no a; write a`},
		{"even: 'a^b'", `even: 'b' is no a; write a`},
		{"even: |-\n  aaa^b", `even: 'b' is no a; write a`},
		{"even: ^aaa", `even: odd`},
		{"words: [^&x a]", `words[0]: an anchor; leave it out; anchors and aliases are not taken`},
		{"name: ^!!str 5", `name: the tag "!!str"; leave it out; put text that looks like a number in quotes`},
		{"name: a\n---\n^name: b", `a second document; write one document`},
	} {
		before, after, found := strings.Cut(c.text, "^")
		err := Decode("a.yaml", []byte(before+after), &thing{})
		var errs Errors
		if !found || !errors.As(err, &errs) || len(errs) != 1 {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		line := strings.Count(before, "\n") + 1
		column := len(before) - strings.LastIndexByte(before, '\n')
		want := fmt.Sprintf("a.yaml:%d:%d: %s", line, column, c.want)
		if got := errs.Error(); got != want {
			t.Errorf("%q:\n got %s\nwant %s", c.text, got, want)
		}
		if detail := strings.Split(errs.Detail(), "\n"); len(detail) != 3 || len(detail[2]) != 2+column {
			t.Errorf("%q:\n%s", c.text, errs.Detail())
		}
	}
}

func TestDetail(t *testing.T) {
	err := Decode("a.yaml", []byte("name: x\ncolour: \"gr\\ten\" # é\n"), &thing{})
	var errs Errors
	if want := "a.yaml:2:9: colour: unknown colour \"gr\\ten\"; did you mean green?\n  colour: \"gr\\ten\" # é\n          ^"; !errors.As(err, &errs) || errs.Detail() != want {
		t.Errorf("got\n%v\nwant\n%s", errs.Detail(), want)
	}
}

// TestAllErrors shows that one mistake does not hide others.
func TestAllErrors(t *testing.T) {
	err := Decode("a.yaml", []byte("nam: x\non: 3\ninner: {size: x}\n"), &thing{})
	if err == nil || len(strings.Split(err.Error(), "\n")) != 3 {
		t.Errorf("%v", err)
	}
	err = Decode("", []byte("words: ["+strings.Repeat("1,", 1000)+"]"), &thing{})
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != maxErrors {
		t.Errorf("%v", err)
	}
}

func TestNotYAML(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"name: x\n\ton: true\n", "a.yaml:2: not YAML: found a tab character that violates indentation; indent with blanks"},
		{"name: a: b\n", "a.yaml: not YAML: mapping values are not allowed in this context; put text with a colon"},
		{"words: [a\nname: x\n", "not YAML: did not find expected ',' or ']'; close the ["},
		{"name: *x\n", "not YAML: unknown anchor 'x' referenced; put text that begins with * in quotes"},
		{"name: \xff\n", "a.yaml:1: the text is not UTF-8"},
		{"name: \x01\n", "not YAML: control characters are not allowed"},
		{strings.Repeat("#", MaxSize+1), "a.yaml: the text has 1048577 bytes, the limit is 1048576; split it"},
		{strings.Repeat("---\na: b\n", MaxDocuments+1), "a.yaml:2002:1: the text has more than 1000 documents; split it"},
		{"free: " + strings.Repeat("[", 100) + strings.Repeat("]", 100), "the document is nested too deeply; at most 64 levels, with"},
		{"a: &x [1]\nb: *x\n", "an anchor; leave it out; anchors and aliases are not taken"},
		{"a: &x {b: c}\nd:\n  <<: *x\n", "d: a merge key; write the fields out"},
	} {
		_, err := Read("a.yaml", []byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q:\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}

// TestErrorAt shows where checks made later put their errors.
func TestErrorAt(t *testing.T) {
	const text = `kind: A
---
kind: B
spec:
  text: |
    first line
      second
  "dotted.name]": plain text
  quoted: 'it''s here'
  escaped: "a\"b c"
  folded: >-
    one
    two three
  list:
  - {a: 1}
`
	docs, err := Read("a.yaml", []byte(text))
	if err != nil || len(docs) != 2 {
		t.Fatal(len(docs), err)
	}
	d := docs[1]
	if kind, ok := d.Text("kind"); kind != "B" || !ok || d.Has("spec.nothing") || !d.Has("spec.list[0].a") {
		t.Errorf("kind %q", kind)
	}
	for _, c := range []struct {
		path         string
		of           string // the place in the value is where this begins
		value        string
		line, column int
	}{
		{"kind", "", "B", 3, 7},
		{"spec.text", "line", "first line\n  second\n", 6, 11},
		{"spec.text", "second", "first line\n  second\n", 7, 7},
		{`spec["dotted.name]"]`, "text", "plain text", 8, 25},
		{"spec.quoted", "here", "it's here", 9, 18},
		{"spec.escaped", "b c", `a"b c`, 10, 16},
		{"spec.folded", "three", "one two three", 13, 9},
		{"spec.list[0].a", "", "1", 15, 9},
		{"spec.list[0].b", "", "", 15, 5},
		{"spec.list", "", "", 14, 3},
		{"spec.nothing.at.all", "", "", 4, 1},
		{`spec["dotted.name]"].x`, "", "", 8, 3},
		{"nothing", "", "", 3, 1},
	} {
		if got, ok := d.Text(c.path); ok && got != c.value {
			t.Errorf("%s is %q", c.path, got)
		}
		if e := d.ErrorAt(c.path, strings.Index(c.value, c.of), "wrong", ""); e.Line != c.line || e.Column != c.column || e.File != "a.yaml" || e.Path != c.path {
			t.Errorf("%s %q: %v, want %d:%d", c.path, c.of, e, c.line, c.column)
		}
	}
}

// FuzzDecode shows that each error is at a place in the text and safe for a
// terminal, and that what is decoded has no error.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"name: x\nlist: [{size: 1}]\n", "name: [", "a: &a [*a]", "? - a\n: b", "even: \"a\\x61\\u0061\"", "even: |2-\n   aab\n", "even: >\n  a\n\n   b\n", "labels: {\"a]\": 1, b.c: x}\n---\n...\n",
		"? 00A", "%YAML 1.2\n---\nname: é\n", "free: {1: 2, x: 2001-01-01}", "one: .nan\nmany: 0o7", "!<tag:x> {}", "even: 'a''a'", "{\"name\": \"\\ud83d\\ude00\"}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := Read("f", data)
		var errs Errors
		if err != nil && !errors.As(err, &errs) {
			t.Fatalf("%T", err)
		}
		for _, d := range docs {
			var got thing
			if err := d.Decode(&got); err != nil {
				errs = append(errs, err.(Errors)...)
			}
			walkPaths(d.root, "", func(path string, n *yaml.Node) {
				if found, _, ok := d.find(path); !ok || found != n {
					t.Errorf("the path %q leads elsewhere", path)
				}
				if len(errs) < 300 {
					errs = append(errs, d.ErrorAt(path, 0, "m", ""), d.ErrorAt(path, 2, "m", ""), d.ErrorAt(Field(path, "x\"]"), 1, "m", ""))
				}
			})
		}
		lines := strings.Split(string(data), "\n")
		for _, e := range errs {
			if e.Message == "" || e.Line < 0 || e.Line > len(lines) || e.Column < 0 || e.Line == 0 && e.Column > 0 {
				t.Errorf("%+v", e)
			}
			if e.Line > 0 && e.Column > len(lines[e.Line-1])+1 {
				t.Errorf("%+v is after the line %q", e, lines[e.Line-1])
			}
			if s := strings.ReplaceAll(e.Detail(), "\n", ""); s != policy.Printable(s) {
				t.Errorf("the error would write %q to a terminal", s)
			}
		}
	})
}

// walkPaths calls visit for each node.
func walkPaths(n *yaml.Node, path string, visit func(string, *yaml.Node)) {
	visit(path, n)
	for i, inner := range n.Content {
		switch {
		case n.Kind == yaml.SequenceNode:
			walkPaths(inner, Item(path, i), visit)
		case i%2 == 1:
			walkPaths(inner, Field(path, n.Content[i-1].Value), visit)
		}
	}
}
