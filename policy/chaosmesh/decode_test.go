package chaosmesh

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
	"github.com/google/go-cmp/cmp"
)

// read gives the policy of a text of one document.
func readText(text string) (faultpolicy.FaultPolicy, error) {
	docs, err := strictyaml.Read("a.yaml", []byte(text))
	if err != nil {
		return faultpolicy.FaultPolicy{}, err
	}
	if len(docs) != 1 {
		return faultpolicy.FaultPolicy{}, fmt.Errorf("%d documents", len(docs))
	}
	return Decode(docs[0], policy.Defaults{})
}

func decode(t *testing.T, text string) faultpolicy.FaultPolicy {
	t.Helper()
	p, err := readText(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, f := range p.Spec.Faults {
		if _, err := policy.ParseRule(f.Name, f.Rule, withTTL(&p.Spec, policy.Defaults{})); err != nil {
			t.Errorf("the rule %s: %v", f.Rule, err)
		}
	}
	return p
}

// ioManifest is an IOChaos with lines of its spec.
func ioManifest(lines string) string {
	return "apiVersion: chaos-mesh.org/v1alpha1\nkind: IOChaos\nmetadata: {name: x}\nspec:\n  mode: one\n  selector: {}\n  volumePath: /data\n  " +
		strings.ReplaceAll(strings.TrimSpace(lines), "\n", "\n  ") + "\n"
}

func kernelManifest(lines string) string {
	return "apiVersion: chaos-mesh.org/v1alpha1\nkind: KernelChaos\nmetadata: {name: x}\nspec:\n  mode: all\n  selector: {}\n  failKernRequest:\n    " +
		strings.ReplaceAll(strings.TrimSpace(lines), "\n", "\n    ") + "\n"
}

// TestRules shows what the actions of IOChaos and the requests of KernelChaos come to.
func TestRules(t *testing.T) {
	tests := []struct{ name, manifest, rule string }{
		{"delay of everything", ioManifest("action: latency\ndelay: 100ms"), "io latency=100ms op=all path=/data/**"},
		{"delay in words of Go", ioManifest("action: latency\ndelay: 0.5s\npercent: 0"), "io latency=500ms op=all p=0% path=/data/**"},
		{"error", ioManifest("action: fault\nerrno: 5\npercent: 100"), "io error=EIO op=all path=/data/**"},
		{"error of methods", ioManifest("action: fault\nerrno: 28\nmethods: [write, READ, Fsync, mkdir]\npercent: 7\npath: /data/a b/*"),
			`io error=ENOSPC op=write+mmap-write+read+mmap-read+fsync+fdatasync+mkdir p=7% path="/data/a b/*"`},
		{"every method that can be had", ioManifest("action: latency\ndelay: 1ms\nmethods: [" + strings.Join(sortedKeys(methodOps), ", ") + "]"), ""},
		{"attributes", ioManifest("action: attrOverride\nattr: {ino: 7, size: 0, blocks: 1, atime: {sec: 0, nsec: 5}, mtime: {sec: 1577836800, nsec: 0}, ctime: {sec: -1, nsec: 0}, perm: 72, nlink: 2, uid: 3, gid: 4}"),
			"io attr=ino:7,size:0,blocks:1,atime:1970-01-01T00:00:00.000000005Z,mtime:2020-01-01T00:00:00Z,ctime:1969-12-31T23:59:59Z,perm:0110,nlink:2,uid:3,gid:4 path=/data/**"},
		{"mistake", ioManifest("action: mistake\nmistake: {filling: random, maxOccurrences: 3, maxLength: 10000}\nmethods: [READ, WRITE]"),
			"io corrupt=random(3,10000) op=read+mmap-read+write+mmap-write path=/data/**"},
		{"mistake without methods", ioManifest("action: mistake\nmistake: {filling: zero, maxOccurrences: 1, maxLength: 1}"), "io corrupt=zero(1,1) op=all path=/data/**"},
		{"no field of another action is used", ioManifest("action: latency\ndelay: 1s\nerrno: 0"), "io latency=1s op=all path=/data/**"},

		{"slab", kernelManifest("failtype: 0\nheaders: [linux/mm.h]"), "kernel hook=slab"},
		{"page with times", kernelManifest("failtype: 1\ntimes: 3\nprobability: 100"), "kernel hook=page times=3"},
		{"bio in a chain", kernelManifest("failtype: 2\ncallchain: [{funcname: ext4_file_write_iter}, {funcname: submit_bio}]\nprobability: 1\ntimes: 0"), "kernel hook=bio within=ext4_file_write_iter,submit_bio p=1%"},
		{"of what fails itself", kernelManifest("failtype: 2\ncallchain:\n- funcname: vfs_write\n  predicate: count > 4096\n- predicate: bio->bi_iter.bi_sector == 128"),
			"kernel hook=bio(bio->bi_iter.bi_sector == 128) within=vfs_write(count > 4096)"},
		{"parameters without a predicate", kernelManifest("failtype: 0\ncallchain: [{funcname: f, parameters: int a}]"), "kernel hook=slab within=f(int a)()"},
		{"a predicate of several lines", kernelManifest("failtype: 0\ncallchain:\n- funcname: f\n  predicate: |\n    a == ')' &&\n    b == \"(\""), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := decode(t, tt.manifest)
			if len(p.Spec.Faults) != 1 || tt.rule != "" && p.Spec.Faults[0].Rule != tt.rule {
				t.Errorf("%+v, want %s", p.Spec.Faults, tt.rule)
			}
		})
	}
}

