package strictyaml

import (
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/faultgraft/faultgraft/policy"
	"go.yaml.in/yaml/v3"
)

// StructField is a field of a struct as a document has it.
type StructField struct {
	Name string
	// Index is that of reflect.Value.FieldByIndex.
	Index []int
	// Optional says that the tag has omitempty or omitzero.
	Optional bool
}

var structFields sync.Map // of reflect.Type to []StructField

// Fields lists the fields of a struct type, in their order.
func Fields(t reflect.Type) []StructField {
	if known, ok := structFields.Load(t); ok {
		return known.([]StructField)
	}
	var fields []StructField
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name == "" && f.Anonymous && f.Type.Kind() == reflect.Struct:
			for _, inner := range Fields(f.Type) {
				inner.Index = append([]int{i}, inner.Index...)
				fields = append(fields, inner)
			}
		case name == "":
			panic("strictyaml: the field " + f.Name + " of " + t.String() + " has no json tag")
		default:
			fields = append(fields, StructField{Name: name, Index: []int{i}, Optional: strings.Contains(options, "omit")})
		}
	}
	structFields.Store(t, fields)
	return fields
}

func (c *decoder) structure(n *yaml.Node, v reflect.Value, path string) {
	if !c.is(n, path, yaml.MappingNode) {
		return
	}
	fields := Fields(v.Type())
	for i := 0; i < len(n.Content); i += 2 {
		key := n.Content[i]
		at := slices.IndexFunc(fields, func(f StructField) bool { return f.Name == key.Value })
		if at < 0 {
			c.fail(key, path, fieldFix(v, fields, key.Value), "unknown field %s", brief(key.Value))
			continue
		}
		value, field := n.Content[i+1], v.FieldByIndex(fields[at].Index)
		if fields[at].Optional && field.Kind() == reflect.String && value.Kind == yaml.ScalarNode && value.Value == "" && value.ShortTag() != "!!null" {
			c.fail(value, Field(path, key.Value), "give it a value, or leave the field out", "the value is empty")
			continue
		}
		c.value(value, field, Field(path, key.Value))
	}
}

func fieldFix(v reflect.Value, fields []StructField, name string) string {
	if h, ok := v.Addr().Interface().(Hinter); ok {
		if fix := h.FieldHints()[strings.ToLower(name)]; fix != "" {
			return fix
		}
	}
	names := make([]string, 0, len(fields))
	for _, f := range fields {
		names = append(names, f.Name)
	}
	return policy.Suggest(name, names, "the fields are "+strings.Join(names, ", "))
}
