package faultpolicy

import (
	"errors"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// Rules gives the rules of the policy, one for each fault, in their order. Each
// is the rule that a label with the same fields gives (its Text is such a
// label's value), with the policy's delay, active, idle and ttl where the fault
// has none. A fault that has one of delay, active and idle gets none of the
// policy's. Policy and Run are not set. The error is strictyaml.Errors, without file and line; see Document.
func (p *FaultPolicy) Rules(d policy.Defaults) ([]policy.Rule, error) {
	rules := make([]policy.Rule, 0, len(p.Spec.Faults))
	var errs problems
	for i := range p.Spec.Faults {
		rule, err := p.Spec.Faults[i].rule(&p.Spec.Timing, faultPath(i), d)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		rules = append(rules, rule)
	}
	if len(errs) > 0 {
		return nil, errs.errors(nil)
	}
	return rules, nil
}

func faultPath(i int) string { return strictyaml.Item("spec.faults", i) }

// predicate gives the error of a rule's predicate its place in the policy.
func (p *FaultPolicy) predicate(i int, wrong *policy.SyntaxError) *problem {
	c := p.Spec.Faults[i].compose(&p.Spec.Timing, faultPath(i))
	if c == nil {
		return &problem{path: faultPath(i), message: wrong.Message, fix: wrong.Fix}
	}
	at := policy.Locate(c.text, c.fields(), wrong)
	return c.place(at.Field, at.Offset, wrong)
}

// composition is a rule that is put together, with the places of its parts.
type composition struct {
	path   string // of the fault
	at     string // of what has the text or the fields
	text   string
	inText string // the path of text; empty when it is only io or kernel
	parts  []part
}

// part is a field of the rule and where its value comes from.
type part struct {
	policy.Field
	pieces []piece
}

// piece is a part of a value: from offset start on it is the text at path.
type piece struct {
	start, length int
	path          string
}

func (c *composition) fields() []policy.Field {
	fields := make([]policy.Field, 0, len(c.parts))
	for _, p := range c.parts {
		fields = append(fields, p.Field)
	}
	return fields
}

func (f *Fault) rule(t *Timing, path string, d policy.Defaults) (policy.Rule, *problem) {
	c := f.compose(t, path)
	if c == nil {
		return policy.Rule{}, &problem{path: path, message: "a fault is one of io, kernel and rule", fix: "give one of them"}
	}
	for _, p := range c.parts {
		for _, piece := range p.pieces {
			if piece.length == 0 && !p.Bare {
				return policy.Rule{}, &problem{path: piece.path, message: "the value is empty", fix: "give it a value, or leave it out"}
			}
		}
	}
	if f.Kernel != nil {
		if err := f.Kernel.parentheses(path + ".kernel"); err != nil {
			return policy.Rule{}, err
		}
	}
	name := f.Name
	if !policy.IsName(name) {
		name = "rule" // which is another complaint
	}
	rule, err := policy.Compose(name, c.text, c.fields(), d)
	var wrong *policy.FieldError
	if errors.As(err, &wrong) {
		return policy.Rule{}, c.place(wrong.Field, wrong.Offset, wrong.SyntaxError)
	}
	if err != nil {
		return policy.Rule{}, &problem{path: path, message: err.Error()}
	}
	return rule, nil
}

// parentheses reports what would make a predicate more than one, or a function more than its name.
func (k *Kernel) parentheses(path string) *problem {
	const message, fix = "the parentheses or quotes do not fit together", "write one predicate, parts of which are joined by &&"
	if !policy.Balanced(k.Where) {
		return &problem{path: path + ".where", message: message, fix: fix}
	}
	for i, f := range k.Within {
		at := strictyaml.Item(path+".within", i)
		switch {
		case strings.ContainsAny(f.Func, "(),"):
			return &problem{path: at + ".func", message: "this is more than the name of a function", fix: "write func: NAME, and a predicate as where"}
		case !policy.Balanced(f.Where):
			return &problem{path: at + ".where", message: message, fix: fix}
		case !policy.Balanced(f.Parameters):
			return &problem{path: at + ".parameters", message: message, fix: "leave parameters out: they are not needed"}
		}
	}
	return nil
}

// compose lists the fields of the fault; nil if it is none.
func (f *Fault) compose(t *Timing, path string) *composition {
	c := &composition{path: path}
	switch {
	case f.IO != nil:
		c.text, c.at = "io", path+".io"
		f.IO.fields(c)
	case f.Kernel != nil:
		c.text, c.at = "kernel", path+".kernel"
		f.Kernel.fields(c)
	case f.Rule != "":
		c.text, c.at, c.inText = f.Rule, path+".rule", path+".rule"
	default:
		return nil
	}
	own := f.Trigger.fields(c)
	if c.inText != "" {
		own, _ = policy.FieldNames(f.Rule) // the error is Compose's to tell
	}
	has := func(name string) bool { return slices.Contains(own, name) }
	if !has("delay") && !has("active") && !has("idle") {
		c.duration("delay", t.Delay)
		c.duration("active", t.Active)
		c.duration("idle", t.Idle)
	}
	if !has("ttl") {
		c.duration("ttl", t.TTL)
	}
	return c
}

func (c *composition) duration(name string, d Duration) {
	if d != 0 {
		text := d.String()
		c.parts = append(c.parts, part{policy.Field{Name: name, Value: text}, []piece{{0, len(text), "spec.timing." + name}}})
	}
}

func (c *composition) scalar(name, field string, v strictyaml.Scalar) {
	if v != "" {
		c.parts = append(c.parts, part{policy.Field{Name: name, Value: string(v)}, []piece{{0, len(v), field}}})
	}
}

func (c *composition) bare(name, field string, v bool) {
	if v {
		c.parts = append(c.parts, part{policy.Field{Name: name, Bare: true}, []piece{{0, 0, field}}})
	}
}

func (c *composition) list(name, field string, list []strictyaml.Scalar) {
	if list == nil {
		return
	}
	p := part{Field: policy.Field{Name: name}}
	for i, v := range list {
		if i > 0 {
			p.Value += ","
		}
		p.pieces = append(p.pieces, piece{len(p.Value), len(v), strictyaml.Item(field, i)})
		p.Value += string(v)
	}
	if len(list) == 0 {
		p.pieces = []piece{{0, 0, field}}
	}
	c.parts = append(c.parts, p)
}

func (f *IO) fields(c *composition) {
	at := func(name string) string { return c.at + "." + name }
	c.scalar("throttle", at("throttle"), f.Throttle)
	c.scalar("burst", at("burst"), f.Burst)
	c.scalar("latency", at("latency"), f.Latency)
	c.scalar("cap", at("cap"), f.Cap)
	c.bare("hang", at("hang"), f.Hang)
	c.list("error", at("error"), f.Error)
	c.scalar("short", at("short"), f.Short)
	c.scalar("corrupt", at("corrupt"), f.Corrupt)
	c.scalar("torn", at("torn"), f.Torn)
	c.bare("lost", at("lost"), f.Lost)
	c.scalar("nospace", at("nospace"), f.NoSpace)
	c.scalar("quota", at("quota"), f.Quota)
	if f.Attr != nil {
		c.attr(at("attr"), f.Attr)
	}
	c.list("op", at("ops"), f.Ops)
	c.scalar("path", at("path"), strictyaml.Scalar(f.Path))
	c.list("exclude", at("exclude"), f.Exclude)
	c.callers(f.Comm, f.Exe, f.UID, f.PID)
	c.scalar("offset", at("offset"), f.Offset)
	c.scalar("size", at("size"), f.Size)
}

func (c *composition) callers(comm, exe, uid, pid []strictyaml.Scalar) {
	c.list("comm", c.at+".comm", comm)
	c.list("exe", c.at+".exe", exe)
	c.list("uid", c.at+".uid", uid)
	c.list("pid", c.at+".pid", pid)
}

// attr writes NAME:VALUE,...; sorted, so that the text is the same each time.
func (c *composition) attr(path string, attr map[string]strictyaml.Scalar) {
	p := part{Field: policy.Field{Name: "attr"}}
	names := make([]string, 0, len(attr))
	for name := range attr {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		if i > 0 {
			p.Value += ","
		}
		field := strictyaml.Field(path, name)
		// What is wrong with the name is at the value, too: it is next to it.
		p.Value += name + ":"
		p.pieces = append(p.pieces, piece{len(p.Value), len(attr[name]), field})
		p.Value += string(attr[name])
	}
	if len(names) == 0 {
		p.pieces = []piece{{0, 0, path}}
	}
	c.parts = append(c.parts, p)
}

func (k *Kernel) fields(c *composition) {
	at := func(name string) string { return c.at + "." + name }
	hook := part{policy.Field{Name: "hook", Value: string(k.Hook)}, []piece{{0, len(k.Hook), at("hook")}}}
	if k.Where != "" {
		hook.Value += "("
		hook.pieces = append(hook.pieces, piece{len(hook.Value), len(k.Where), at("where")})
		hook.Value += k.Where + ")"
	}
	c.parts = append(c.parts, hook)
	c.scalar("error", at("error"), k.Error)
	if k.Within != nil {
		p := part{Field: policy.Field{Name: "within"}}
		add := func(path, text string) {
			p.pieces = append(p.pieces, piece{len(p.Value), len(text), path})
			p.Value += text
		}
		for i, f := range k.Within {
			item := strictyaml.Item(at("within"), i)
			if i > 0 {
				p.Value += ","
			}
			add(item+".func", f.Func)
			if f.Parameters != "" {
				p.Value += "("
				add(item+".parameters", f.Parameters)
				p.Value += ")"
			}
			if f.Where != "" || f.Parameters != "" {
				p.Value += "("
				if f.Where != "" {
					add(item+".where", f.Where)
				}
				p.Value += ")"
			}
		}
		if len(k.Within) == 0 {
			p.pieces = []piece{{0, 0, at("within")}}
		}
		c.parts = append(c.parts, p)
	}
	c.callers(k.Comm, nil, k.UID, k.PID)
	c.scalar("backend", at("backend"), k.Backend)
	c.bare("stack", at("stack"), k.Stack)
}

// fields adds those that are there, and gives their names.
func (t *Trigger) fields(c *composition) []string {
	from := len(c.parts)
	for _, f := range []struct {
		name  string
		value strictyaml.Scalar
	}{
		{"p", t.P}, {"after", t.After}, {"every", t.Every}, {"times", t.Times}, {"nth", t.Nth}, {"afterBytes", t.AfterBytes},
		{"delay", t.Delay}, {"active", t.Active}, {"idle", t.Idle}, {"ttl", t.TTL}, {"seed", t.Seed},
	} {
		c.scalar(f.name, c.path+".trigger."+f.name, f.value)
	}
	var names []string
	for _, p := range c.parts[from:] {
		names = append(names, p.Name)
	}
	return names
}

// place makes a problem of an error about one of the fields.
func (c *composition) place(field, offset int, wrong *policy.SyntaxError) *problem {
	p := &problem{path: c.at, message: wrong.Message, fix: wrong.Fix}
	switch {
	case field == policy.InText && c.inText != "":
		p.path, p.offset = c.inText, offset
		return p
	case field >= 0 && field < len(c.parts):
		part := c.parts[field]
		for _, piece := range part.pieces {
			if offset >= piece.start || p.path == c.at {
				p.path, p.offset = piece.path, min(max(offset-piece.start, 0), piece.length)
			}
		}
		p.message = strings.TrimPrefix(p.message, part.Name+"=")
	}
	if c.inText == "" {
		p.fix = inYAML(p.fix)
		p.message = strings.Replace(p.message, "op is missing", "ops is missing", 1)
	}
	return p
}

// ruleField is NAME=VALUE as errors about rules say it.
var ruleField = regexp.MustCompile(`\b(` + strings.Join([]string{
	"throttle", "burst", "latency", "cap", "error", "short", "corrupt", "torn", "nospace", "quota", "attr", "op", "path", "exclude", "comm", "exe", "uid", "pid", "offset", "size",
	"hook", "within", "backend", "p", "after", "every", "times", "nth", "afterBytes", "delay", "active", "idle", "ttl", "seed",
}, "|") + `)=`)

// inYAML says NAME: VALUE in place of NAME=VALUE.
func inYAML(s string) string {
	return ruleField.ReplaceAllStringFunc(s, func(m string) string {
		if m == "op=" {
			return "ops: "
		}
		return strings.TrimSuffix(m, "=") + ": "
	})
}

// unbounded are limits that a rule cannot be over, for checks that are not about a node.
var unbounded = policy.Defaults{MaxTTL: math.MaxInt64}
