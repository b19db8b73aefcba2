package policy

import (
	"regexp"
	"strings"
)

// hookKinds are the hook points.
var hookKinds = []string{"slab", "page", "bio", "function", "syscall", "lsm"}

// namedHooks are those that take a name, each with an example.
var namedHooks = map[string]string{"function": "open_ctree", "syscall": "mount", "lsm": "file_open"}

// hookHints are what the kernel, KernelChaos and bcc call a hook point.
var hookHints = map[string]string{
	"failslab": "hook=slab", "kmalloc": "hook=slab", "kmem_cache_alloc": "hook=slab", "should_failslab": "hook=slab", "0": "hook=slab", "memory": "hook=slab or hook=page",
	"alloc_page": "hook=page", "alloc_pages": "hook=page", "page_alloc": "hook=page", "fail_page_alloc": "hook=page", "should_fail_alloc_page": "hook=page", "1": "hook=page",
	"fail_make_request": "hook=bio", "make_request": "hook=bio", "should_fail_bio": "hook=bio", "submit_bio": "hook=bio", "block": "hook=bio", "disk": "hook=bio", "2": "hook=bio",
	"kprobe": "hook=function:NAME", "func": "hook=function:NAME", "funcname": "hook=function:NAME", "fail_function": "hook=function:NAME",
	"sys": "hook=syscall:NAME", "security": "hook=lsm:NAME",
}

// guarded are the functions of hook points that have guards of their own (no
// __GFP_NOFAIL allocation, the owner of a block request), which function:NAME has not.
var guarded = map[string]string{"should_failslab": "slab", "should_fail_alloc_page": "page", "should_fail_bio": "bio"}

// maxSymbol is the length of the name of a kernel function (KSYM_NAME_LEN of
// include/linux/kallsyms.h less its end; Linux 6.1).
const maxSymbol = 511

var (
	identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// syscallSymbol are the functions behind system calls (arch/*/include/asm/syscall_wrapper.h, and the names before 4.17).
	syscallSymbol = regexp.MustCompile(`^(?:__(?:x64|arm64|ia32|se|do|s390x)_sys_|sys_|SyS_)([a-z0-9_]+)$`)
	lsmSymbol     = regexp.MustCompile(`^(?:security_|bpf_lsm_)([a-z0-9_]+)$`)
	// nextName is a bare name after a value.
	nextName = regexp.MustCompile(`^[ \t\r\n]+([A-Za-z_][A-Za-z0-9_]*)(?:[ \t\r\n(]|$)`)
)

// hook reads KIND, KIND:NAME or "KIND NAME", with (PREDICATE) after it.
func (p *ruleParser) hook(w word) *SyntaxError {
	v := w.value.trim()
	end := strings.IndexByte(v.text, '(')
	where := v.part(len(v.text), len(v.text))
	if end < 0 {
		end = len(v.text)
	} else {
		inner, after, err := p.group(v, end)
		if err != nil {
			return err
		}
		if after != len(v.text) {
			return p.at(v.at(after), "leave it out; a hook has one predicate, parts of which are joined by &&", "%q after the predicate", v.text[after:])
		}
		where = inner
	}
	name := v.part(0, end).trim()
	kind, rest := name, value{}
	at := strings.IndexAny(name.text, ": \t\r\n")
	if at >= 0 {
		kind, rest = name.part(0, at), name.part(at+1, len(name.text)).trim()
	}
	if err := p.checkHook(kind, rest, at >= 0, w); err != nil {
		return err
	}
	f := p.rule.Kernel
	f.Hook, f.Where = Hook{kind.text, rest.text}, where.text
	p.where = where
	return nil
}

