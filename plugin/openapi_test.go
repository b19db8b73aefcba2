package plugin

import (
	"cmp"
	"encoding"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/faultgraft/faultgraft/plugin/policies"
)

// openAPI is what the tests need of the description.
type openAPI struct {
	Paths map[string]map[string]struct {
		Summary   string
		Responses map[string]any
	}
	Components struct {
		Schemas map[string]struct {
			Properties map[string]any
		}
	}
}

const openAPIFile = "../docs/openapi.yaml"

func readOpenAPI(t *testing.T) (text []byte, d openAPI) {
	t.Helper()
	text, err := os.ReadFile(openAPIFile)
	if err == nil {
		err = yaml.Unmarshal(text, &d)
	}
	if err != nil {
		t.Fatal(err)
	}
	return text, d
}

// docs/openapi.yaml has the routes of the control socket, all of them and no other.
func TestOpenAPIRoutes(t *testing.T) {
	_, d := readOpenAPI(t)
	b := newBench(t, &node{}, t.TempDir(), nil)
	if b.policies == nil {
		if err := b.openPolicies(policies.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	s := &server{loop: b.reconciler, log: b.log, health: func() Health { return Health{} }, ready: func() Readiness { return Readiness{} }}
	mux, ok := s.handler().(*http.ServeMux)
	if !ok {
		t.Fatal("the handler is no ServeMux any more: have it tell its routes")
	}
	described := map[string]bool{}
	for path, methods := range d.Paths {
		for method, op := range methods {
			want := strings.ToUpper(method) + " " + path
			described[want] = true
			req := httptest.NewRequest(strings.ToUpper(method), regexp.MustCompile(`\{\w+\}`).ReplaceAllString(path, "x"), nil)
			if _, pattern := mux.Handler(req); pattern != want {
				t.Errorf("%s is described, and answered by %q", want, pattern)
			}
			if op.Summary == "" || op.Responses["200"] == nil && op.Responses["204"] == nil {
				t.Errorf("%s: no summary, or no answer", want)
			}
		}
	}
	for _, route := range routesInSource(t) {
		covered := slices.ContainsFunc(keysOf(described), func(d string) bool {
			return d == route || strings.HasSuffix(route, "/") && strings.HasPrefix(d, route)
		})
		if !covered {
			t.Errorf("%s is not described", route)
		}
	}
}

func keysOf[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// routesInSource are the patterns given to muxes in this package; one that ends with a slash goes on with a variable.
func routesInSource(t *testing.T) (routes []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 2 {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if mux, is := muxOf(sel); !ok || !is || mux != "mux" || sel.Sel.Name != "HandleFunc" && sel.Sel.Name != "Handle" {
				return true
			}
			arg := call.Args[0]
			if sum, ok := arg.(*ast.BinaryExpr); ok {
				arg = sum.X
			}
			lit, ok := arg.(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: a route that is no literal", name)
				return true
			}
			route, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Error(err)
			}
			routes = append(routes, route)
			return true
		})
	}
	if len(routes) < 10 {
		t.Fatalf("only %d routes were found", len(routes))
	}
	return routes
}

// muxOf gives the name of what a method is called on.
func muxOf(sel *ast.SelectorExpr) (string, bool) {
	if sel == nil {
		return "", false
	}
	id, ok := sel.X.(*ast.Ident)
	if !ok {
		return "", false
	}
	return id.Name, true
}

// openAPITypes are what the control socket reads and writes. Types that these have as fields are described too.
var openAPITypes = []any{
	Containers{}, Config{}, Health{}, Readiness{}, KernelFault{}, KernelRequest{}, StartRequest{}, StartAnswer{}, StopReport{}, StopRequest{}, policies.Status{}, policies.Result{}, apiError{},
}

// The schemas of docs/openapi.yaml are those of the types; UPDATE_OPENAPI=1 writes them anew.
func TestOpenAPISchemas(t *testing.T) {
	g := &schemas{done: map[string]any{}}
	for _, v := range openAPITypes {
		g.of(reflect.TypeOf(v))
	}
	b, err := yaml.Marshal(map[string]any{"components": map[string]any{"schemas": g.done}})
	if err != nil {
		t.Fatal(err)
	}
	text, _ := readOpenAPI(t)
	head, have, _ := strings.Cut(string(text), "components:\n")
	if "components:\n"+have == string(b) {
		return
	}
	if os.Getenv("UPDATE_OPENAPI") == "" {
		t.Fatalf("docs/openapi.yaml does not describe the types as they are; UPDATE_OPENAPI=1 go test ./plugin -run TestOpenAPISchemas writes them:\n%s", b)
	}
	if err := os.WriteFile(openAPIFile, []byte(head+string(b)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// schemas makes JSON schemas of Go types.
type schemas struct{ done map[string]any }

func (g *schemas) of(t reflect.Type) any {
	marshals := func(i reflect.Type) bool { return t.Implements(i) || reflect.PointerTo(t).Implements(i) }
	switch {
	case t == reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[time.Duration]():
		return map[string]any{"type": "integer", "format": "int64", "description": "nanoseconds"}
	case t.Kind() == reflect.Pointer:
		return g.of(t.Elem())
	case marshals(reflect.TypeFor[encoding.TextMarshaler]()):
		return map[string]any{"type": "string"}
	case marshals(reflect.TypeFor[json.Marshaler]()):
		return map[string]any{} // as the type writes itself
	}
	switch t.Kind() {
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Slice, reflect.Array:
		return map[string]any{"type": "array", "items": g.of(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": g.of(t.Elem())}
	case reflect.Interface:
		return map[string]any{}
	case reflect.Struct:
	default:
		return map[string]any{"type": "integer"}
	}
	if p := t.PkgPath(); !strings.Contains(p, "/plugin") || strings.HasSuffix(p, "/graft") {
		// The language of rules and policies has its own schema (faultgraft schema), a graft's report is for people.
		return map[string]any{"type": "object", "description": t.String()}
	}
	name := schemaName(t)
	if _, ok := g.done[name]; !ok {
		properties := map[string]any{}
		g.done[name] = nil // it may have itself as a field
		g.fields(t, properties)
		g.done[name] = map[string]any{"type": "object", "properties": properties}
	}
	return map[string]any{"$ref": "#/components/schemas/" + name}
}

// schemaName tells types of one name apart by their package.
func schemaName(t reflect.Type) string {
	pkg := t.PkgPath()[strings.LastIndexByte(t.PkgPath(), '/')+1:]
	name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
	if pkg == "plugin" {
		return name
	}
	return cmp.Or(pkg, "go") + "." + name
}

func (g *schemas) fields(t reflect.Type, into map[string]any) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case f.Anonymous && name == "":
			e := f.Type
			if e.Kind() == reflect.Pointer {
				e = e.Elem()
			}
			g.fields(e, into)
		case f.IsExported():
			into[cmp.Or(name, f.Name)] = g.of(f.Type)
		}
	}
}

// The schemas match what is really written: a container, as the socket has it.
func TestOpenAPIIsWhatIsWritten(t *testing.T) {
	_, d := readOpenAPI(t)
	b, err := json.Marshal(Container{Key: Key{"default", "c1"}, Name: "pg", PID: 1, Labels: map[string]string{"a": "b"}, State: StateActive})
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	for f := range fields {
		if _, ok := d.Components.Schemas["Container"].Properties[f]; !ok {
			t.Errorf("field %s is not described: %s", f, fmt.Sprint(keysOf(d.Components.Schemas["Container"].Properties)))
		}
	}
}
