package policy

import (
	"math"
	"strconv"
	"strings"
)

// opHints name the operation behind a system call's name.
var opHints = map[string]string{
	"stat": "getattr", "fstat": "getattr", "lstat": "getattr", "statx": "getattr",
	"close": "flush (release cannot report an error)", "truncate": "setattr", "ftruncate": "setattr", "chmod": "setattr",
	"chown": "setattr", "utimens": "setattr", "utimensat": "setattr", "pread": "read", "readv": "read",
	"pwrite": "write", "writev": "write", "mmap": "mmap-read or mmap-write", "openat": "open", "getdents": "readdir",
	"getdents64": "readdir", "readdirplus": "readdir", "flock": "setlk", "fcntl": "setlk", "setlkw": "setlk",
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
		p.ops = append(p.ops, namedOps{part, ops})
	}
	return nil
}

// glob reads one glob; paths is what its {} stand for.
func (p *ruleParser) glob(v value) (canonical string, paths int, err *SyntaxError) {
	canonical, paths, bad := checkGlob(v.text)
	if bad != nil {
		err = p.at(v.at(bad.at), bad.fix, "")
		err.Message = bad.message
		return "", 0, err
	}
	return canonical, paths, nil
}

// pathGlob reads a glob of path or exclude, which are bounded together.
func (p *ruleParser) pathGlob(v value) (string, *SyntaxError) {
	canonical, paths, err := p.glob(v)
	if err != nil {
		return "", err
	}
	if p.paths += paths; p.paths > MaxPaths {
		return "", p.at(v.at(0), "use several rules", "the {} of path and exclude stand for more than %d paths", MaxPaths)
	}
	return canonical, nil
}

func (p *ruleParser) path(w word) (err *SyntaxError) {
	p.rule.IO.Path, err = p.pathGlob(w.value)
	return err
}

func (p *ruleParser) exclude(w word) *SyntaxError {
	parts := splitGlobs(w.value.text)
	if len(parts) > MaxExcludes {
		return p.at(w.value.at(parts[MaxExcludes][0]), "use several rules, or {a,b}", "exclude lists more than %d paths", MaxExcludes)
	}
	for _, part := range parts {
		canonical, err := p.pathGlob(w.value.part(part[0], part[1]))
		if err != nil {
			return err
		}
		p.rule.IO.Exclude = append(p.rule.IO.Exclude, canonical)
	}
	return nil
}

// listSize is how many items comm, exe, uid and pid may list.
const listSize = 16

// globs reads a list of globs over something else than paths of files.
func (p *ruleParser) globs(w word, one func(value) (string, *SyntaxError)) ([]string, *SyntaxError) {
	var list []string
	parts := splitGlobs(w.value.text)
	if len(parts) > listSize {
		return nil, p.at(w.value.at(parts[listSize][0]), "use several rules, or {a,b}", "%s lists more than %d globs", w.name, listSize)
	}
	for _, part := range parts {
		glob, err := one(w.value.part(part[0], part[1]))
		if err != nil {
			return nil, err
		}
		list = append(list, glob)
	}
	return list, nil
}

func (p *ruleParser) exe(w word) (err *SyntaxError) {
	p.caller().Exe, err = p.globs(w, func(v value) (string, *SyntaxError) {
		if v.text != "" && !strings.Contains(v.text, "/") {
			return "", p.at(v.at(0), "write exe=/**/"+v.text+" for a program in any folder, or comm="+v.text+" for the name of a thread", "the path of the program is not absolute")
		}
		glob, _, err := p.glob(v)
		return glob, err
	})
	return err
}

// maxComm is the length of a thread's name (include/linux/sched.h, TASK_COMM_LEN less its end).
const maxComm = 15

func (p *ruleParser) comm(w word) (err *SyntaxError) {
	one := p.commGlob
	if p.rule.Kernel != nil {
		one = p.kernelComm
	}
	p.caller().Comm, err = p.globs(w, one)
	return err
}

