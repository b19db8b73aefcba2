package chaosmesh

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
)

// APIVersion is that of the manifests.
const APIVersion = "chaos-mesh.org/v1alpha1"

// The kinds that are read.
const (
	KindIOChaos     = "IOChaos"
	KindKernelChaos = "KernelChaos"
	KindSchedule    = "Schedule"
)

// Kinds lists them.
var Kinds = []string{KindIOChaos, KindKernelChaos, KindSchedule}

// otherKinds are those of Chaos Mesh that are not, with the reason.
var otherKinds = map[string]string{
	"PodIOChaos": "it is what Chaos Mesh makes of an IOChaos by itself: apply the IOChaos",
	"Workflow":   "apply its IOChaos and KernelChaos templates as manifests of their own",
	"PodChaos":   notFiles, "NetworkChaos": notFiles, "PodNetworkChaos": notFiles, "DNSChaos": notFiles, "HTTPChaos": notFiles, "PodHttpChaos": notFiles,
	"StressChaos": notFiles, "TimeChaos": notFiles, "BlockChaos": notFiles, "JVMChaos": notFiles, "AWSChaos": notFiles, "AzureChaos": notFiles, "GCPChaos": notFiles,
	"PhysicalMachineChaos": notFiles, "PhysicalMachine": notFiles, "RemoteCluster": notFiles, "StatusCheck": notFiles, "WorkflowNode": notFiles,
}

const notFiles = "faultgraft makes faults of files and of the kernel: IOChaos, KernelChaos and Schedules of them"

