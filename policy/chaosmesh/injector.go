package chaosmesh

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// action is that of an IOChaos, and the type of an injector of toda.
type action string

const (
	actionLatency      action = "latency"
	actionFault        action = "fault"
	actionAttrOverride action = "attrOverride"
	actionMistake      action = "mistake"
)

// Values lists them.
func (action) Values() []string {
	return []string{string(actionLatency), string(actionFault), string(actionAttrOverride), string(actionMistake)}
}

// ruleNames are the names of their rules.
var ruleNames = map[action]string{actionLatency: "latency", actionFault: "fault", actionAttrOverride: "attr-override", actionMistake: "mistake"}

// injector is one injector of toda, which an IOChaos comes down to.
type injector struct {
	action action
	// glob is canonical, and confined to the volume.
	glob    string
	methods []string
	percent *int64
	latency *time.Duration
	faults  []weighted
	attr    *attr
	mistake *mistake
	fields  fields
}

// fields are the places of an injector's parts in its manifest.
type fields struct {
	whole, action, glob, methods, percent, latency, attr, mistake string
	// errno is the place of the nth errno.
	errno func(n int) string
}

// weighted is one of the errors of a fault.
type weighted struct {
	errno  int64
	weight int64
}

// attr is what attrOverride overrides. Perm is a decimal number.
type attr struct {
	Ino    *uint64   `json:"ino"`
	Size   *uint64   `json:"size"`
	Blocks *uint64   `json:"blocks"`
	Atime  *timespec `json:"atime"`
	Mtime  *timespec `json:"mtime"`
	Ctime  *timespec `json:"ctime"`
	Kind   *string   `json:"kind"`
	Perm   *uint16   `json:"perm"`
	Nlink  *uint32   `json:"nlink"`
	UID    *uint32   `json:"uid"`
	GID    *uint32   `json:"gid"`
	Rdev   *uint32   `json:"rdev"`
}

// timespec is a time since 1970.
type timespec struct {
	Sec  *int64 `json:"sec"`
	Nsec int64  `json:"nsec"`
}

// mistake is what mistake does to data.
type mistake struct {
	Filling        filling `json:"filling"`
	MaxOccurrences *int64  `json:"maxOccurrences"`
	MaxLength      *int64  `json:"maxLength"`
}

// filling is what the bytes become.
type filling string

// Values lists them.
func (filling) Values() []string { return []string{"zero", "random"} }

// rule writes the injector as a rule and parses that.
func (in *injector) rule(d policy.Defaults) (policy.Rule, *ruleText, *problem) {
	t := &ruleText{whole: in.fields.whole}
	t.write("io", in.fields.action, false)
	for _, write := range []func(*ruleText) *problem{in.outcome, in.ops, in.share} {
		if p := write(t); p != nil {
			return policy.Rule{}, t, p
		}
	}
	t.glob("path", in.glob, in.fields.glob)
	r, p := t.parse(ruleNames[in.action], d)
	return r, t, p
}

func (in *injector) outcome(t *ruleText) *problem {
	f := &in.fields
	switch in.action {
	case actionLatency:
		if in.latency == nil {
			return missing(f.latency, "how long operations wait, such as 100ms")
		}
		t.field("latency", in.latency.String(), f.latency)
	case actionFault:
		return in.errors(t)
	case actionAttrOverride:
		if in.attr == nil {
			return missing(f.attr, "what stat is to say, such as perm: 72")
		}
		return in.attr.write(t, f.attr)
	case actionMistake:
		if in.mistake == nil {
			return missing(f.mistake, "filling, maxOccurrences and maxLength")
		}
		return in.mistake.write(t, f.mistake)
	}
	return nil
}

// missing is the error about a field that is not there.
func missing(path, fix string) *problem {
	return &problem{path: path, message: last(path) + " is missing", fix: "add " + last(path) + ": " + fix}
}

