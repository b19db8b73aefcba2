package policy

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// kernelOnly are the fields that io rules do not have.
var kernelOnly = []string{"hook", "within", "backend", "stack"}

var kernelRules = language{
	kind:   "kernel",
	fields: slices.Concat([]string{"hook", "error", "within", "comm", "uid", "pid", "backend", "stack"}, kernelTriggers),
	parsers: map[string]func(*ruleParser, word) *SyntaxError{
		"hook": (*ruleParser).hook, "error": (*ruleParser).kernelError, "within": (*ruleParser).within,
		"comm": (*ruleParser).comm, "uid": (*ruleParser).ids, "pid": (*ruleParser).ids,
		"backend": (*ruleParser).backend, "stack": (*ruleParser).stack,
		"p": (*ruleParser).probability, "after": (*ruleParser).count, "every": (*ruleParser).count, "times": (*ruleParser).count, "nth": (*ruleParser).count,
		"delay": (*ruleParser).window, "active": (*ruleParser).window, "idle": (*ruleParser).window, "ttl": (*ruleParser).ttl, "seed": (*ruleParser).seed,
	},
	bare:  []string{"stack"},
	hints: kernelHints,
	begin: func(r *Rule) { r.Kernel = &KernelFault{} },
	checks: []func(*ruleParser) *SyntaxError{
		(*ruleParser).checkKernelError, (*ruleParser).checkBackend, (*ruleParser).checkPage, (*ruleParser).checkTrigger, (*ruleParser).checkTimes,
	},
	refuse:   (*ruleParser).refuseKernel,
	notField: kernelNotField,
}

// kernelTriggers are all but afterBytes.
var kernelTriggers = []string{"p", "after", "every", "times", "nth", "delay", "active", "idle", "ttl", "seed"}

const (
	onlyFails   = "a kernel rule only answers with an error: use an io rule"
	onlyErrors  = "a kernel rule only answers with an error: use an io rule to make operations wait"
	byPredicate = "narrow the rule with a predicate, such as hook=syscall:write(count >= 4096), or use an io rule"
	byBTF       = "leave it out: the kernel's own type information has it"
)

// kernelRefused are names that have a way out of their own: the fields of io rules first.
var kernelRefused = map[string]string{
	"throttle": onlyErrors, "burst": onlyErrors, "latency": onlyErrors, "cap": onlyErrors, "hang": onlyErrors,
	"short": onlyFails, "corrupt": onlyFails, "torn": onlyFails, "lost": onlyFails, "nospace": onlyFails, "quota": onlyFails, "attr": onlyFails,
	"op": "hook says what fails, such as hook=syscall:write", "path": byPredicate, "exclude": byPredicate, "offset": byPredicate, "size": byPredicate,
	"exe":        "the kernel side cannot tell the program's path: use comm, or the container itself",
	"afterBytes": "use after: a kernel rule counts calls, not bytes",
}

// kernelHints are what KernelChaos, the kernel's own fault injection, strace and bcc call a field.
var kernelHints = map[string]string{
	"failtype": "hook", "fail_type": "hook", "type": "hook", "mode": "hook", "point": "hook", "function": "hook=function:NAME", "func": "hook=function:NAME", "syscall": "hook=syscall:NAME",
	"lsm": "hook=lsm:NAME", "slab": "hook=slab", "page": "hook=page", "bio": "hook=bio",
	"callchain": "within", "chain": "within", "frames": "within", "frame": "within", "funcname": "within", "callers": "within", "caller": "within", "inside": "within",
	"predicate": "within=FUNCTION(PREDICATE) or hook=HOOK(PREDICATE)", "where": "hook=HOOK(PREDICATE)", "condition": "hook=HOOK(PREDICATE)", "cond": "hook=HOOK(PREDICATE)", "if": "hook=HOOK(PREDICATE)",
	"errno": "error", "retval": "error", "ret": "error", "return": "error", "err": "error",
	"probability": "p", "percent": "p", "prob": "p", "interval": "every", "count": "times", "limit": "times", "when": "nth, after or every", "skip": "after", "start": "delay",
	"duration": "ttl", "timeout": "ttl", "user": "uid", "process": "comm", "command": "comm", "name": "comm", "stacktrace": "stack", "method": "backend", "via": "backend",
}

// kernelNames are names with another way out than a field of another name.
var kernelNames = map[string]string{
	"parameters": byBTF, "params": byBTF, "headers": byBTF, "include": byBTF,
	"cgroup": "leave it out: a kernel fault is for its container, always", "container": "leave it out: a kernel fault is for its container, always",
	"delay_enter": onlyErrors, "delay_exit": onlyErrors, "signal": "leave it out: a kernel rule only answers with an error",
}