// commGlob reads a glob over the name of a thread: that of one segment of a path.
func (p *ruleParser) commGlob(v value) (string, *SyntaxError) {
	const fix = "write it as /proc/PID/comm has it, with *, ?, [abc] and {a,b} as in a path"
	switch slash := indexSlash(v.text); {
	case slash == 0:
		return "", p.at(v.at(0), "use exe for the path of a program", "comm=%s is a path", v.text)
	case slash > 0:
		return "", p.at(v.at(slash), "write ? or * in its place", "a slash in the name of a thread")
	case v.text == "":
		return "", p.at(v.at(0), fix, "a name is missing in comm")
	}
	canonical, _, bad := checkGlob("/" + v.text)
	switch {
	case bad != nil && (strings.Contains(bad.message, "segment") || strings.Contains(bad.message, "slash") || strings.Contains(bad.message, "**")):
		return "", p.at(v.at(max(bad.at-1, 0)), fix, "%q is not a glob for the name of a thread", v.text)
	case bad != nil:
		err := p.at(v.at(max(bad.at-1, 0)), bad.fix, "")
		err.Message = strings.Replace(bad.message, "the path", "the name", 1)
		return "", err
	case canonical == "/**":
		return "", p.at(v.at(0), "write *", "comm=** means no more than *")
	}
	if name, plain := unescape(canonical[1:]); plain && len(name) > maxComm {
		return "", p.at(v.at(0), "the kernel cuts it there: write comm="+EscapeGlob(strings.ToValidUTF8(name[:maxComm], ""))+"*", "the name of a thread has at most %d bytes", maxComm)
	}
	return canonical[1:], nil
}

// indexSlash finds the first slash outside of []; one inside is checkGlob's to judge.
func indexSlash(glob string) int {
	class := false
	for i := 0; i < len(glob); i++ {
		switch c := glob[i]; {
		case c == '\\' && i+1 < len(glob) && glob[i+1] != '/':
			i++
		case class:
			class = c != ']'
		case c == '[':
			class = true
		case c == '/':
			return i
		}
	}
	return -1
}

// ids reads uid or pid: numbers and ranges.
func (p *ruleParser) ids(w word) *SyntaxError {
	list, least, hint := &p.caller().UID, uint64(0), "id -u NAME gives the number; it is that of the host where the container has a user namespace"
	if w.name == "pid" {
		list, least, hint = &p.caller().PID, 1, "use comm or exe for the name of a program"
		if p.rule.Kernel != nil {
			hint = "use comm for the name of a program"
		}
	}
	for i, part := range w.value.split(",") {
		if i == listSize {
			return p.at(part.at(0), "use ranges such as 1000-1999, or several rules", "%s lists more than %d numbers", w.name, listSize)
		}
		if part.text != "" && strings.Trim(part.text, "0123456789-") != "" {
			return p.at(part.at(0), hint, "%s=%s is not a number", w.name, part.text)
		}
		r, err := p.span(part, func(v value) (uint64, *SyntaxError) { return p.number(v, "the "+w.name, least, maxID) }, maxID)
		if err != nil {
			return err
		}
		*list = append(*list, r)
	}
	return nil
}

// offset reads a range of a file: 0-4KiB is from 0 up to and without 4KiB.
func (p *ruleParser) offset(w word) *SyntaxError {
	r, err := p.span(w.value, p.sizeBound, math.MaxUint64)
	if err != nil {
		return err
	}
	if from, to, ok := strings.Cut(w.value.text, "-"); ok && to != "" {
		if r.From == r.To {
			return p.at(w.value.at(0), "the end is not part of it: write "+from+"- or a larger end", "the range %s is empty", w.value.text)
		}
		r.To--
	}
	p.rule.IO.Offset = &r
	return nil
}

func (p *ruleParser) requestSize(w word) *SyntaxError {
	r, err := p.span(w.value, p.sizeBound, math.MaxUint64)
	p.rule.IO.Size = &r
	return err
}

func (p *ruleParser) sizeBound(v value) (uint64, *SyntaxError) {
	n, err := p.size(v, 0)
	return uint64(n), err
}

// offsetText writes a range of a file, whose end is not part of it.
func offsetText(r Range) string {
	switch {
	case r.From == r.To:
		return byteText(r.From)
	case r.To == math.MaxUint64:
		return byteText(r.From) + "-"
	}
	return byteText(r.From) + "-" + byteText(r.To+1)
}

// sizesText writes a range of sizes, both ends included.
func sizesText(r Range) string {
	switch {
	case r.From == r.To:
		return byteText(r.From)
	case r.To == math.MaxUint64:
		return byteText(r.From) + "-"
	}
	return byteText(r.From) + "-" + byteText(r.To)
}

// byteText is sizeText for what may be more than a rule can say; see Check.
func byteText(n uint64) string {
	if n > math.MaxInt64 {
		return strconv.FormatUint(n, 10)
	}
	return sizeText(int64(n))
}

func idsText(ranges []Range) string {
	parts := make([]string, 0, len(ranges))
	for _, r := range ranges {
		s := strconv.FormatUint(r.From, 10)
		if r.To == maxID && r.From != maxID {
			s += "-"
		} else if r.To != r.From {
			s += "-" + strconv.FormatUint(r.To, 10)
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ",")
}