// last is the name of the field at a path.
func last(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

func (in *injector) errors(t *ruleText) *problem {
	if len(in.faults) == 0 {
		return missing(in.fields.errno(0), "the number of an error, such as 5 for EIO (errno(3))")
	}
	single := len(in.faults) == 1
	t.b.WriteString(" error=")
	for i, e := range in.faults {
		if i > 0 {
			t.b.WriteByte(',')
		}
		path := in.fields.errno(i)
		// The numbers are those of the machine's architecture, for toda as for errno(3).
		name := ""
		if e.errno > 0 && e.errno < 4096 {
			name = policy.ErrnoName(syscall.Errno(e.errno))
		}
		if _, known := policy.ParseErrno(name); !known {
			return &problem{path: path, message: fmt.Sprintf("%d is not the number of an error", e.errno), fix: "use one of errno(3), such as 5 (EIO) or 28 (ENOSPC)"}
		}
		if e.weight < 1 || e.weight > 1<<32-1 {
			return &problem{path: path, message: fmt.Sprintf("the weight %d of %s makes no sense", e.weight, name), fix: "give each error a weight of at least 1, or leave it out"}
		}
		if !single {
			name += ":" + strconv.FormatInt(e.weight, 10)
		}
		t.write(name, path, false)
	}
	return nil
}

// methodOps are the operations behind toda's methods (src/hookfs). Its fsync is
// both of ours, its read and write also those of memory maps: FUSE does not tell them apart there.
var methodOps = map[string]string{
	"lookup": "lookup", "getattr": "getattr", "setattr": "setattr", "readlink": "readlink", "mknod": "mknod", "mkdir": "mkdir",
	"unlink": "unlink", "rmdir": "rmdir", "symlink": "symlink", "rename": "rename", "link": "link", "open": "open",
	"read": "read+mmap-read", "write": "write+mmap-write", "flush": "flush", "release": "release", "fsync": "fsync+fdatasync",
	"opendir": "opendir", "readdir": "readdir", "releasedir": "releasedir", "fsyncdir": "fsyncdir", "statfs": "statfs",
	"setxattr": "setxattr", "getxattr": "getxattr", "listxattr": "listxattr", "removexattr": "removexattr", "access": "access",
	"create": "create", "getlk": "getlk", "setlk": "setlk",
}

// methodsRefused are those that cannot be had.
var methodsRefused = map[string]string{
	"forget": "the kernel waits for no answer to it, and no program calls it",
	"bmap":   "the kernel asks it of file systems on block devices only",
}

func (in *injector) ops(t *ruleText) *problem {
	f := &in.fields
	if in.action == actionAttrOverride {
		if len(in.methods) > 0 {
			return &problem{path: f.methods, message: "methods means nothing for attrOverride, which is about what stat says", fix: "leave it out: Chaos Mesh does not look at it"}
		}
		return nil
	}
	if len(in.methods) == 0 {
		t.field("op", "all", f.action)
		return nil
	}
	t.b.WriteString(" op=")
	for i, m := range in.methods {
		path := strictyaml.Item(f.methods, i)
		name := strings.ToLower(m) // as toda does
		ops, known := methodOps[name]
		switch {
		case methodsRefused[name] != "":
			return &problem{path: path, message: fmt.Sprintf("%s cannot fail or wait: %s", name, methodsRefused[name]), fix: "leave it out"}
		case !known:
			return &problem{path: path, message: fmt.Sprintf("unknown method %q", m), fix: policy.Suggest(name, sortedKeys(methodOps), "docs/chaos-mesh.md lists the methods")}
		}
		if i > 0 {
			t.b.WriteByte('+')
		}
		t.write(ops, path, false)
	}
	return nil
}

func (in *injector) share(t *ruleText) *problem {
	if in.percent == nil {
		return nil // all of them
	}
	if *in.percent < 0 || *in.percent > 100 {
		return &problem{path: in.fields.percent, message: fmt.Sprintf("percent is %d", *in.percent), fix: "write a whole number from 0 to 100"}
	}
	if *in.percent != 100 {
		t.field("p", strconv.FormatInt(*in.percent, 10)+"%", in.fields.percent)
	}
	return nil
}

func (a *attr) write(t *ruleText, path string) *problem {
	sep := " attr="
	add := func(name, v string) {
		t.b.WriteString(sep)
		t.write(name+":"+v, strictyaml.Field(path, name), false)
		sep = ","
	}
	for _, n := range []struct {
		name string
		v    *uint64
	}{{"ino", a.Ino}, {"size", a.Size}, {"blocks", a.Blocks}} {
		if n.v != nil {
			add(n.name, strconv.FormatUint(*n.v, 10))
		}
	}
	for _, n := range []struct {
		name string
		v    *timespec
	}{{"atime", a.Atime}, {"mtime", a.Mtime}, {"ctime", a.Ctime}} {
		if n.v == nil {
			continue
		}
		at, p := n.v.time(strictyaml.Field(path, n.name))
		if p != nil {
			return p
		}
		add(n.name, at.Format(time.RFC3339Nano))
	}
	if a.Kind != nil {
		add("kind", *a.Kind)
	}
	if a.Perm != nil {
		add("perm", "0"+strconv.FormatUint(uint64(*a.Perm), 8))
	}
	for _, n := range []struct {
		name string
		v    *uint32
	}{{"nlink", a.Nlink}, {"uid", a.UID}, {"gid", a.GID}, {"rdev", a.Rdev}} {
		if n.v != nil {
			add(n.name, strconv.FormatUint(uint64(*n.v), 10))
		}
	}
	if sep == " attr=" {
		return &problem{path: path, message: "no attribute is given", fix: "add one, such as perm: 72"}
	}
	return nil
}

// time gives the time, in the years that a rule can write.
func (ts *timespec) time(path string) (time.Time, *problem) {
	if ts.Sec == nil {
		return time.Time{}, &problem{path: path, message: "sec is missing", fix: "add the seconds since 1970"}
	}
	if ts.Nsec < 0 || ts.Nsec >= int64(time.Second) {
		return time.Time{}, &problem{path: path, message: fmt.Sprintf("%d is not a number of nanoseconds within a second", ts.Nsec), fix: "write 0 to 999999999"}
	}
	at := time.Unix(*ts.Sec, ts.Nsec).UTC()
	if *ts.Sec < -1<<40 || *ts.Sec > 1<<40 || at.Year() < 0 || at.Year() > 9999 {
		return time.Time{}, &problem{path: path, message: fmt.Sprintf("%d seconds since 1970 are not in the years 0 to 9999", *ts.Sec)}
	}
	return at, nil
}

func (m *mistake) write(t *ruleText, path string) *problem {
	switch {
	case m.Filling == "":
		return missing(strictyaml.Field(path, "filling"), "zero or random")
	case m.MaxOccurrences == nil:
		return missing(strictyaml.Field(path, "maxOccurrences"), "in how many places, such as 1")
	case m.MaxLength == nil:
		return missing(strictyaml.Field(path, "maxLength"), "the most bytes of a place, such as 10")
	}
	t.b.WriteString(" corrupt=" + string(m.Filling) + "(")
	t.write(strconv.FormatInt(*m.MaxOccurrences, 10), strictyaml.Field(path, "maxOccurrences"), false)
	t.b.WriteByte(',')
	t.write(strconv.FormatInt(*m.MaxLength, 10), strictyaml.Field(path, "maxLength"), false)
	t.b.WriteByte(')')
	return nil
}
