package policy

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ruleParser fills one rule, field by field.
type ruleParser struct {
	source
	defaults Defaults
	rule     Rule
	seen     map[string]word
	release  *value // release or releasedir, where op names it
	paths    int    // what path and exclude stand for, with each {} written out
}

// fieldNames are the fields in the order in which the documentation has them.
var fieldNames = []string{"error", "latency", "op", "path", "exclude", "p", "after", "every", "times", "nth", "ttl", "seed"}

var fieldParsers = map[string]func(*ruleParser, word) *SyntaxError{
	"error": (*ruleParser).errno, "latency": (*ruleParser).latency,
	"op": (*ruleParser).op, "path": (*ruleParser).path, "exclude": (*ruleParser).exclude,
	"p":     (*ruleParser).probability,
	"after": (*ruleParser).count, "every": (*ruleParser).count, "times": (*ruleParser).count, "nth": (*ruleParser).count,
	"ttl": (*ruleParser).ttl, "seed": (*ruleParser).seed,
}

// laterFields are words of the fault language that this version does not have:
// refused by name, so that nobody takes a typing error for the cause.
var laterFields = map[string]bool{
	"hang": true, "short": true, "corrupt": true, "torn": true, "lost": true, "fsyncfail": true,
	"nospace": true, "quota": true, "throttle": true, "attr": true, "powercut": true,
	"comm": true, "exe": true, "uid": true, "pid": true, "offset": true, "size": true,
	"afterBytes": true, "delay": true, "active": true, "idle": true,
}

func (p *ruleParser) field(w word) *SyntaxError {
	if laterFields[w.name] {
		return p.at(w.at, "see docs/rules.md for what there is", "%q is not in this version", w.name)
	}
	parser, known := fieldParsers[w.name]
	switch {
	case known && w.bare:
		return p.at(w.at, "write "+w.name+"=VALUE without blanks around =", "field %q has no value", w.name)
	case w.bare:
		return p.at(w.at, "a field is name=value; put a value that has blanks in double quotes", "%q is not a field", w.name)
	case !known:
		return p.at(w.at, suggest(w.name, fieldNames, "the fields are "+strings.Join(fieldNames, ", ")), "unknown field %q", w.name)
	}
	if _, twice := p.seen[w.name]; twice {
		return p.at(w.at, "leave one of them out", "field %q is given twice", w.name)
	}
	p.seen[w.name] = w
	return parser(p, w)
}

// finish checks what needs all fields.
func (p *ruleParser) finish() *SyntaxError {
	end := len(strings.TrimRight(p.text, " \t\r\n"))
	io, t := p.rule.IO, &p.rule.Trigger
	if len(io.Errors) == 0 && io.Latency == nil {
		return p.at(end, "add error=EIO or latency=100ms", "the rule does nothing: neither error nor latency is given")
	}
	if io.Ops == 0 {
		return p.at(end, "add op=read, or another operation or group (data, meta, sync, all)", "op is missing")
	}
	if p.release != nil && len(io.Errors) > 0 {
		return p.at(p.release.at(0), "use flush: close(2) returns its error", "%s cannot fail: the kernel does not look at its answer", p.release.text)
	}
	if io.Path == "" {
		if p.defaults.Path == "" {
			return p.at(end, "add path=/data/**", "path is missing")
		}
		canonical, _, err := checkGlob(p.defaults.Path)
		if err != nil {
			return p.whole(err.fix, "the default path %q: %s", p.defaults.Path, err.message)
		}
		io.Path = canonical
	}
	if nth, ok := p.seen["nth"]; ok {
		for _, name := range []string{"after", "every", "times", "p"} {
			if other, also := p.seen[name]; also {
				return p.at(max(nth.at, other.at), "nth=N is after=N-1 times=1: write it that way to combine it",
					"nth and %s cannot stand together", name)
			}
		}
	}
	if lat, ok := p.seen["latency"]; ok && io.Latency.Base > t.TTL {
		return p.at(lat.value.at(0), "shorten it, or give the rule a longer ttl", "a latency of %v is longer than the rule lives (ttl %v)", io.Latency.Base, t.TTL)
	}
	if len(p.rule.String()) > MaxRuleLength {
		return p.whole("split it into several rules", "the rule is longer than %d bytes with its special characters escaped", MaxRuleLength)
	}
	return nil
}

