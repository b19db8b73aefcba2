package chaosmesh

import (
	"errors"
	"fmt"
	"path"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// todaInjector is one injector of toda's configuration (InjectorConfig), or one
// action as Chaos Mesh's daemon sends it (IOChaosAction).
type todaInjector struct {
	Type    action      `json:"type"`
	Path    string      `json:"path"`
	Methods []string    `json:"methods"`
	Percent *int64      `json:"percent"`
	Latency *humanTime  `json:"latency"`
	Faults  []todaFault `json:"faults"`
	Mistake *mistake    `json:"mistake"`
	// Source is the experiment that Chaos Mesh made it of.
	Source string `json:"source"`

	todaAttr
}

type todaFault struct {
	Errno  *int64 `json:"errno"`
	Weight *int64 `json:"weight"`
}

// todaAttr are the attributes of attrOverride, which stand beside the others.
type todaAttr struct {
	Ino    *uint64   `json:"ino"`
	Size   *uint64   `json:"size"`
	Blocks *uint64   `json:"blocks"`
	Atime  *todaTime `json:"atime"`
	Mtime  *todaTime `json:"mtime"`
	Ctime  *todaTime `json:"ctime"`
	Kind   *string   `json:"kind"`
	Perm   *uint16   `json:"perm"`
	Nlink  *uint32   `json:"nlink"`
	UID    *uint32   `json:"uid"`
	GID    *uint32   `json:"gid"`
	Rdev   *uint32   `json:"rdev"`
}

// todaTime is Rust's SystemTime, or what Chaos Mesh sends in its place.
type todaTime struct {
	Sec   *int64 `json:"sec"`
	Nsec  int64  `json:"nsec"`
	Secs  *int64 `json:"secs_since_epoch"`
	Nanos int64  `json:"nanos_since_epoch"`
}

func (t *todaTime) timespec() *timespec {
	switch {
	case t == nil:
		return nil
	case t.Secs != nil:
		return &timespec{t.Secs, t.Nanos}
	}
	return &timespec{t.Sec, t.Nsec}
}

// attr is nil if there is none.
func (a *todaAttr) attr() *attr {
	if *a == (todaAttr{}) {
		return nil
	}
	return &attr{a.Ino, a.Size, a.Blocks, a.Atime.timespec(), a.Mtime.timespec(), a.Ctime.timespec(), a.Kind, a.Perm, a.Nlink, a.UID, a.GID, a.Rdev}
}

// request is the JSON-RPC call that brings injectors to a toda that runs.
type request struct {
	Version string           `json:"jsonrpc"`
	Method  string           `json:"method"`
	Params  [][]todaInjector `json:"params"`
	ID      any              `json:"id"`
}

// DecodeToda reads toda's injectors, a list or the JSON-RPC call update with
// one, for a layer over volume. file names the text in errors, which are
// strictyaml.Errors. The rules apply in the order of the list.
func DecodeToda(file string, data []byte, volume string, d policy.Defaults) ([]policy.Rule, error) {
	if !path.IsAbs(volume) {
		return nil, fmt.Errorf("the path %q of the layer is not absolute", volume)
	}
	docs, err := strictyaml.Read(file, data)
	switch {
	case err != nil:
		return nil, err
	case len(docs) != 1:
		return nil, strictyaml.Errors{{File: file, Message: fmt.Sprintf("the file has %d documents", len(docs)), Fix: "write one list of injectors, as toda reads it"}}
	}
	doc := docs[0]
	list, at, err := injectors(doc)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, strictyaml.Errors{doc.ErrorAt(at, 0, "there is no injector in the list", `add one, such as {"type": "latency", "percent": 100, "latency": "10ms"}`)}
	}
	var rules []policy.Rule
	var errs strictyaml.Errors
	for i := range list {
		r, wrong := list[i].rule(strictyaml.Item(at, i), volume, d)
		if wrong != nil {
			errs = append(errs, doc.ErrorAt(wrong.path, wrong.at, wrong.message, wrong.fix))
			continue
		}
		if len(list) > 1 {
			r.Name += "-" + strconv.Itoa(i+1)
		}
		rules = append(rules, r)
	}
	return rules, errs.OrNil()
}

// injectors gives the list, and where it stands.
func injectors(doc *strictyaml.Document) (list []todaInjector, at string, err error) {
	if !doc.Has("jsonrpc") && !doc.Has("method") && !doc.Has("params") {
		return list, "", doc.Decode(&list)
	}
	var r request
	if err := doc.Decode(&r); err != nil {
		return nil, "", err
	}
	switch {
	case r.Method != "update":
		return nil, "", strictyaml.Errors{doc.ErrorAt("method", 0, fmt.Sprintf("the method %q brings no injectors", r.Method), "write update, or the list of injectors alone")}
	case len(r.Params) != 1:
		return nil, "", strictyaml.Errors{doc.ErrorAt("params", 0, fmt.Sprintf("update has %d parameters", len(r.Params)), "write one, the list of injectors")}
	}
	return r.Params[0], "params[0]", nil
}

