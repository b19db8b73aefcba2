package chaosmesh

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// kernelChaos is the spec of a KernelChaos.
type kernelChaos struct {
	target
	FailKernRequest *failKernRequest `json:"failKernRequest"`
	lifetime
}

// failKernRequest says what fails, and where.
type failKernRequest struct {
	// FailType is 0, 1 or 2: slab, page or bio.
	FailType *int64 `json:"failtype"`
	// Headers are for bpfki's compiler.
	Headers []string `json:"headers"`
	// Callchain has the outermost function first. A last frame without funcname
	// has a predicate over the parameters of what fails (bpfki, gen_should_fail).
	Callchain []frame `json:"callchain"`
	// Probability is in percent; bpfki takes 0 for always.
	Probability *int64 `json:"probability"`
	// Times 0 is without limit.
	Times *int64 `json:"times"`
}

// frame is one function.
type frame struct {
	Funcname   string `json:"funcname"`
	Parameters string `json:"parameters"`
	Predicate  string `json:"predicate"`
}

// failTypes are the hook points by number.
var failTypes = []string{"slab", "page", "bio"}

// rule writes the request as a rule and parses that.
func (r *failKernRequest) rule(path string, d policy.Defaults) (policy.Rule, *ruleText, *problem) {
	t := &ruleText{whole: path}
	t.write("kernel", path, false)
	if r.FailType == nil {
		return policy.Rule{}, t, missing(strictyaml.Field(path, "failtype"), "0 for slab, 1 for page, 2 for bio")
	}
	if n := *r.FailType; n < 0 || int(n) >= len(failTypes) {
		return policy.Rule{}, t, &problem{path: strictyaml.Field(path, "failtype"), message: fmt.Sprintf("unknown failtype %d", n), fix: "write 0 for slab, 1 for page, 2 for bio"}
	}
	t.field("hook", failTypes[*r.FailType], strictyaml.Field(path, "failtype"))
	frames := r.Callchain
	if n := len(frames); n > 0 && frames[n-1].Funcname == "" {
		if p := t.where(&frames[n-1], frameAt(path, n-1)); p != nil {
			return policy.Rule{}, t, p
		}
		frames = frames[:n-1]
	}
	for i := range frames {
		if p := t.within(&frames[i], i == 0, frameAt(path, i)); p != nil {
			return policy.Rule{}, t, p
		}
	}
	if p := r.trigger(t, path); p != nil {
		return policy.Rule{}, t, p
	}
	rule, p := t.parse("kernel", d)
	if p == nil {
		p = r.same(&rule, frames, path)
	}
	return rule, t, p
}

func frameAt(path string, i int) string {
	return strictyaml.Item(strictyaml.Field(path, "callchain"), i)
}

// where adds the predicate of what fails.
func (t *ruleText) where(f *frame, path string) *problem {
	switch {
	case f.Parameters != "":
		return &problem{path: strictyaml.Field(path, "parameters"), message: "a frame without funcname is about what fails, whose parameters are known", fix: "leave it out"}
	case f.Predicate == "":
		return &problem{path: path, message: "the frame has neither funcname nor predicate", fix: "leave it out"}
	}
	t.b.WriteByte('(')
	t.write(f.Predicate, strictyaml.Field(path, "predicate"), true)
	t.b.WriteByte(')')
	return nil
}

// within adds a function of the call chain.
func (t *ruleText) within(f *frame, first bool, path string) *problem {
	if f.Funcname == "" {
		return &problem{path: path, message: "funcname is missing", fix: "only the last frame can be without one: it is about what fails"}
	}
	if first {
		t.b.WriteString(" within=")
	} else {
		t.b.WriteByte(',')
	}
	t.write(f.Funcname, strictyaml.Field(path, "funcname"), true)
	if f.Parameters != "" {
		t.b.WriteByte('(')
		t.write(f.Parameters, strictyaml.Field(path, "parameters"), true)
		t.b.WriteByte(')')
	}
	if f.Parameters != "" || f.Predicate != "" {
		t.b.WriteByte('(')
		t.write(f.Predicate, strictyaml.Field(path, "predicate"), true)
		t.b.WriteByte(')')
	}
	return nil
}

func (r *failKernRequest) trigger(t *ruleText, path string) *problem {
	if n := r.Probability; n != nil {
		at := strictyaml.Field(path, "probability")
		switch {
		case *n == 0:
			return &problem{path: at, message: "probability is 0, which Chaos Mesh takes for always", fix: "leave it out for always"}
		case *n < 0 || *n > 100:
			return &problem{path: at, message: fmt.Sprintf("probability is %d", *n), fix: "write a whole number of percent from 1 to 100"}
		case *n < 100:
			t.field("p", strconv.FormatInt(*n, 10)+"%", at)
		}
	}
	if n := r.Times; n != nil && *n != 0 {
		at := strictyaml.Field(path, "times")
		if *n < 0 {
			return &problem{path: at, message: fmt.Sprintf("times is %d", *n), fix: "write a number from 1, or leave it out"}
		}
		t.field("times", strconv.FormatInt(*n, 10), at)
	}
	return nil
}

// same shows that the rule has what the manifest says: a predicate with
// parentheses of its own making could else add fields.
func (r *failKernRequest) same(rule *policy.Rule, frames []frame, path string) *problem {
	k := rule.Kernel
	where := ""
	if n := len(r.Callchain); n > len(frames) {
		where = r.Callchain[n-1].Predicate
	}
	if k.Where != strings.TrimSpace(where) {
		return unbalanced(frameAt(path, len(frames)), "predicate")
	}
	for i, f := range frames {
		switch at := frameAt(path, i); {
		case i >= len(k.Within) || k.Within[i].Function != f.Funcname:
			return &problem{path: strictyaml.Field(at, "funcname"), message: fmt.Sprintf("%q is not the name of a function", f.Funcname), fix: "write it as /proc/kallsyms has it"}
		case k.Within[i].Parameters != strings.TrimSpace(f.Parameters):
			return unbalanced(at, "parameters")
		case k.Within[i].Predicate != strings.TrimSpace(f.Predicate):
			return unbalanced(at, "predicate")
		}
	}
	if len(k.Within) != len(frames) {
		return unbalanced(path, "callchain")
	}
	return nil
}

func unbalanced(path, field string) *problem {
	return &problem{path: strictyaml.Field(path, field), message: "the parentheses or quotes do not match", fix: "write a condition in C, such as name->len > 5"}
}

func (c *kernelChaos) apply(p *faultpolicy.FaultPolicy, namespace, at string, d policy.Defaults) (*ruleText, *problem) {
	if wrong := c.target.apply(&p.Spec, namespace, at); wrong != nil {
		return nil, wrong
	}
	if wrong := c.lifetime.apply(&p.Spec, at); wrong != nil {
		return nil, wrong
	}
	request := strictyaml.Field(at, "failKernRequest")
	if c.FailKernRequest == nil {
		return nil, missing(request, "failtype, and what narrows it")
	}
	r, text, wrong := c.FailKernRequest.rule(request, withTTL(&p.Spec, d))
	if wrong == nil {
		add(p, r)
	}
	return text, wrong
}