// straceInject is what strace's -e inject= takes.
var straceInject = regexp.MustCompile(`^([a-z0-9_]+)((?::[a-z_]+=[^:]*)*)$`)

func (p *ruleParser) refuseKernel(w word) *SyntaxError {
	if fix := kernelRefused[w.name]; fix != "" {
		return p.at(w.at, fix, "%q is a field of io rules", w.name)
	}
	lower := strings.ToLower(w.name)
	if fix := kernelNames[lower]; fix != "" {
		return p.at(w.at, fix, "unknown field %q", w.name)
	}
	if lower == "inject" || lower == "fault" {
		fix := "did you mean hook and error?"
		if m := straceInject.FindStringSubmatch(w.value.text); m != nil {
			fix = "did you mean " + fromStrace(m[1], m[2]) + "?"
		}
		return p.at(w.at, fix, "%q is strace's", w.name)
	}
	return nil
}

// fromStrace writes a call and options of strace as fields.
func fromStrace(call, options string) string {
	fields := "hook=syscall:" + call
	for option := range strings.SplitSeq(options, ":") {
		name, v, _ := strings.Cut(option, "=")
		switch name {
		case "error":
			fields += " error=" + v
		case "when":
			fields += " " + whenFields(v)
		}
	}
	if !strings.Contains(fields, " error=") {
		fields += " error=ENOSYS" // strace(1): what a fault is without one
	}
	return fields
}

// whenFields writes strace's FIRST[..LAST][+[STEP]] as fields.
func whenFields(when string) string {
	span, step, stepped := strings.Cut(when, "+")
	from, to, ranged := strings.Cut(span, "..")
	first, err := strconv.ParseUint(from, 10, 32)
	if err != nil || first == 0 {
		return "nth=" + when
	}
	if !stepped && !ranged {
		return "nth=" + from
	}
	fields := "after=" + strconv.FormatUint(first-1, 10)
	every, err := strconv.ParseUint(step, 10, 32)
	if err != nil || every == 0 {
		every = 1
	}
	if every > 1 {
		fields += " every=" + strconv.FormatUint(every, 10)
	}
	if last, err := strconv.ParseUint(to, 10, 32); err == nil && last >= first {
		fields += " times=" + strconv.FormatUint((last-first)/every+1, 10)
	}
	return fields
}

func kernelNotField(w word) string {
	if hint := hookHints[w.name]; hint != "" {
		return "did you mean " + hint + "?"
	}
	kind, _, named := strings.Cut(w.name, ":")
	_, takesName := namedHooks[kind]
	switch {
	case slices.Contains(hookKinds, kind) && named == takesName:
		return "did you mean hook=" + w.name + "?"
	case takesName:
		return "write hook=" + kind + ":" + namedHooks[kind]
	case strings.HasPrefix(w.name, "("):
		return "leave out the blank before ("
	case strings.Contains(w.name, "("):
		return "did you mean within=" + w.name + "?"
	case strings.HasPrefix(w.name, "&&") || strings.HasPrefix(w.name, "||"):
		return "put the whole predicate in parentheses"
	}
	return ""
}

// kernelErrors are errors of the kernel's own (include/linux/errno.h), with what programs know.
var kernelErrors = map[string]string{
	"ERESTARTSYS": "EINTR", "ERESTARTNOINTR": "EINTR", "ERESTARTNOHAND": "EINTR", "ERESTART_RESTARTBLOCK": "EINTR", "ERESTART": "EINTR",
	"ENOTSUPP": "EOPNOTSUPP", "ENOIOCTLCMD": "ENOTTY", "EOPENSTALE": "ESTALE", "EBADHANDLE": "EBADF", "ETOOSMALL": "EINVAL", "ESERVERFAULT": "EIO",
	"EBADTYPE": "EINVAL", "EJUKEBOX": "EAGAIN", "EIOCBQUEUED": "EIO", "EPROBE_DEFER": "EAGAIN", "ENOPARAM": "EINVAL", "ERECALLCONFLICT": "EAGAIN", "ENOGRACE": "EAGAIN",
}

var wholeNumber = regexp.MustCompile(`^[-+]?[0-9]+$`)

// kernelError reads the one error of a kernel rule.
func (p *ruleParser) kernelError(w word) *SyntaxError {
	v := w.value
	if i := strings.IndexAny(v.text, ",:+"); i > 0 {
		return p.at(v.at(i), "write one; use a rule for each, with p", "a kernel rule has one error")
	}
	if fix := kernelErrors[v.text]; fix != "" {
		return p.at(v.at(0), "did you mean "+fix+"?", "%s is an error of the kernel's own, which must not reach a program", v.text)
	}
	e, ok := ParseErrno(v.text)
	switch {
	case !ok && wholeNumber.MatchString(v.text):
		return p.at(v.at(0), numberFix(v.text), "error=%s is a number", v.text)
	case !ok:
		return p.at(v.at(0), suggest(v.text, errnoNames, "use a name of errno(3), such as ENOMEM or EIO"), "unknown errno %q", v.text)
	}
	p.rule.Kernel.Error = Errno(e)
	return nil
}