func (c *todaInjector) rule(at, volume string, d policy.Defaults) (policy.Rule, *problem) {
	field := func(name string) string { return strictyaml.Field(at, name) }
	a := c.attr()
	switch {
	case c.Type == "":
		return policy.Rule{}, missing(field("type"), "latency, fault, attrOverride or mistake")
	case c.Percent == nil:
		return policy.Rule{}, missing(field("percent"), "the share of the operations, 0 to 100")
	case c.Type == actionAttrOverride && c.Path == "":
		return policy.Rule{}, missing(field("path"), "a glob, such as /data/**/*")
	}
	for _, other := range []struct {
		name  string
		of    action
		given bool
	}{
		{"latency", actionLatency, c.Latency != nil}, {"faults", actionFault, c.hasFaults()},
		{"mistake", actionMistake, c.Mistake != nil}, {c.firstAttr(), actionAttrOverride, a != nil},
	} {
		if other.given && c.Type != other.of {
			return policy.Rule{}, &problem{path: field(other.name), message: other.name + " means nothing for type " + string(c.Type), fix: "leave it out, or write type: " + string(other.of)}
		}
	}
	glob, err := pathGlob(volume, c.Path)
	if err != nil {
		return policy.Rule{}, globProblem(err, field("path"))
	}
	in := &injector{
		action: c.Type, glob: glob, methods: c.Methods, percent: c.Percent, attr: a, mistake: c.Mistake,
		fields: fields{
			whole: at, action: field("type"), glob: field("path"), methods: field("methods"), percent: field("percent"),
			latency: field("latency"), attr: at, mistake: field("mistake"),
			errno: func(n int) string {
				if n >= len(c.Faults) {
					return field("faults")
				}
				return strictyaml.Field(strictyaml.Item(field("faults"), n), "errno")
			},
		},
	}
	if c.Latency != nil {
		in.latency = (*time.Duration)(c.Latency)
	}
	if c.Type == actionFault {
		for i, f := range c.Faults {
			item := strictyaml.Item(field("faults"), i)
			switch {
			case f.Errno == nil:
				return policy.Rule{}, missing(strictyaml.Field(item, "errno"), "the number of an error, such as 5 for EIO (errno(3))")
			case f.Weight == nil:
				return policy.Rule{}, missing(strictyaml.Field(item, "weight"), "its share among the errors, such as 1")
			}
			in.faults = append(in.faults, weighted{*f.Errno, *f.Weight})
		}
	}
	r, _, wrong := in.rule(d)
	return r, wrong
}

// hasFaults is false also for the error 0 that Chaos Mesh sends with every action.
func (c *todaInjector) hasFaults() bool {
	for _, f := range c.Faults {
		if f.Errno == nil || *f.Errno != 0 {
			return true
		}
	}
	return false
}

// firstAttr is the name of an attribute that is given.
func (c *todaInjector) firstAttr() string {
	v := reflect.ValueOf(c.todaAttr)
	for _, f := range strictyaml.Fields(v.Type()) {
		if !v.FieldByIndex(f.Index).IsNil() {
			return f.Name
		}
	}
	return ""
}

// humanTime is a time as Rust's humantime reads it: 10s, 1h 30m, 2days.
type humanTime time.Duration

var humanPart = regexp.MustCompile(`^\s*([0-9]+)\s*([a-zA-Z]+)`)

// humanUnits are those of humantime (parse_duration); a month is 30.44 days, a year 365.25.
var humanUnits = map[string]time.Duration{}

func init() {
	day := 24 * time.Hour
	for _, u := range []struct {
		names string
		unit  time.Duration
	}{
		{"nanos nsec ns", time.Nanosecond}, {"usec us micros", time.Microsecond}, {"millis msec ms", time.Millisecond},
		{"seconds second secs sec s", time.Second}, {"minutes minute mins min m", time.Minute}, {"hours hour hrs hr h", time.Hour},
		{"days day d", day}, {"weeks week wks wk w", 7 * day},
	} {
		for name := range strings.FieldsSeq(u.names) {
			humanUnits[name] = u.unit
		}
	}
}

// UnmarshalText reads a time.
func (h *humanTime) UnmarshalText(text []byte) error {
	const fix = "write for instance 10ms, 1s or 1m 30s"
	rest, sum := string(text), time.Duration(0)
	for strings.TrimSpace(rest) != "" {
		m := humanPart.FindStringSubmatch(rest)
		if m == nil {
			return &strictyaml.ValueError{Message: fmt.Sprintf("%q is not a time", text), Fix: fix, Offset: len(text) - len(rest)}
		}
		unit, known := humanUnits[m[2]]
		n, err := strconv.ParseInt(m[1], 10, 64)
		switch {
		case !known:
			return &strictyaml.ValueError{Message: fmt.Sprintf("unknown unit %q", m[2]), Fix: fix, Offset: len(text) - len(rest) + len(m[0]) - len(m[2])}
		case err != nil || n > int64(tooLong/unit) || sum > tooLong:
			return &strictyaml.ValueError{Message: fmt.Sprintf("the time %s is too long", text), Fix: fix}
		}
		sum += time.Duration(n) * unit
		rest = rest[len(m[0]):]
	}
	if sum == 0 {
		return errors.New("the time is 0; " + fix)
	}
	*h = humanTime(sum)
	return nil
}

// tooLong is far above any ttl.
const tooLong = 100 * 365 * 24 * time.Hour
