package chaosmesh

import (
	"errors"
	"path"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// ioChaos is the spec of an IOChaos.
type ioChaos struct {
	target
	lifetime
	Action     action   `json:"action"`
	Delay      duration `json:"delay"`
	Errno      *int64   `json:"errno"`
	Attr       *attr    `json:"attr"`
	Mistake    *mistake `json:"mistake"`
	Path       string   `json:"path"`
	Methods    []string `json:"methods"`
	Percent    *int64   `json:"percent"`
	VolumePath string   `json:"volumePath"`
}

func (c *ioChaos) apply(p *faultpolicy.FaultPolicy, namespace, at string, d policy.Defaults) (*ruleText, *problem) {
	if wrong := c.target.apply(&p.Spec, namespace, at); wrong != nil {
		return nil, wrong
	}
	if wrong := c.lifetime.apply(&p.Spec, at); wrong != nil {
		return nil, wrong
	}
	in, wrong := c.injector(at)
	if wrong != nil {
		return nil, wrong
	}
	r, text, wrong := in.rule(withTTL(&p.Spec, d))
	if wrong == nil {
		add(p, r)
	}
	return text, wrong
}

// injector is what the spec asks of toda.
func (c *ioChaos) injector(at string) (*injector, *problem) {
	field := func(name string) string { return strictyaml.Field(at, name) }
	switch {
	case c.Action == "":
		return nil, missing(field("action"), "latency, fault, attrOverride or mistake")
	case c.VolumePath == "":
		return nil, missing(field("volumePath"), "the directory in the container, such as /var/run/etcd")
	case !path.IsAbs(c.VolumePath):
		return nil, &problem{path: field("volumePath"), message: "the path is not absolute", fix: "write it as the container sees it, such as /var/run/etcd"}
	}
	// Of another action nothing would come: a person who writes it means something.
	for _, other := range []struct {
		name  string
		of    action
		given bool
	}{
		{"delay", actionLatency, c.Delay != 0}, {"errno", actionFault, c.Errno != nil && *c.Errno != 0},
		{"attr", actionAttrOverride, c.Attr != nil}, {"mistake", actionMistake, c.Mistake != nil},
	} {
		if other.given && c.Action != other.of {
			return nil, &problem{path: field(other.name), message: other.name + " means nothing for action " + string(c.Action), fix: "leave it out, or write action: " + string(other.of)}
		}
	}
	glob, err := pathGlob(c.VolumePath, c.Path)
	if err != nil {
		wrong := globProblem(err, field("path"))
		if c.Path == "" {
			wrong.path = field("volumePath")
		}
		return nil, wrong
	}
	in := &injector{
		action: c.Action, glob: glob, methods: c.Methods, percent: c.Percent, attr: c.Attr, mistake: c.Mistake,
		fields: fields{
			whole: at, action: field("action"), glob: field("path"), methods: field("methods"), percent: field("percent"),
			latency: field("delay"), attr: field("attr"), mistake: field("mistake"), errno: func(int) string { return field("errno") },
		},
	}
	if c.Delay != 0 {
		delay := time.Duration(c.Delay)
		in.latency = &delay
	}
	if c.Errno != nil {
		in.faults = []weighted{{*c.Errno, 1}}
	}
	return in, nil
}

// globProblem makes a problem of a path's error.
func globProblem(err error, path string) *problem {
	var bad *globError
	if errors.As(err, &bad) {
		return &problem{path: path, message: bad.message, fix: bad.fix}
	}
	return &problem{path: path, message: err.Error()}
}
