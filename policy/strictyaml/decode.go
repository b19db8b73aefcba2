package strictyaml

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/faultgraft/faultgraft/policy"
)

// Enumeration is a string type that has one of some values. The error about
// another one names the field and the nearest value.
type Enumeration interface{ Values() []string }

// Hinter is a struct that knows what to say about some fields it does not have:
// the way out by their names in lower case.
type Hinter interface{ FieldHints() map[string]string }

// Decode reads the document into a pointer to a struct (or to a map). Structs
// have json tags; embedded ones are part of their owner. Values are strings,
// booleans, numbers, Scalar, Scalars, Enumeration, encoding.TextUnmarshaler,
// structs, pointers, slices, maps by strings, and any. What has no value (null) is refused, but for any. The error is Errors.
func (d *Document) Decode(into any) error {
	var c decoder
	c.d = d
	c.value(d.root, reflect.ValueOf(into).Elem(), "")
	return c.errs.OrNil()
}

type decoder struct {
	checker
	d *Document
}

// fail notes an error at the start of a node.
func (c *decoder) fail(n *yaml.Node, path, fix, format string, args ...any) {
	c.add(c.d.at(n, path, fmt.Sprintf(format, args...), fix))
}

var (
	textType    = reflect.TypeFor[encoding.TextUnmarshaler]()
	enumType    = reflect.TypeFor[Enumeration]()
	scalarType  = reflect.TypeFor[Scalar]()
	scalarsType = reflect.TypeFor[Scalars]()
)

func (c *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	t := v.Type()
	switch {
	case t.Kind() == reflect.Interface && t.NumMethod() == 0:
		var free any
		if err := n.Decode(&free); err != nil {
			c.fail(n, path, "", "%s", policy.Printable(err.Error()))
			return
		}
		if free != nil {
			v.Set(reflect.ValueOf(free))
		}
	case n.ShortTag() == "!!null":
		c.fail(n, path, "give it a value, or leave the field out", "there is no value")
	case t.Kind() == reflect.Pointer:
		p := reflect.New(t.Elem())
		c.value(n, p.Elem(), path)
		v.Set(p)
	case t == scalarsType && n.Kind == yaml.ScalarNode:
		var one Scalar
		c.value(n, reflect.ValueOf(&one).Elem(), path)
		v.Set(reflect.ValueOf(Scalars{one}))
	case t == scalarType:
		switch {
		case !c.scalar(n, path, "text or a number", "!!str", "!!int", "!!float", "!!timestamp"):
		case n.Value == "":
			c.fail(n, path, "give it a value, or leave the field out", "the value is empty")
		default:
			v.SetString(n.Value)
		}
	case reflect.PointerTo(t).Implements(textType):
		c.text(n, v, path)
	default:
		c.kind(n, v, path)
	}
}

func (c *decoder) kind(n *yaml.Node, v reflect.Value, path string) {
	switch t := v.Type(); t.Kind() {
	case reflect.Struct:
		c.structure(n, v, path)
	case reflect.Map:
		if !c.is(n, path, yaml.MappingNode) {
			return
		}
		v.Set(reflect.MakeMap(t))
		for i := 0; i < len(n.Content); i += 2 {
			item := reflect.New(t.Elem()).Elem()
			c.value(n.Content[i+1], item, Field(path, n.Content[i].Value))
			v.SetMapIndex(reflect.ValueOf(n.Content[i].Value).Convert(t.Key()), item)
		}
	case reflect.Slice:
		if !c.is(n, path, yaml.SequenceNode) {
			return
		}
		v.Set(reflect.MakeSlice(t, len(n.Content), len(n.Content)))
		for i, item := range n.Content {
			c.value(item, v.Index(i), Item(path, i))
		}
	case reflect.String:
		c.stringValue(n, v, path)
	case reflect.Bool:
		switch {
		case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!bool":
			v.SetBool(strings.EqualFold(n.Value, "true"))
		case n.Kind == yaml.ScalarNode:
			fix := "write true or false"
			if word, ok := oldBool[strings.ToLower(n.Value)]; ok {
				fix = "did you mean " + word + "?"
			}
			c.fail(n, path, fix, "%s is neither true nor false", brief(n.Value))
		default:
			c.is(n, path, yaml.ScalarNode)
		}
	default:
		c.number(n, v, path)
	}
}

// oldBool are what YAML 1.1 takes for booleans, and JSON programs in quotes.
var oldBool = map[string]string{"yes": "true", "on": "true", "y": "true", "true": "true", "1": "true", "no": "false", "off": "false", "n": "false", "false": "false", "0": "false"}

