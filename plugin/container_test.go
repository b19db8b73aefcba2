package plugin

import (
	"bytes"
	"encoding/json"
	"maps"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

func TestMergePrecedence(t *testing.T) {
	for _, c := range []struct {
		name string
		m    metadata
		want map[string]string
	}{
		{"the container's annotation wins", metadata{
			podLabels: map[string]string{"a.faultgraft.io": "1"}, podAnnotations: map[string]string{"a.faultgraft.io": "2"},
			labels: map[string]string{"a.faultgraft.io": "3"}, annotations: map[string]string{"a.faultgraft.io": "4"},
		}, map[string]string{"a.faultgraft.io": "4"}},
		{"its own rule hides the pod's", metadata{
			podAnnotations: map[string]string{"a.faultgraft.io/pod": "pod", "b.faultgraft.io/pod": "pod"},
			labels:         map[string]string{"a.faultgraft.io": "own"},
		}, map[string]string{"a.faultgraft.io": "own", "b.faultgraft.io/pod": "pod"}},
		{"but not the one addressed to it", metadata{
			podAnnotations: map[string]string{"a.faultgraft.io/container.c": "pod"}, labels: map[string]string{"a.faultgraft.io": "own"},
		}, map[string]string{"a.faultgraft.io/container.c": "pod", "a.faultgraft.io": "own"}},
		{"false is never hidden", metadata{
			podLabels: map[string]string{"enable.faultgraft.io": "false"}, annotations: map[string]string{"enable.faultgraft.io": "true"},
		}, map[string]string{"enable.faultgraft.io": "false"}},
		{"nor a misspelt one", metadata{
			podAnnotations: map[string]string{"enable.faultgraft.io": "flase"}, annotations: map[string]string{"enable.faultgraft.io": "true"},
		}, map[string]string{"enable.faultgraft.io": "flase"}},
		{"true can be taken back", metadata{
			podLabels: map[string]string{"enable.faultgraft.io": "true"}, labels: map[string]string{"enable.faultgraft.io": "false"},
		}, map[string]string{"enable.faultgraft.io": "false"}},
		{"pod-wide false stays", metadata{
			podAnnotations: map[string]string{"enable.faultgraft.io/pod": "false"}, annotations: map[string]string{"enable.faultgraft.io": "true"},
		}, map[string]string{"enable.faultgraft.io/pod": "false", "enable.faultgraft.io": "true"}},
	} {
		if got, _ := c.m.merge(); !cmp.Equal(got, c.want) {
			t.Errorf("%s: %s", c.name, cmp.Diff(c.want, got))
		}
	}
}

func TestHasRules(t *testing.T) {
	for key, want := range map[string]bool{
		"wal.faultgraft.io": true, "wal.faultgraft.io/pod": true, "wal.faultgraft.io/container.x": true, "enable.faultgraft.io": true,
		"WAL.Faultgraft.io": true, "faultgraft.io": true, "wal.faultgraft.io/what": true,
		"faultgraft.io.example": false, "notfaultgraft.io": false, "example/wal.faultgraft.io": false, "app": false,
	} {
		if got := hasRules(map[string]string{key: "x"}); got != want {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
}

// extension is what the CRI plugin keeps with a container, as containerd 2 writes it.
func extension(t *testing.T, name, namespace string, annotations map[string]string) typeurl.Any {
	t.Helper()
	b, err := json.Marshal(map[string]any{"Version": "v1", "Metadata": map[string]any{
		"ID": "x", "Config": map[string]any{"metadata": map[string]string{"name": name, "namespace": namespace}, "annotations": annotations},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: "x", Value: b}
}

// The same rules, however they are written: P1.
func TestAllSourcesGiveTheSamePlan(t *testing.T) {
	const key, value = "wal.faultgraft.io", "io error=EIO op=fsync path=/data/** p=5% ttl=5m seed=3"
	nerdctl, err := fromContainerd("default", containers.Container{ID: "1", Labels: map[string]string{key: value, "nerdctl/name": "pg"}}, nil)
	if err != nil || nerdctl.Name != "pg" {
		t.Fatal(nerdctl, err)
	}
	ctr, err := fromContainerd("default", containers.Container{ID: "c1", Labels: map[string]string{key: value}}, nil)
	if err != nil || ctr.Name != "c1" {
		t.Fatal(ctr, err)
	}
	rec := containers.Container{
		ID: "2", SandboxID: "s", Labels: map[string]string{"io.cri-containerd.kind": "container"},
		Extensions: map[string]typeurl.Any{extensionContainer: extension(t, "pg", "", nil)},
	}
	pod := containers.Container{ID: "s", Extensions: map[string]typeurl.Any{extensionSandbox: extension(t, "pg-0", "prod", map[string]string{key + "/pod": value})}}
	events, err := fromContainerd(criNamespace, rec, &pod)
	if err != nil || events.Name != "pg" || events.Pod != "pg-0" || events.PodNamespace != "prod" {
		t.Fatal(events, err)
	}
	nriPod := &api.PodSandbox{Id: "s", Name: "pg-0", Namespace: "prod", Annotations: map[string]string{key + "/container.pg": value, "x.faultgraft.io/container.other": "io nonsense"}}
	nri := fromNRI(nriPod, &api.Container{Id: "2", Name: "pg", Pid: 7})
	if nri.Pod != "pg-0" || nri.PodNamespace != "prod" || nri.PID != 7 {
		t.Fatal(nri)
	}
	want, err := policy.ParseRule("wal", value, policy.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Container{"nerdctl": nerdctl, "ctr": ctr, "CRI by events": events, "CRI by NRI": nri} {
		res := policy.ParseLabels(policy.Subject{Labels: c.Labels, ContainerName: c.Name}, policy.Defaults{})
		if len(res.Problems) != 0 || !cmp.Equal(res.Rules, []policy.Rule{want}) {
			t.Errorf("%s: %v %s", name, res.Problems, cmp.Diff([]policy.Rule{want}, res.Rules))
		}
		origin := map[bool]keeper.Origin{true: keeper.OriginAnnotation, false: keeper.OriginLabel}[c.Pod != ""]
		if got := c.origin("wal"); got != origin {
			t.Errorf("%s: origin %s, want %s", name, got, origin)
		}
	}
}

func TestCRIMetadataOfAnotherVersionIsAnError(t *testing.T) {
	rec := containers.Container{ID: "2", Extensions: map[string]typeurl.Any{extensionContainer: &anypb.Any{Value: []byte(`{"Version":"v9"}`)}}}
	if _, err := fromContainerd(criNamespace, rec, nil); err == nil {
		t.Error("annotations that may be there were taken for none")
	}
}

// FuzzCRIMetadata: what the CRI plugin keeps with a container is read as v1, by any reader of JSON, or refused whole.
func FuzzCRIMetadata(f *testing.F) {
	for _, s := range []string{
		`{"Version":"v1","Metadata":{"Config":{"metadata":{"name":"pg","namespace":"prod"},"annotations":{"wal.faultgraft.io":"io error=EIO"}}}}`,
		`{"Version":"v2","Metadata":{"Config":{"annotations":{"wal.faultgraft.io":"x"}}}}`, `{"Metadata":{"Config":{"annotations":{"a":1}}},"Version":"v1"}`,
		`{"Version":"v1"}`, `{"Version":"v1"`, "null", "[]", "",
	} {
		f.Add([]byte(s), []byte(`{"annotations":{"a.faultgraft.io":"x"}}`))
	}
	f.Fuzz(func(t *testing.T, b, spec []byte) {
		rec := containers.Container{
			ID: "c", Labels: map[string]string{labelCRIKind: "container"}, Spec: &anypb.Any{Value: spec},
			Extensions: map[string]typeurl.Any{extensionContainer: &anypb.Any{Value: b}},
		}
		pod := containers.Container{ID: "s", Extensions: map[string]typeurl.Any{extensionSandbox: &anypb.Any{Value: b}}}
		_, err := fromContainerd(criNamespace, rec, &pod)
		got, cerr := criAnnotations(rec, extensionContainer)
		if cerr != nil && (got != nil || err == nil) {
			t.Errorf("annotations %v beside %v, and the container has %v", got, cerr, err)
		}
		if err != nil {
			return
		}
		var form struct {
			Version  string
			Metadata struct {
				Config struct{ Annotations map[string]string }
			}
		}
		if err := json.NewDecoder(bytes.NewReader(b)).Decode(&form); err != nil || form.Version != "v1" || !maps.Equal(form.Metadata.Config.Annotations, got) {
			t.Errorf("%q was read as %v, not %+v (%v)", b, got, form, err)
		}
	})
}
