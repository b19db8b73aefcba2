package policy

import (
	"slices"
	"strings"
)

// language is the fields of one kind of rules.
type language struct {
	kind string
	// fields are the names, in the order in which the documentation has them.
	fields  []string
	parsers map[string]func(*ruleParser, word) *SyntaxError
	// bare are fields without a value.
	bare []string
	// hints are what other tools call a field.
	hints map[string]string
	// begin makes the rule's fault, checks end it.
	begin  func(*Rule)
	checks []func(*ruleParser) *SyntaxError
	// refuse gives the error about names that are refused with a way out of their own; else nil.
	refuse func(*ruleParser, word) *SyntaxError
	// notField gives the way out for a word that stands alone; empty when it knows none.
	notField func(word) string
}

var ioRules = language{
	kind: "io", fields: fieldNames, parsers: fieldParsers, bare: bareFields, hints: fieldHints,
	begin: func(r *Rule) { r.IO = &IOFault{} },
	checks: []func(*ruleParser) *SyntaxError{
		(*ruleParser).checkActions, (*ruleParser).checkLatency, (*ruleParser).checkOps, (*ruleParser).checkThrottle,
		(*ruleParser).checkPath, (*ruleParser).checkTrigger, (*ruleParser).checkTimes,
	},
	refuse: func(p *ruleParser, w word) *SyntaxError {
		if fix, later := laterFields[w.name]; later {
			return p.at(w.at, fix, "%q is not there yet", w.name)
		}
		if slices.Contains(kernelOnly, w.name) {
			return p.at(w.at, "begin the rule with kernel in place of io, or leave it out", "%q is a field of kernel rules", w.name)
		}
		return nil
	},
	notField: func(w word) string {
		if _, isOp := opsNamed(w.name); isOp {
			return "did you mean op=" + w.name + "?"
		}
		return ""
	},
}

// ruleParser fills one rule, field by field.
type ruleParser struct {
	source
	language *language
	defaults Defaults
	rule     Rule
	seen     map[string]word
	ops      []namedOps
	paths    int // what path and exclude stand for, with each {} written out

	// where and frames are the predicates of a kernel rule.
	where  value
	frames []value
}

// namedOps is one item of op: an operation, or a group.
type namedOps struct {
	value
	ops OpSet
}

// fieldNames are the fields in the order in which the documentation has them.
var fieldNames = slices.Concat(waitFields, outcomeFields, []string{"burst", "cap"}, filterFields, triggerFields)

var (
	waitFields = []string{"throttle", "latency", "hang"}
	// outcomeFields change what the operation does; a rule has one of them, but for torn and error together.
	outcomeFields = []string{"error", "short", "corrupt", "torn", "lost", "nospace", "quota", "attr"}
	filterFields  = []string{"op", "path", "exclude", "comm", "exe", "uid", "pid", "offset", "size"}
	triggerFields = []string{"p", "after", "every", "times", "nth", "afterBytes", "delay", "active", "idle", "ttl", "seed"}
	// bareFields are words without a value.
	bareFields = []string{"hang", "lost"}
)

var fieldParsers = map[string]func(*ruleParser, word) *SyntaxError{
	"throttle": (*ruleParser).throttle, "burst": (*ruleParser).burst,
	"latency": (*ruleParser).latency, "cap": (*ruleParser).latencyCap, "hang": (*ruleParser).hang,
	"error": (*ruleParser).errors, "short": (*ruleParser).short, "corrupt": (*ruleParser).corrupt, "torn": (*ruleParser).torn,
	"lost": (*ruleParser).lost, "nospace": (*ruleParser).space, "quota": (*ruleParser).space, "attr": (*ruleParser).attr,

	"op": (*ruleParser).op, "path": (*ruleParser).path, "exclude": (*ruleParser).exclude,
	"comm": (*ruleParser).comm, "exe": (*ruleParser).exe, "uid": (*ruleParser).ids, "pid": (*ruleParser).ids,
	"offset": (*ruleParser).offset, "size": (*ruleParser).requestSize,

	"p":     (*ruleParser).probability,
	"after": (*ruleParser).count, "every": (*ruleParser).count, "times": (*ruleParser).count, "nth": (*ruleParser).count,
	"afterBytes": (*ruleParser).afterBytes, "delay": (*ruleParser).window, "active": (*ruleParser).window, "idle": (*ruleParser).window,
	"ttl": (*ruleParser).ttl, "seed": (*ruleParser).seed,
}