// is reports whether a node is of a kind.
func (c *decoder) is(n *yaml.Node, path string, kind yaml.Kind) bool {
	if n.Kind == kind {
		return true
	}
	words := map[yaml.Kind][2]string{
		yaml.MappingNode: {"fields", "write NAME: VALUE"}, yaml.SequenceNode: {"a list", "write [A, B], or lines that begin with -"}, yaml.ScalarNode: {"one value", "write one value"},
	}
	fix := words[kind][1]
	if kind == yaml.SequenceNode && n.Kind == yaml.ScalarNode && len(n.Value) < 60 {
		fix = "write [" + n.Value + "]"
	}
	c.fail(n, path, fix, "%s where %s should be", words[n.Kind][0], words[kind][0])
	return false
}

// scalar reports whether a node is a scalar of one of these tags.
func (c *decoder) scalar(n *yaml.Node, path, what string, tags ...string) bool {
	if !c.is(n, path, yaml.ScalarNode) {
		return false
	}
	tag := n.ShortTag()
	for _, t := range tags {
		if t == tag {
			return true
		}
	}
	is := map[string]string{"!!str": "text", "!!int": "a number", "!!float": "a number", "!!bool": "a boolean", "!!timestamp": "a time"}[tag]
	fix := "write " + what
	if tags[0] == "!!str" {
		fix = "put it in quotes: " + strconv.Quote(n.Value)
	}
	c.fail(n, path, fix, "%s is %s where %s should be", brief(n.Value), is, what)
	return false
}

func (c *decoder) stringValue(n *yaml.Node, v reflect.Value, path string) {
	if !c.scalar(n, path, "text", "!!str", "!!timestamp") {
		return
	}
	if v.Type().Implements(enumType) {
		values := v.Interface().(Enumeration).Values()
		known := false
		for _, one := range values {
			known = known || one == n.Value
		}
		if !known {
			c.fail(n, path, policy.Suggest(n.Value, values, "write "+orList(values)), "unknown %s %s", noun(path), brief(n.Value))
			return
		}
	}
	v.SetString(n.Value)
}

// noun is the last name of a path.
func noun(path string) string {
	name := ""
	for path != "" {
		field, index, rest := cutPath(path)
		if index < 0 {
			name = field
		}
		path = rest
	}
	return name
}

// orList joins words: a, b or c.
func orList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

func (c *decoder) text(n *yaml.Node, v reflect.Value, path string) {
	if !c.is(n, path, yaml.ScalarNode) {
		return
	}
	if n.ShortTag() == "!!bool" {
		c.fail(n, path, "write another value", "%s is a boolean", brief(n.Value))
		return
	}
	if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value)); err != nil {
		wrong := valueError(err, n.Value)
		line, column := c.d.place(n, wrong.Offset)
		c.add(c.d.errorAt(line, column, path, wrong.Message, wrong.Fix))
	}
}

// wholeNumber has no octal, hexadecimal or underscore in it, which are read in different ways by YAML 1.1 and 1.2.
var wholeNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

func (c *decoder) number(n *yaml.Node, v reflect.Value, path string) {
	t := v.Type()
	if t.Kind() == reflect.Float64 {
		if !c.scalar(n, path, "a number", "!!int", "!!float") {
			return
		}
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			c.fail(n, path, "write a decimal number", "%s is not a number", brief(n.Value))
			return
		}
		v.SetFloat(f)
		return
	}
	if !c.is(n, path, yaml.ScalarNode) {
		return
	}
	if n.ShortTag() != "!!int" || !wholeNumber.MatchString(n.Value) {
		fix := "write digits only"
		if n.ShortTag() == "!!str" && wholeNumber.MatchString(n.Value) {
			fix = "leave the quotes out"
		}
		c.fail(n, path, fix, "%s is not a whole number", brief(n.Value))
		return
	}
	var err error
	switch t.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		var i int64
		i, err = strconv.ParseInt(n.Value, 10, t.Bits())
		v.SetInt(i)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		var u uint64
		if strings.HasPrefix(n.Value, "-") {
			c.fail(n, path, "write a number from 0", "%s is negative", n.Value)
			return
		}
		u, err = strconv.ParseUint(n.Value, 10, t.Bits())
		v.SetUint(u)
	default:
		panic("strictyaml: " + path + " has the type " + t.String() + ", which cannot be read")
	}
	if err != nil {
		c.fail(n, path, "write a smaller one", "%s is too large", n.Value)
	}
}
