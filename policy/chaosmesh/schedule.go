package chaosmesh

import (
	"fmt"
	"strings"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	cron "github.com/faultgraft/faultgraft/policy/schedule"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// schedule is the spec of a Schedule: an experiment that begins again and again.
type schedule struct {
	Schedule string `json:"schedule"`
	// StartingDeadlineSeconds bounds how late a run may begin. Here a run that
	// was missed is never made up for, which keeps any such bound.
	StartingDeadlineSeconds *int64            `json:"startingDeadlineSeconds"`
	ConcurrencyPolicy       concurrencyPolicy `json:"concurrencyPolicy"`
	// HistoryLimit is how many objects of runs that are over stay in the API server.
	HistoryLimit *int64 `json:"historyLimit"`
	Type         string `json:"type"`

	IOChaos     *ioChaos     `json:"ioChaos"`
	KernelChaos *kernelChaos `json:"kernelChaos"`
}

// concurrencyPolicy says what happens while the run before goes on.
type concurrencyPolicy string

// Values lists them; empty is Forbid.
func (concurrencyPolicy) Values() []string { return []string{"Forbid", "Allow", ""} }

// FieldHints say what to do about the experiments of other kinds.
func (*schedule) FieldHints() map[string]string {
	hints := map[string]string{"workflow": otherKinds["Workflow"]}
	for _, name := range []string{"awschaos", "azurechaos", "blockchaos", "dnschaos", "gcpchaos", "httpchaos", "jvmchaos", "networkchaos", "physicalmachinechaos", "podchaos", "stresschaos", "timechaos"} {
		hints[name] = notFiles
	}
	return hints
}

func readSchedule(doc *strictyaml.Document, d policy.Defaults) (manifest, *problem, error) {
	var o struct {
		object
		Spec *schedule `json:"spec"`
	}
	if err := doc.Decode(&o); err != nil {
		return manifest{}, nil, err
	}
	if o.Spec == nil {
		return manifest{}, missing("spec", "schedule, type and ioChaos or kernelChaos"), nil
	}
	e, at, wrong := o.Spec.experiment("spec")
	if wrong != nil {
		return manifest{}, wrong, nil
	}
	m, wrong := o.fill(e, at, d)
	if wrong == nil {
		wrong = o.Spec.apply(&m.policy.Spec, "spec", at)
	}
	return m, wrong, nil
}

// experiment gives the one that is scheduled, and where it stands.
func (s *schedule) experiment(path string) (e experiment, at string, p *problem) {
	given := map[string]bool{KindIOChaos: s.IOChaos != nil, KindKernelChaos: s.KernelChaos != nil}
	fields := map[string]string{KindIOChaos: strictyaml.Field(path, "ioChaos"), KindKernelChaos: strictyaml.Field(path, "kernelChaos")}
	typ := strictyaml.Field(path, "type")
	at = fields[s.Type]
	switch {
	case s.Type == "":
		return nil, "", missing(typ, "IOChaos or KernelChaos")
	case at == "":
		fix := otherKinds[s.Type]
		if fix == "" {
			fix = policy.Suggest(s.Type, []string{KindIOChaos, KindKernelChaos}, "write IOChaos or KernelChaos")
		}
		return nil, "", &problem{path: typ, message: fmt.Sprintf("the type %q cannot be scheduled", s.Type), fix: fix}
	case !given[s.Type]:
		return nil, "", missing(fields[s.Type], "the spec of the "+s.Type)
	case given[KindIOChaos] && given[KindKernelChaos]:
		return nil, "", &problem{path: fields[map[string]string{KindIOChaos: KindKernelChaos, KindKernelChaos: KindIOChaos}[s.Type]], message: "the type is " + s.Type, fix: "leave it out, or write a Schedule of its own"}
	case s.Type == KindIOChaos:
		return s.IOChaos, at, nil
	}
	return s.KernelChaos, at, nil
}

// apply writes the schedule into a policy; inner is where the experiment stands.
func (s *schedule) apply(spec *faultpolicy.Spec, path, inner string) *problem {
	at := strictyaml.Field(path, "schedule")
	switch {
	case s.Schedule == "":
		return missing(at, `when, such as "*/10 * * * *"`)
	case s.ConcurrencyPolicy == "Allow":
		return &problem{path: strictyaml.Field(path, "concurrencyPolicy"), message: "the same fault cannot be on a container twice", fix: "write Forbid"}
	case s.StartingDeadlineSeconds != nil && *s.StartingDeadlineSeconds < 0:
		return &problem{path: strictyaml.Field(path, "startingDeadlineSeconds"), message: "the number of seconds is negative", fix: "leave it out"}
	case s.HistoryLimit != nil && *s.HistoryLimit < 1:
		return &problem{path: strictyaml.Field(path, "historyLimit"), message: "the limit is below 1", fix: "leave it out"}
	case spec.Timing.TTL == 0:
		return missing(strictyaml.Field(inner, "duration"), "how long each run is, such as 5m: without it the first one would have no end")
	}
	expr := s.Schedule
	// Chaos Mesh takes a field of seconds before the five of cron.
	if words := strings.Fields(expr); len(words) == 6 && !strings.HasPrefix(expr, "@") {
		if words[0] != "0" {
			return &problem{path: at, message: fmt.Sprintf("the schedule %q names seconds", expr), fix: "write 0 for the seconds, or five fields: runs begin at whole minutes"}
		}
		expr = strings.Join(words[1:], " ")
	}
	if _, err := cron.Parse(expr, ""); err != nil {
		return &problem{path: at, message: err.Error()}
	}
	spec.Timing.Schedule, spec.Timing.Concurrency = expr, faultpolicy.Forbid
	return nil
}
