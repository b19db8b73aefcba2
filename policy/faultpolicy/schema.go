package faultpolicy

import (
	"encoding"
	"encoding/json"
	"math"
	"reflect"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// Schema gives the JSON schema (draft 2020-12) of a FaultPolicy, indented, for
// editors. It accepts what Decode accepts. It refuses what is wrong in shape: a field, a type, a value of an
// enumeration. What the rule language, a schedule or two fields together make wrong is Decode's to tell.
func Schema() []byte {
	s := schemaOf(reflect.TypeFor[FaultPolicy](), false)
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = Kind
	s["description"] = "A policy of faultgraft: which containers get which faults, when, and what ends them. docs/policies.md describes the fields."
	properties := s["properties"].(schema)
	properties["apiVersion"] = schema{"const": APIVersion}
	properties["kind"] = schema{"const": Kind}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic("faultpolicy: " + err.Error()) // it is made of strings and numbers
	}
	return append(text, '\n')
}

type schema map[string]any

var (
	scalarSchema   = schema{"type": []string{"string", "number"}, "minLength": 1}
	durationSchema = schema{
		"type": "string", "description": "a time such as 500ms, 30s or 1h30m",
		"pattern": `^\+?(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$`, // time.ParseDuration
	}
	// oneOf are the types of which exactly one of some fields is there.
	oneOf = map[reflect.Type][]string{
		reflect.TypeFor[Fault]():         {"io", "kernel", "rule"},
		reflect.TypeFor[StopCondition](): {"http", "command"},
	}
	bounds = map[reflect.Type]map[string]schema{
		reflect.TypeFor[Metadata]():      {"name": {"maxLength": MaxNameLength, "pattern": policyName.String()}},
		reflect.TypeFor[Fault]():         {"name": {"maxLength": policy.MaxNameLength, "pattern": `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`}},
		reflect.TypeFor[Spec]():          {"value": {"minimum": 1}, "faults": {"minItems": 1, "maxItems": policy.MaxRules}},
		reflect.TypeFor[Guard]():         {"maxContainers": {"minimum": 1}, "maxPercent": {"minimum": 1, "maximum": 100}, "maxHits": {"minimum": 1}, "stopConditions": {"maxItems": MaxStopConditions}},
		reflect.TypeFor[StopCondition](): {"command": {"minItems": 1}, "failureThreshold": {"minimum": 0}},
	}
)

func schemaOf(t reflect.Type, optional bool) schema {
	switch {
	case t.Kind() == reflect.Pointer:
		return schemaOf(t.Elem(), optional)
	case t == reflect.TypeFor[strictyaml.Scalar]():
		return scalarSchema
	case t == reflect.TypeFor[strictyaml.Scalars]():
		return schema{"anyOf": []schema{scalarSchema, {"type": "array", "items": scalarSchema, "minItems": 1}}}
	case t == reflect.TypeFor[Duration]():
		return durationSchema
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		panic("faultpolicy: there is no schema for " + t.String())
	case t.Implements(reflect.TypeFor[strictyaml.Enumeration]()):
		return schema{"enum": reflect.Zero(t).Interface().(strictyaml.Enumeration).Values()}
	}
	switch t.Kind() {
	case reflect.Struct:
		return structSchema(t)
	case reflect.Map:
		return schema{"type": "object", "additionalProperties": schemaOf(t.Elem(), false), "minProperties": 0}
	case reflect.Slice:
		return schema{"type": "array", "items": schemaOf(t.Elem(), false)}
	case reflect.String:
		if optional {
			return schema{"type": "string", "minLength": 1}
		}
		return schema{"type": "string"}
	case reflect.Bool:
		return schema{"type": "boolean"}
	case reflect.Int:
		return schema{"type": "integer"}
	case reflect.Uint64:
		return schema{"type": "integer", "minimum": 0, "maximum": uint64(math.MaxUint64)}
	}
	panic("faultpolicy: there is no schema for " + t.String())
}

func structSchema(t reflect.Type) schema {
	properties, required := schema{}, []string{}
	for _, f := range strictyaml.Fields(t) {
		s := schemaOf(t.FieldByIndex(f.Index).Type, f.Optional)
		if more := bounds[t][f.Name]; more != nil {
			for k, v := range more {
				s[k] = v
			}
		}
		properties[f.Name] = s
		if !f.Optional {
			required = append(required, f.Name)
		}
	}
	s := schema{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		s["required"] = required
	}
	if names := oneOf[t]; names != nil {
		var one []schema
		for _, n := range names {
			one = append(one, schema{"required": []string{n}})
		}
		s["oneOf"] = one
	}
	return s
}