func (p *ruleParser) checkHook(kind, name value, named bool, w word) *SyntaxError {
	example, takesName := namedHooks[kind.text]
	known := takesName || kind.text == "slab" || kind.text == "page" || kind.text == "bio"
	switch {
	case !known:
		return p.at(kind.at(0), hookFix(kind.text), "unknown hook point %q", kind.text)
	case !takesName && named:
		return p.at(name.at0(kind.end()), "write hook="+kind.text+"; narrow it with within=FUNCTION or a predicate", "%s takes no name", kind.text)
	case !takesName:
		return nil
	case name.text == "":
		fix := "write for instance hook=" + kind.text + ":" + example
		if m := nextName.FindStringSubmatch(p.text[w.value.at(len(w.value.text)):]); m != nil && !w.value.quoted(p.text) {
			fix = "did you mean hook=" + kind.text + ":" + m[1] + "?"
		}
		return p.at(kind.end(), fix, "the name of the %s is missing", hookWord(kind.text))
	}
	fix := ""
	symbol := syscallSymbol.FindStringSubmatch(name.text)
	module := lsmSymbol.FindStringSubmatch(name.text)
	switch {
	case kind.text == "syscall" && symbol != nil:
		fix = "did you mean hook=syscall:" + symbol[1] + "?"
	case kind.text == "lsm" && module != nil:
		fix = "did you mean hook=lsm:" + module[1] + "?"
	case kind.text == "function" && guarded[name.text] != "":
		hook := guarded[name.text]
		return p.at(name.at(0), "write hook="+hook+", which spares what must not fail", "%s is the function of the hook point %s", name.text, hook)
	}
	if fix != "" {
		return p.at(name.at(0), fix, "%s is the kernel's function, not the name of the %s", name.text, hookWord(kind.text))
	}
	return p.identifier(name, "the "+hookWord(kind.text))
}

func hookWord(kind string) string {
	return map[string]string{"function": "function", "syscall": "system call", "lsm": "LSM hook"}[kind]
}

func hookFix(kind string) string {
	const all = "the hook points are slab, page, bio, function:NAME, syscall:NAME and lsm:NAME"
	lower := strings.ToLower(kind)
	if hint := hookHints[lower]; hint != "" {
		return "did you mean " + hint + "?"
	}
	if m := syscallSymbol.FindStringSubmatch(kind); m != nil {
		return "did you mean hook=syscall:" + m[1] + "?"
	}
	if m := lsmSymbol.FindStringSubmatch(kind); m != nil {
		return "did you mean hook=lsm:" + m[1] + "?"
	}
	near := suggest(kind, hookKinds, "")
	switch {
	case near != "":
		return near
	case identifier.MatchString(kind) && len(kind) <= 64:
		return "write hook=syscall:" + kind + ", hook=lsm:" + kind + " or hook=function:" + kind + "; " + all
	}
	return all
}

// identifier checks the name of a function, system call or LSM hook.
func (p *ruleParser) identifier(v value, what string) *SyntaxError {
	switch {
	case len(v.text) > maxSymbol:
		return p.at(v.at(maxSymbol), "use its real name", "%s has a name of more than %d bytes", what, maxSymbol)
	case identifier.MatchString(v.text):
		return nil
	}
	bad := 0
	for bad < len(v.text) && identifier.MatchString(v.text[:bad+1]) {
		bad++
	}
	fix := "write it as /proc/kallsyms has it: letters, digits and _"
	switch {
	case bad > 0 && v.text[bad] == '+':
		fix = "leave the offset out: write " + v.text[:bad]
	case bad > 0 && v.text[bad] == '.':
		fix = "a part of a function that the compiler made cannot be traced by its parameters: write " + v.text[:bad] + " if the kernel has it"
	case bad > 0 && strings.ContainsRune("*?[", rune(v.text[bad])):
		fix = "globs are not for functions: write one name"
	}
	return p.at(v.at(bad), fix, "%q is not the name of %s", v.text, strings.Replace(what, "the ", "a ", 1))
}

// end is the offset after a value in the source; at0 that of its start, or
// another one for a value that is not there.
func (v value) end() int { return v.at(len(v.text)) }

func (v value) at0(otherwise int) int {
	if len(v.from) == 0 {
		return otherwise
	}
	return v.at(0)
}

// quoted reports whether the value stands in quotes in the source.
func (v value) quoted(source string) bool {
	return v.at(0) > 0 && source[v.at(0)-1] == '"'
}
