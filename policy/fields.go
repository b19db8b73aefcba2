package policy

import (
	"slices"
	"strings"
)

// ruleParser fills one rule, field by field.
type ruleParser struct {
	source
	defaults Defaults
	rule     Rule
	seen     map[string]word
	ops      []namedOps
	paths    int // what path and exclude stand for, with each {} written out
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
	if fix, later := laterFields[w.name]; later {
		return p.at(w.at, fix, "%q is not there yet", w.name)
	}
	parser, known := fieldParsers[w.name]
	bare := slices.Contains(bareFields, w.name)
	switch {
	case !known && w.bare:
		return p.notField(w)
	case !known:
		return p.at(w.at, fieldFix(w.name), "unknown field %q", w.name)
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

func fieldFix(name string) string {
	if hint := fieldHints[strings.ToLower(name)]; hint != "" {
		return "did you mean " + hint + "?"
	}
	return suggest(name, fieldNames, "the fields are "+strings.Join(fieldNames, ", "))
}

// notField is the error about a word that is alone and not a field.
func (p *ruleParser) notField(w word) *SyntaxError {
	fix := "a field is name=value; put a value that has blanks in double quotes"
	_, isErrno := ParseErrno(w.name)
	_, isOp := opsNamed(w.name)
	switch {
	case strings.HasSuffix(w.name, ")"):
		fix = "leave out the blanks between ( and ), or put the value in double quotes"
	case isErrno:
		fix = "did you mean error=" + w.name + "?"
	case isOp:
		fix = "did you mean op=" + w.name + "?"
	}
	return p.at(w.at, fix, "%q is not a field", w.name)
}