// laterFields are words of the fault language that are not there yet, each with
// what there is: refused by name, so that nobody takes a typing error for the cause.
var laterFields = map[string]string{
	"fsyncfail": "until then error=EIO op=fsync+fdatasync fails the call and syncs nothing",
	"powercut":  "until then lost and torn keep data from the file",
}

// fieldHints are what other tools call a field (Chaos Mesh, strace, tc, fio).
var fieldHints = map[string]string{
	"errno": "error", "retval": "error", "inject": "error", "delay_enter": "latency", "delay_exit": "latency", "jitter": "latency=normal(20ms,5ms)",
	"rate": "throttle", "bandwidth": "throttle", "iops": "throttle=200ops/s", "bps": "throttle=10MiB/s",
	"percent": "p", "probability": "p", "prob": "p", "when": "nth, after or every", "limit": "times", "count": "times", "start": "delay",
	"duration": "ttl", "timeout": "ttl", "methods": "op", "method": "op", "ops": "op", "syscall": "op",
	"volume": "path", "file": "path", "glob": "path", "user": "uid", "process": "comm", "command": "comm", "name": "comm",
	"enospc": "nospace=0", "full": "nospace=0", "drop": "lost", "mistake": "corrupt", "bitflip": "corrupt=bitflip", "zero": "corrupt=zero(1,16)",
	"partial": "short or torn", "truncate": "short", "stall": "hang", "block": "hang", "attroverride": "attr", "skip": "after",
}

func (p *ruleParser) field(w word) *SyntaxError {
	if err := p.language.refuse(p, w); err != nil {
		return err
	}
	parser, known := p.language.parsers[w.name]
	bare := slices.Contains(p.language.bare, w.name)
	switch {
	case !known && w.bare:
		return p.notField(w)
	case !known:
		return p.at(w.at, p.language.fieldFix(w.name), "unknown field %q", w.name)
	case bare && !w.bare:
		fix := "write the word alone"
		if w.name == "hang" {
			fix += "; for a wait of a known length use latency=" + w.value.text
		}
		return p.at(w.value.at(0), fix, "%s takes no value", w.name)
	case w.bare && !bare:
		return p.at(w.at, "write "+w.name+"=VALUE without blanks around =", "field %q has no value", w.name)
	}
	if _, twice := p.seen[w.name]; twice {
		return p.at(w.at, "leave one of them out", "field %q is given twice", w.name)
	}
	p.seen[w.name] = w
	return parser(p, w)
}

func (l *language) fieldFix(name string) string {
	if hint := l.hints[strings.ToLower(name)]; hint != "" {
		return "did you mean " + hint + "?"
	}
	return suggest(name, l.fields, "the fields are "+strings.Join(l.fields, ", "))
}

// notField is the error about a word that is alone and not a field.
func (p *ruleParser) notField(w word) *SyntaxError {
	fix := p.language.notField(w)
	_, isErrno := ParseErrno(w.name)
	switch {
	case fix != "":
	case strings.HasSuffix(w.name, ")"):
		fix = "leave out the blanks between ( and ), or put the value in double quotes"
	case isErrno:
		fix = "did you mean error=" + w.name + "?"
	default:
		fix = "a field is name=value; put a value that has blanks in double quotes"
	}
	return p.at(w.at, fix, "%q is not a field", w.name)
}

// caller is the rule's filter of processes, whatever its kind.
func (p *ruleParser) caller() *Caller {
	if p.rule.Kernel != nil {
		return &p.rule.Kernel.Caller
	}
	return &p.rule.IO.Caller
}
