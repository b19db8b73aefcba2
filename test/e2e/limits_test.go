package e2e

import (
	"strings"
	"testing"

	"github.com/faultgraft/faultgraft/test/lab"
)

// P10: labels of nerdctl and annotations of CRI get no more than the node's
// configuration allows: the lab's opts two namespaces in and says nothing else.
func TestLimits(t *testing.T) {
	s := newScene(t)
	pod, err := s.lab.RunPod(s.ctx, lab.PodSpec{Name: "e2e-other", Namespace: "other", Containers: []lab.ContainerSpec{{
		Name: "main", Command: []string{"sleep", "1000"}, Annotations: map[string]string{"wal.faultgraft.io": readFault},
		Mounts: []lab.Mount{{Host: s.volume(), Container: "/data"}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := pod.Remove(s.ctx); err != nil {
			t.Error(err)
		}
	}()
	long, _ := s.run("e2e-long", "wal.faultgraft.io=io error=EIO op=read path=/data/** ttl=2h")
	kern, _ := s.run("e2e-kernel", "oom.faultgraft.io=kernel hook=syscall:mount error=ENOMEM ttl=5m")
	for id, want := range map[string]string{pod.Containers[0].ID: "labels.namespaces", long: "labels.maxTTL", kern: "labels.hooks"} {
		g := s.await(id, "refused")
		if !strings.Contains(g.Reason, want) || !strings.Contains(g.Reason, "the node's configuration") {
			t.Errorf("%s: %q does not name %s", id, g.Reason, want)
		}
	}
	if out, ok := s.cat("e2e-long"); !ok || out != "content" {
		t.Errorf("a refused rule acts: %q", out)
	}
	s.nerdctl("rm", "-f", "e2e-long", "e2e-kernel")
}