// TestEveryMethod shows that no method is lost, and that none of them adds operations of other ones.
func TestEveryMethod(t *testing.T) {
	seen := policy.OpSet(0)
	for method := range methodOps {
		p := decode(t, ioManifest("action: latency\ndelay: 1ms\nmethods: ["+strings.ToUpper(method)+"]"))
		r, err := policy.ParseRule("x", p.Spec.Faults[0].Rule, policy.Defaults{})
		if err != nil {
			t.Fatal(err)
		}
		if seen&r.IO.Ops != 0 {
			t.Errorf("%s: %s is also of another method", method, seen&r.IO.Ops)
		}
		seen |= r.IO.Ops
	}
	none := "tmpfile+ioctl+fallocate+lseek+copy_file_range"
	if rest := policy.GroupAll &^ seen; rest.String() != none {
		t.Errorf("no method is for %s, want %s", rest, none)
	}
}

// TestSelectors shows what selectors come to.
func TestSelectors(t *testing.T) {
	io := func(text string) string {
		return "apiVersion: chaos-mesh.org/v1alpha1\nkind: IOChaos\nmetadata: {name: x, namespace: home}\nspec: {action: fault, errno: 5, volumePath: /d, " + text + "}\n"
	}
	tests := []struct {
		name, manifest string
		want           faultpolicy.Spec
	}{
		{"nothing said", io("mode: all, selector: {}"), faultpolicy.Spec{Mode: "all", Selector: faultpolicy.Selector{PodNamespaces: []string{"home"}}}},
		{"all kinds", io(`mode: fixed, value: "2", containerNames: [a, b], duration: 1h30m, selector: {namespaces: [n, m], labelSelectors: {app: etcd},
  expressionSelectors: [{key: tier, operator: In, values: [cache]}, {key: x, operator: DoesNotExist}], annotationSelectors: {a.b/c: d},
  podPhaseSelectors: [Running, Pending], fieldSelectors: {metadata.name: p-0, metadata.namespace: m, status.phase: Running}}`),
			faultpolicy.Spec{Mode: "fixed", Value: 2, Timing: faultpolicy.Timing{TTL: faultpolicy.Duration(90 * time.Minute)}, Selector: faultpolicy.Selector{
				PodNamespaces: []string{"m"}, PodNames: []string{"p-0"}, ContainerNames: []string{"a", "b"},
				PodSelector: &faultpolicy.PodSelector{
					MatchLabels: map[string]string{"app": "etcd"}, MatchAnnotations: map[string]string{"a.b/c": "d"},
					MatchExpressions: []faultpolicy.Requirement{{Key: "tier", Operator: "In", Values: []string{"cache"}}, {Key: "x", Operator: "DoesNotExist"}},
				},
			}}},
		{"pods", io("mode: random-max-percent, value: 100, selector: {pods: {b: [p-1, p-0], a: [q]}, podPhaseSelectors: ['!Pending']}"),
			faultpolicy.Spec{Mode: "random-max-percent", Value: 100, Selector: faultpolicy.Selector{Pods: []string{"a/q", "b/p-1", "b/p-0"}}}},
		{"a name is no glob", io("mode: one, selector: {pods: {a: ['*']}}, containerNames: ['p?']"),
			faultpolicy.Spec{Mode: "one", Selector: faultpolicy.Selector{Pods: []string{`a/\*`}, ContainerNames: []string{`p\?`}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := decode(t, tt.manifest)
			p.Spec.Faults = nil
			tt.want.WhenNothingMatches = faultpolicy.Wait
			if diff := cmp.Diff(tt.want, p.Spec); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestFromTheCluster shows that what kubectl prints of a live object can be applied.
func TestFromTheCluster(t *testing.T) {
	p := decode(t, `
apiVersion: chaos-mesh.org/v1alpha1
kind: IOChaos
metadata:
  annotations:
    experiment.chaos-mesh.org/pause: "true"
    kubectl.kubernetes.io/last-applied-configuration: '{"apiVersion":"chaos-mesh.org/v1alpha1"}'
  creationTimestamp: "2026-11-01T10:00:00Z"
  finalizers: [chaos-mesh/records]
  generation: 7
  labels: {team: db}
  managedFields: [{manager: kubectl}]
  name: live
  namespace: shop
  ownerReferences: [{kind: Schedule, name: s}]
  resourceVersion: "123"
  selfLink: ""
  uid: 0c7fd5c0-0d0b-4a5b-9df7-6a5f6e4d2c1b
spec:
  action: fault
  errno: 5
  mode: one
  percent: 100
  selector: {namespaces: [shop]}
  volumePath: /data
  remoteCluster: ""
status:
  conditions: [{type: Selected, status: "True"}]
  experiment:
    containerRecords: [{id: shop/pg-0/pg, phase: Injected}]
    desiredPhase: Run
  instances: {shop/pg-0: 1}
`)
	want := faultpolicy.Metadata{Name: "iochaos.shop.live", Labels: map[string]string{"team": "db"}, Annotations: map[string]string{pauseAnnotation: "true"}}
	if diff := cmp.Diff(want, p.Metadata); diff != "" || !p.Spec.Paused {
		t.Error(diff, p.Spec.Paused)
	}
}

// TestSchedule shows a Schedule of each kind.
func TestSchedule(t *testing.T) {
	head := "apiVersion: chaos-mesh.org/v1alpha1\nkind: Schedule\nmetadata: {name: s}\nspec:\n  historyLimit: 2\n  startingDeadlineSeconds: 30\n  concurrencyPolicy: Forbid\n"
	io := "  type: IOChaos\n  ioChaos: {action: latency, delay: 1ms, mode: one, selector: {}, volumePath: /d, duration: 400s}\n"
	kernel := "  type: KernelChaos\n  kernelChaos: {mode: one, selector: {}, duration: 1m, failKernRequest: {failtype: 0}}\n"
	for _, tt := range []struct{ manifest, expr, rule string }{
		{head + "  schedule: '@every 10m'\n" + io, "@every 10m", "io latency=1ms op=all path=/d/**"},
		{head + "  schedule: '5 * * * *'\n" + kernel, "5 * * * *", "kernel hook=slab"},
		{head + "  schedule: '0 */10 * * * *'\n" + kernel, "*/10 * * * *", "kernel hook=slab"},
	} {
		p := decode(t, tt.manifest)
		if p.Metadata.Name != "schedule.default.s" || p.Spec.Timing.Schedule != tt.expr || p.Spec.Timing.Concurrency != faultpolicy.Forbid || p.Spec.Timing.TTL == 0 || p.Spec.Faults[0].Rule != tt.rule {
			t.Errorf("%s\n%+v", tt.manifest, p)
		}
	}
}

// TestUpstreamExamples applies the examples of a checkout of chaos-mesh/chaos-mesh, as they are.
func TestUpstreamExamples(t *testing.T) {
	dir := os.Getenv("CHAOS_MESH_SOURCE")
	if dir == "" {
		t.Skip("CHAOS_MESH_SOURCE names no checkout of github.com/chaos-mesh/chaos-mesh")
	}
	seen := 0
	err := filepath.WalkDir(filepath.Join(dir, "examples"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		docs, err := strictyaml.Read(path, text)
		if err != nil {
			t.Logf("not looked at: %v", err)
			return nil
		}
		for _, doc := range docs {
			kind, _ := doc.Text("kind")
			scheduled, _ := doc.Text("spec.type")
			switch {
			case kind == KindIOChaos, kind == KindKernelChaos, kind == KindSchedule && (scheduled == KindIOChaos || scheduled == KindKernelChaos):
				seen++
				p, err := Decode(doc, policy.Defaults{})
				if err != nil {
					t.Error(err)
					continue
				}
				t.Logf("%s: %s: %s", path, p.Metadata.Name, p.Spec.Faults[0].Rule)
			default:
				if _, err := Decode(doc, policy.Defaults{}); err == nil {
					t.Errorf("%s: a %s was taken", path, kind)
				}
			}
		}
		return nil
	})
	if err != nil || seen < 4 {
		t.Errorf("%d manifests of files and the kernel, %v", seen, err)
	}
}