func (p *ruleParser) errno(w word) *SyntaxError {
	v, at := w.value.text, w.value.at(0)
	if i := strings.IndexAny(v, ",+:"); i >= 0 {
		return p.at(w.value.at(i), "give one errno; use a rule for each", "several errors in one rule are not in this version")
	}
	e, ok := ParseErrno(v)
	if !ok {
		return p.at(at, suggest(v, errnoNames, "use a name of errno(3), such as EIO or ENOSPC"), "unknown errno %q", v)
	}
	if e == syscall.ENOSYS {
		// fs/fuse: after an ENOSYS the kernel never sends that request again
		// and, for fsync, flush and others, tells programs that it succeeded:
		// a fault without an end.
		return p.at(at, "use EOPNOTSUPP", "ENOSYS would switch the operation off in the kernel for the life of the layer")
	}
	p.rule.IO.Errors = []WeightedErrno{{e, 1}}
	return nil
}

// opHints name the operation behind a system call's name.
var opHints = map[string]string{
	"stat": "getattr", "fstat": "getattr", "lstat": "getattr", "statx": "getattr",
	"close": "flush (release cannot report an error)", "truncate": "setattr", "ftruncate": "setattr", "chmod": "setattr",
	"chown": "setattr", "utimens": "setattr", "utimensat": "setattr", "pread": "read", "readv": "read",
	"pwrite": "write", "writev": "write", "mmap": "mmap-read or mmap-write", "openat": "open", "getdents": "readdir",
	"getdents64": "readdir", "readdirplus": "readdir", "sync": "sync", "flock": "setlk", "fcntl": "setlk", "setlkw": "setlk",
	"rename2": "rename", "renameat": "rename", "unlinkat": "unlink", "creat": "create", "fadvise": "no operation of a file system",
}

func (p *ruleParser) op(w word) *SyntaxError {
	for _, part := range w.value.split("+,") {
		if part.text == "" {
			return p.at(part.at(0), "write op=write+fsync", "an operation is missing in %q", w.value.text)
		}
		ops, ok := opsNamed(part.text)
		if !ok {
			fix := "did you mean " + opHints[part.text] + "?"
			if opHints[part.text] == "" {
				known := append(append([]string{}, opNames[:]...), groupNames...)
				fix = suggest(part.text, known, "the groups are data, meta, sync and all; docs/rules.md lists the operations")
			}
			return p.at(part.at(0), fix, "unknown operation %q", part.text)
		}
		if ops&^setOf(OpRelease, OpReleasedir) == 0 {
			p.release = &part
		}
		p.rule.IO.Ops |= ops
	}
	return nil
}

func (p *ruleParser) glob(v value) (string, *SyntaxError) {
	canonical, paths, err := checkGlob(v.text)
	if err != nil {
		at := p.at(v.at(err.at), err.fix, "")
		at.Message = err.message
		return "", at
	}
	if p.paths += paths; p.paths > MaxPaths {
		return "", p.at(v.at(0), "use several rules", "the {} of path and exclude stand for more than %d paths", MaxPaths)
	}
	return canonical, nil
}

func (p *ruleParser) path(w word) (err *SyntaxError) {
	p.rule.IO.Path, err = p.glob(w.value)
	return err
}

func (p *ruleParser) exclude(w word) *SyntaxError {
	parts := splitGlobs(w.value.text)
	if len(parts) > MaxExcludes {
		return p.at(w.value.at(parts[MaxExcludes][0]), "use several rules, or {a,b}", "exclude lists more than %d paths", MaxExcludes)
	}
	for _, part := range parts {
		canonical, err := p.glob(w.value.part(part[0], part[1]))
		if err != nil {
			return err
		}
		p.rule.IO.Exclude = append(p.rule.IO.Exclude, canonical)
	}
	return nil
}

var decimal = regexp.MustCompile(`^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$`)