// metadata is that of Kubernetes. What the API server writes into it is known
// and not looked at, so that what kubectl get -o yaml prints can be applied.
type metadata struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`

	UID               any `json:"uid"`
	ResourceVersion   any `json:"resourceVersion"`
	Generation        any `json:"generation"`
	CreationTimestamp any `json:"creationTimestamp"`
	SelfLink          any `json:"selfLink"`
	ManagedFields     any `json:"managedFields"`
	OwnerReferences   any `json:"ownerReferences"`
	Finalizers        any `json:"finalizers"`
	DeletionTimestamp any `json:"deletionTimestamp"`
}

// object is what all manifests have. Status is what Chaos Mesh writes.
type object struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Metadata   *metadata `json:"metadata"`
	Status     any       `json:"status"`
}

// pauseAnnotation pauses an experiment while it is "true".
const pauseAnnotation = "experiment.chaos-mesh.org/pause"

// lifetime is what specs of experiments have at their end.
type lifetime struct {
	Duration      duration `json:"duration"`
	RemoteCluster string   `json:"remoteCluster"`
}

func (l *lifetime) apply(spec *faultpolicy.Spec, path string) *problem {
	if l.RemoteCluster != "" {
		return &problem{path: strictyaml.Field(path, "remoteCluster"), message: "another cluster cannot be reached from here", fix: "leave it out, and apply the manifest on the nodes of that cluster"}
	}
	spec.Timing.TTL = faultpolicy.Duration(l.Duration)
	return nil
}

// duration is a time of Go; 0 when it is empty, which Chaos Mesh takes for not given.
type duration time.Duration

// UnmarshalText reads a time above 0.
func (d *duration) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = 0
		return nil
	}
	v, err := policy.ParseDuration(string(text))
	*d = duration(v)
	return err
}

// manifest is one that was read.
type manifest struct {
	policy faultpolicy.FaultPolicy
	text   *ruleText
	at     string // where the experiment's spec stands
}

// Decode reads one manifest. The policy's name is KIND.NAMESPACE.NAME in lower
// case; its single fault is a rule. It has been checked and has its defaults.
// The error is strictyaml.Errors.
func Decode(doc *strictyaml.Document, d policy.Defaults) (faultpolicy.FaultPolicy, error) {
	m, wrong, err := read(doc, d)
	if err == nil && wrong != nil {
		err = strictyaml.Errors{doc.ErrorAt(wrong.path, wrong.at, wrong.message, wrong.fix)}
	}
	if err == nil {
		m.policy.SetDefaults()
		err = m.check(doc)
	}
	if err != nil {
		return faultpolicy.FaultPolicy{}, err
	}
	return m.policy, nil
}

// fieldNames are what fields of a policy are called in a manifest.
var fieldNames = strings.NewReplacer(
	"spec.selector.podSelector.matchLabels", "spec.selector.labelSelectors", "spec.selector.podSelector.matchExpressions", "spec.selector.expressionSelectors",
	"spec.selector.podSelector.matchAnnotations", "spec.selector.annotationSelectors", "spec.selector.podNamespaces", "spec.selector.namespaces",
	"spec.selector.podNames", "spec.selector.fieldSelectors", "spec.selector.containerNames", "spec.containerNames", "spec.timing.ttl", "spec.duration", "spec.timing.schedule", "spec.schedule",
)

// check gives what the policy's own rules say against it, such as a name that
// is too long, the nearest place in the manifest.
func (m *manifest) check(doc *strictyaml.Document) error {
	var found, errs strictyaml.Errors
	if !errors.As(m.policy.Check(), &found) {
		return nil
	}
	for _, e := range found {
		path := fieldNames.Replace(e.Path)
		if rest, in := strings.CutPrefix(path, "spec."); in && m.at != "spec" && path != "spec.schedule" {
			path = m.at + "." + rest
		}
		errs = append(errs, doc.ErrorAt(path, 0, e.Message, e.Fix))
	}
	return errs
}

// RuleError gives the error of the rule of a manifest, such as one that the
// running kernel's types make, its place there.
func RuleError(doc *strictyaml.Document, about *policy.SyntaxError) *strictyaml.Error {
	wrong := &problem{message: about.Message, fix: about.Fix}
	if m, _, err := read(doc, policy.Defaults{}); err == nil && m.text != nil {
		wrong = m.text.problem(about)
	}
	return doc.ErrorAt(wrong.path, wrong.at, wrong.message, wrong.fix)
}

func read(doc *strictyaml.Document, d policy.Defaults) (manifest, *problem, error) {
	kind, _ := doc.Text("kind")
	switch kind {
	case KindIOChaos:
		return readIOChaos(doc, d)
	case KindKernelChaos:
		return readKernelChaos(doc, d)
	case KindSchedule:
		return readSchedule(doc, d)
	}
	fix := otherKinds[kind]
	if fix == "" {
		fix = policy.Suggest(kind, Kinds, "the kinds of "+APIVersion+" are "+strings.Join(Kinds, ", "))
	}
	return manifest{}, &problem{path: "kind", message: fmt.Sprintf("the kind %q cannot be applied", kind), fix: fix}, nil
}

// policy begins the policy of an object.
func (o *object) policy() (faultpolicy.FaultPolicy, *problem) {
	p := faultpolicy.FaultPolicy{APIVersion: faultpolicy.APIVersion, Kind: faultpolicy.Kind}
	m := o.Metadata
	switch {
	case o.APIVersion != APIVersion:
		return p, &problem{path: "apiVersion", message: fmt.Sprintf("unknown apiVersion %q", o.APIVersion), fix: "write " + APIVersion}
	case m == nil || m.Name == "":
		return p, missing("metadata.name", "a name, such as io-delay")
	case m.DeletionTimestamp != nil:
		return p, &problem{path: "metadata.deletionTimestamp", message: "the object is being deleted", fix: "leave it out to apply the manifest all the same"}
	}
	p.Metadata.Name = strings.ToLower(o.Kind) + "." + m.namespace() + "." + m.Name
	p.Metadata.Labels = m.Labels
	for key, v := range m.Annotations {
		if key == "kubectl.kubernetes.io/last-applied-configuration" {
			continue // the manifest once more
		}
		if p.Metadata.Annotations == nil {
			p.Metadata.Annotations = make(map[string]string)
		}
		p.Metadata.Annotations[key] = v
	}
	p.Spec.Paused = m.Annotations[pauseAnnotation] == "true"
	return p, nil
}

// namespace is where the object is; kubectl takes default.
func (m *metadata) namespace() string {
	if m.Namespace == "" {
		return "default"
	}
	return m.Namespace
}

// experiment is a spec that can be written into a policy.
type experiment interface {
	apply(p *faultpolicy.FaultPolicy, namespace, path string, d policy.Defaults) (*ruleText, *problem)
}

// fill writes an experiment at a path into the policy of an object.
func (o *object) fill(e experiment, path string, d policy.Defaults) (manifest, *problem) {
	p, wrong := o.policy()
	if wrong != nil {
		return manifest{}, wrong
	}
	text, wrong := e.apply(&p, o.Metadata.namespace(), path, d)
	return manifest{p, text, path}, wrong
}

func readIOChaos(doc *strictyaml.Document, d policy.Defaults) (manifest, *problem, error) {
	var o struct {
		object
		Spec *ioChaos `json:"spec"`
	}
	if err := doc.Decode(&o); err != nil {
		return manifest{}, nil, err
	}
	if o.Spec == nil {
		return manifest{}, missing("spec", "action, mode, selector and volumePath"), nil
	}
	m, wrong := o.fill(o.Spec, "spec", d)
	return m, wrong, nil
}

func readKernelChaos(doc *strictyaml.Document, d policy.Defaults) (manifest, *problem, error) {
	var o struct {
		object
		Spec *kernelChaos `json:"spec"`
	}
	if err := doc.Decode(&o); err != nil {
		return manifest{}, nil, err
	}
	if o.Spec == nil {
		return manifest{}, missing("spec", "mode, selector and failKernRequest"), nil
	}
	m, wrong := o.fill(o.Spec, "spec", d)
	return m, wrong, nil
}

// withTTL gives the defaults under which a policy's rules are read: its own ttl, if it has one.
func withTTL(spec *faultpolicy.Spec, d policy.Defaults) policy.Defaults {
	if spec.Timing.TTL > 0 {
		d.TTL = time.Duration(spec.Timing.TTL)
	}
	return d
}

// add gives the policy its fault.
func add(p *faultpolicy.FaultPolicy, r policy.Rule) {
	p.Spec.Faults = append(p.Spec.Faults, faultpolicy.Fault{Name: r.Name, Rule: r.Text})
}
