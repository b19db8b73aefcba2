package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/lab"
)

// gone waits until a container has no graft any more, whatever its state.
func (s *scene) gone(id string) {
	s.Helper()
	var left []keeper.Graft
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		left = nil
		for _, g := range s.grafts() {
			if g.Target.ID == id && strings.HasPrefix(g.ID, "g-") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return
		}
	}
	s.Fatalf("container %s still has %+v", id, left)
}

// containerd is restarted, and its agent with it, under containers with faults: they keep them, under the same ids, and what
// starts then is grafted as before.
func TestContainerdIsRestarted(t *testing.T) {
	s := newScene(t)
	id, _ := s.run("e2e-restarted", "wal.faultgraft.io="+readFault)
	first := s.await(id, keeper.StateActive)
	if err := s.lab.Restart(s.ctx); err != nil {
		t.Fatal(err)
	}
	if out, ok := s.cat("e2e-restarted"); ok {
		t.Errorf("the fault is gone with containerd: %q", out)
	}
	other, _ := s.run("e2e-later", "wal.faultgraft.io="+readFault)
	s.await(other, keeper.StateActive) // the new agent is at work
	if now := s.await(id, keeper.StateActive); now.ID != first.ID || now.Target.PID != first.Target.PID {
		t.Errorf("%+v became %+v", first, now)
	}
	s.nerdctl("rm", "-f", "e2e-restarted", "e2e-later")
	s.gone(id)
	s.gone(other)
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		left, err := filepath.Glob(filepath.Join(s.state(), "keepers", "pid-*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("left of keepers: %q", left)
		}
	}
	// A new containerd with a new agent, and nothing else. Mounts and processes of containers that are gone would be too many.
	now, err := s.lab.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if len(now.Processes) > len(s.before.Processes) {
		t.Errorf("processes %v, before %v", now.Processes, s.before.Processes)
	}
	s.before = now
}

// The shim of a container is killed: containerd ends what ran in it, and its graft ends too. Another one does not notice.
func TestShimIsKilled(t *testing.T) {
	s := newScene(t)
	id, _ := s.run("e2e-orphan", "wal.faultgraft.io="+readFault)
	other, _ := s.run("e2e-untouched", "wal.faultgraft.io="+readFault)
	g := s.await(id, keeper.StateActive)
	untouched := s.await(other, keeper.StateActive)
	stop(t, parent(t, g.Target.PID), syscall.SIGKILL)
	s.gone(id)
	if now := s.await(other, keeper.StateActive); now.ID != untouched.ID {
		t.Errorf("%+v became %+v", untouched, now)
	}
	if out, ok := s.cat("e2e-untouched"); ok {
		t.Errorf("the other container reads %q", out)
	}
	s.nerdctl("rm", "-f", "e2e-orphan", "e2e-untouched")
}

// Containers that are removed while they are being grafted, sooner and later, leave nothing.
func TestContainerIsRemovedWhileGrafting(t *testing.T) {
	s := newScene(t)
	for round := range 4 {
		name := fmt.Sprint("e2e-brief-", round)
		id, _ := s.run(name, "wal.faultgraft.io="+readFault)
		for end := time.Now().Add(time.Duration(round) * 15 * time.Millisecond); time.Now().Before(end); { // of no matter how far it has come
			if keepers, _ := filepath.Glob(filepath.Join(s.state(), "keepers", "pid-*")); len(keepers) > 0 {
				break
			}
		}
		s.nerdctl("rm", "-f", name)
		s.gone(id)
	}
}

// state is the agent's state directory as this process sees it.
func (s *scene) state() string {
	s.Helper()
	dir, err := s.lab.Path("/run/faultgraft")
	if err != nil {
		s.Fatal(err)
	}
	return dir
}

// The first process of a container, with a fault, is killed for want of memory: the container ends as it would, and the layer with it.
func TestContainerIsOOMKilled(t *testing.T) {
	s := newScene(t)
	data := s.volume()
	s.Cleanup(func() { _, _ = s.lab.Nerdctl(s.ctx, "rm", "-f", "e2e-hungry") })
	id := s.nerdctl("run", "-d", "--name", "e2e-hungry", "--net", "none", "-v", data+":/data", "--memory", "24m",
		"--label", "slow.faultgraft.io=io latency=1ms op=read path=/data/** ttl=5m", lab.Image,
		"sh", "-c", "exec 3>>/data/log; while ! [ -e /data/go ]; do sleep 0.1; done; echo dirty >&3; exec tail /dev/zero")
	s.await(id, keeper.StateActive)
	s.nerdctl("exec", "e2e-hungry", "touch", "/data/go")
	s.gone(id)
	if out := s.nerdctl("inspect", "-f", "{{.State.ExitCode}}", "e2e-hungry"); out != "137" {
		t.Errorf("its exit status is %s", out)
	}
	if out, err := s.lab.Run(s.ctx, "cat", filepath.Join(data, "log")); err != nil || out != "dirty" {
		t.Errorf("what it wrote before: %q, %v", out, err)
	}
	s.nerdctl("rm", "-f", "e2e-hungry")
}

// A paused container is refused in words, comes back as it was, and is grafted then; paused with faults it keeps them until it goes on.
func TestContainerIsPaused(t *testing.T) {
	s := newScene(t)
	id, _ := s.run("e2e-paused")
	inject := []string{"inject", "e2e-paused", "--path", "/data", "io error=EIO op=read ttl=5m"}
	// Its first process holds nothing under the path, and is not stopped; one that does is.
	x := s.session(nil, "e2e-paused", "sh")
	if out := x.run("exec 5</data/f && echo open"); out != "open" {
		t.Fatal(out)
	}
	s.nerdctl("pause", "e2e-paused")
	if out, err := s.lab.Faultgraft(s.ctx, inject...); err == nil || !strings.Contains(err.Error(), "resume it first") {
		t.Errorf("inject: %q, %v", out, err)
	}
	s.nerdctl("unpause", "e2e-paused")
	if out := x.run("head -c 3 <&5"); out != "con" {
		t.Errorf("refused, it reads %q", out)
	}
	graft, err := s.lab.Faultgraft(s.ctx, inject...)
	if err != nil {
		t.Fatal(err)
	}
	s.nerdctl("pause", "e2e-paused")
	if out, err := s.lab.Faultgraft(s.ctx, "recover", graft); err == nil || !strings.Contains(err.Error(), "resume it first") {
		t.Errorf("recover: %q, %v", out, err)
	}
	s.nerdctl("unpause", "e2e-paused")
	s.gone(id) // by itself
	if out := x.run("head -c 3 <&5"); out == "" || strings.Contains(out, "rror") {
		t.Errorf("recovered, it reads %q", out)
	}
	if out, ok := s.cat("e2e-paused"); !ok || out != "content" {
		t.Errorf("recovered: %q", out)
	}
}