func (p *ruleParser) probability(w word) *SyntaxError {
	const fix = "write a share such as 5% or 0.05"
	v, at := w.value.text, w.value.at(0)
	number, percent := strings.CutSuffix(v, "%")
	f, err := strconv.ParseFloat(number, 64)
	switch {
	case strings.HasPrefix(number, "-") && err == nil:
		return p.at(at, fix, "p=%s is below 0", v)
	case !decimal.MatchString(number):
		return p.at(at, fix, "p=%s is not a probability", v)
	}
	if percent {
		f /= 100
	}
	switch {
	case err != nil || f > 1 && percent:
		return p.at(at, fix, "p=%s is above 100%%", v)
	case f > 1 && f <= 100:
		return p.at(at, "did you mean "+v+"%?", "p=%s is above 1", v)
	case f > 1:
		return p.at(at, fix, "p=%s is above 1", v)
	case f == 0 && significant(number):
		return p.at(at, "use a larger one", "p=%s is too small to be told from 0", v)
	}
	p.rule.Trigger.P = f
	return nil
}

// significant reports whether a decimal has a digit other than 0 before its exponent.
func significant(number string) bool {
	digits, _, _ := strings.Cut(strings.ToLower(number), "e")
	return strings.ContainsAny(digits, "123456789")
}

// uint reads a whole number, with the least one that makes sense.
func (p *ruleParser) uint(w word, least uint64) (uint64, *SyntaxError) {
	v, at := w.value.text, w.value.at(0)
	n, err := strconv.ParseUint(v, 10, 64)
	switch {
	case err != nil && strings.Trim(v, "0123456789") == "":
		return 0, p.at(at, "the largest is "+strconv.FormatUint(math.MaxUint64, 10), "%s=%s is too large", w.name, v)
	case err != nil && strings.HasPrefix(v, "-"):
		return 0, p.at(at, "write a whole number from "+strconv.FormatUint(least, 10), "%s=%s is negative", w.name, v)
	case err != nil:
		return 0, p.at(at, "write digits only", "%s=%s is not a whole number", w.name, v)
	case n < least:
		return 0, p.at(at, "the least is "+strconv.FormatUint(least, 10)+"; leave the field out for no limit", "%s=%s makes no sense", w.name, v)
	}
	return n, nil
}

func (p *ruleParser) count(w word) *SyntaxError {
	least := uint64(1)
	if w.name == "after" {
		least = 0
	}
	n, err := p.uint(w, least)
	if err != nil {
		return err
	}
	t := &p.rule.Trigger
	switch w.name {
	case "after":
		t.After = n
	case "every":
		t.Every = n
	case "times":
		t.Times = n
	case "nth":
		t.After, t.Times = n-1, 1
	}
	return nil
}

func (p *ruleParser) seed(w word) *SyntaxError {
	n, err := p.uint(w, 0)
	p.rule.Trigger.Seed, p.rule.Trigger.Seeded = n, true
	return err
}

// duration reads a Go duration above 0.
func (p *ruleParser) duration(w word) (time.Duration, *SyntaxError) {
	v, at := w.value.text, w.value.at(0)
	d, err := time.ParseDuration(v)
	switch {
	case err != nil && strings.Trim(v, "0123456789.") == "":
		return 0, p.at(at, "did you mean "+v+"s? (units: ns, us, ms, s, m, h)", "%s=%s has no unit", w.name, v)
	case err != nil && strings.IndexAny(v, "(:,") > 0:
		return 0, p.at(at, "write a fixed time such as 100ms", "%s=%s: only a fixed time is in this version", w.name, v)
	case err != nil:
		return 0, p.at(at, "write for instance 100ms, 5s, 1m30s or 2h (up to 292 years)", "%s=%s is not a duration", w.name, v)
	case d < 0:
		return 0, p.at(at, "write a time above 0", "%s=%s is negative", w.name, v)
	case d == 0:
		return 0, p.at(at, "write a time above 0, or leave the field out", "%s=%s makes no sense", w.name, v)
	}
	return d, nil
}

func (p *ruleParser) latency(w word) (err *SyntaxError) {
	d, err := p.duration(w)
	p.rule.IO.Latency = &Latency{Base: d}
	return err
}

func (p *ruleParser) ttl(w word) *SyntaxError {
	d, err := p.duration(w)
	if err != nil {
		return err
	}
	if limit := p.defaults.maxTTL(); d > limit {
		return p.at(w.value.at(0), "the limit is "+limit.String(), "ttl=%s is longer than this node allows", w.value.text)
	}
	p.rule.Trigger.TTL = d
	return nil
}