// numberFix gives the name of an errno that was written as a number.
func numberFix(text string) string {
	digits := strings.TrimLeft(text, "-+0")
	for _, name := range errnoNames {
		if e := errnoByName[name]; len(digits) <= 4 && ErrnoName(e) == name && digits == decimalText(float64(e)) && kernelErrors[name] == "" {
			return "did you mean " + name + "?"
		}
	}
	return "use a name of errno(3), such as ENOMEM or EIO; errors are 1 to 4094"
}

// hookErrors are the errors of the hook points that know only one.
var hookErrors = map[string]syscall.Errno{"slab": syscall.ENOMEM, "page": syscall.ENOMEM, "bio": syscall.EIO}

// checkKernelError checks that there is a hook, and the error against it.
func (p *ruleParser) checkKernelError() *SyntaxError {
	f := p.rule.Kernel
	if f.Hook.Kind == "" {
		return p.at(p.end(), "add hook=slab, page, bio, function:NAME, syscall:NAME or lsm:NAME", "hook is missing")
	}
	only, has := hookErrors[f.Hook.Kind]
	switch {
	case f.Error == 0 && has:
		f.Error = Errno(only)
	case f.Error == 0:
		return p.at(p.end(), "add error=ENOMEM, or another errno", "error is missing")
	case has && syscall.Errno(f.Error) != only:
		return p.at(p.seen["error"].value.at(0), "write "+ErrnoName(only)+", or leave error out", "error=%s: what %s fails with is %s, whatever the hook says", f.Error, f.Hook, ErrnoName(only))
	}
	return nil
}

// backends are the ways in which each hook point can fail; see package kernel.
var (
	backendNames = []string{"fmod_ret", "override", "lsm"}
	backends     = map[string][]string{
		"slab": backendNames[:2], "page": backendNames[:2], "bio": backendNames[:2], "function": backendNames[:2],
		"syscall": backendNames, "lsm": {"lsm", "fmod_ret"},
	}
	backendHints = map[string]string{"kprobe": "override", "bpf_override_return": "override", "fentry": "fmod_ret", "modify_return": "fmod_ret", "fexit": "fmod_ret", "bpf_lsm": "lsm"}
)

func (p *ruleParser) backend(w word) *SyntaxError {
	v := w.value
	if !slices.Contains(backendNames, v.text) {
		fix := suggest(v.text, backendNames, "the backends are fmod_ret, override and lsm; leave it out for the best that works")
		if hint := backendHints[strings.ToLower(v.text)]; hint != "" {
			fix = "did you mean " + hint + "?"
		}
		return p.at(v.at(0), fix, "unknown backend %q", v.text)
	}
	p.rule.Kernel.Backend = v.text
	return nil
}

func (p *ruleParser) stack(word) *SyntaxError {
	p.rule.Kernel.Stack = true
	return nil
}

func (p *ruleParser) checkBackend() *SyntaxError {
	f := p.rule.Kernel
	if can := backends[f.Hook.Kind]; f.Backend != "" && !slices.Contains(can, f.Backend) {
		return p.at(p.seen["backend"].value.at(0), "it can be "+strings.Join(can, " or "), "the backend %s cannot fail hook=%s", f.Backend, f.Hook)
	}
	return nil
}

// checkPage wants a bound on what fails page allocations: one that fails each
// can keep a thread in the page-fault handler, which tries again for ever.
func (p *ruleParser) checkPage() *SyntaxError {
	f := p.rule.Kernel
	if f.Hook.Kind == "page" && len(f.Within) == 0 && f.Where == "" && p.rule.Trigger.Times == 0 {
		return p.at(p.end(), "add within=FUNCTION, a predicate such as hook=page(order > 0), or times", "a rule that fails each page allocation keeps a thread in its page faults for ever")
	}
	return nil
}

// kernelComm reads a thread's name, or the beginning of one with a * after it.
func (p *ruleParser) kernelComm(v value) (string, *SyntaxError) {
	glob, err := p.commGlob(v)
	if err != nil {
		return "", err
	}
	if i := strings.IndexAny(strings.TrimSuffix(v.text, "*"), `*?[]{}\`); i >= 0 {
		return "", p.at(v.at(i), "the kernel side knows names, and beginnings with a * after them: comm=postgres,pg_*", "comm=%s cannot be decided inside the kernel", v.text)
	}
	return glob, nil
}
