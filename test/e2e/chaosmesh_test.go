package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/faultgraft/faultgraft/test/lab"
)

// ioChaos is a manifest as one writes them for Chaos Mesh.
const ioChaos = `apiVersion: chaos-mesh.org/v1alpha1
kind: IOChaos
metadata:
  name: broken-reads
  namespace: shop
spec:
  action: fault
  mode: one
  selector:
    labelSelectors:
      app: pg
  containerNames: [main]
  volumePath: /data
  path: /data/**/*
  methods: [READ]
  errno: 5
  percent: 100
  duration: "300s"
`

// P13: an IOChaos is applied as it is to a pod that runs, and to no other one; deleted, it is gone.
func TestIOChaos(t *testing.T) {
	s := newScene(t)
	pod := func(name, namespace, app string) string {
		p, err := s.lab.RunPod(s.ctx, lab.PodSpec{Name: name, Namespace: namespace, Labels: map[string]string{"app": app}, Containers: []lab.ContainerSpec{
			{Name: "main", Command: []string{"sleep", "1000"}, Mounts: []lab.Mount{{Host: s.volume(), Container: "/data"}}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Remove(s.ctx); err != nil {
				t.Error(err)
			}
		})
		return p.Containers[0].ID
	}
	id := pod("e2e-pg", "shop", "pg")
	others := []string{pod("e2e-web", "shop", "web"), pod("e2e-pg-default", "default", "pg")}
	file := filepath.Join(t.TempDir(), "iochaos.yaml")
	if err := os.WriteFile(file, []byte(ioChaos), 0o644); err != nil {
		t.Fatal(err)
	}
	const name = "iochaos.shop.broken-reads"
	if _, err := s.lab.Faultgraft(s.ctx, "apply", "-f", file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.lab.Faultgraft(s.ctx, "delete", name) }) // the test has deleted it, if all went well
	var st policies.Status
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := s.lab.Faultgraft(s.ctx, "show", name, "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &st)
		}
		if err != nil {
			t.Fatal(err)
		}
		if st.States[policies.TargetActive] == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the policy: %+v", st)
		}
	}
	reads := func(id string) error {
		_, err := s.lab.Nerdctl(s.ctx, "--namespace", "k8s.io", "exec", id, "cat", "/data/f")
		return err
	}
	if err := reads(id); err == nil {
		t.Error("the pod reads its volume")
	}
	for _, other := range others {
		if err := reads(other); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.lab.Faultgraft(s.ctx, "delete", name); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); reads(id) != nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("deleted, and reads fail: %v", reads(id))
		}
	}
}
