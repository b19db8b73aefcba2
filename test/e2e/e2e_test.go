// Package e2e tests faultgraft as a containerd plugin: real containerd, runc,
// nerdctl, ctr and CRI, in the private lab.
package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/test/lab"
	"github.com/faultgraft/faultgraft/test/programs"
)

func TestMain(m *testing.M) { os.Exit(programs.With(func() int { return lab.Main(m) })) }

// scene is the lab as one test uses it; what the test leaves fails it.
type scene struct {
	*testing.T
	lab    *lab.Lab
	ctx    context.Context
	before *lab.Snapshot
}

func newScene(t *testing.T) *scene { return newSceneFor(t, 5*time.Minute) }

// newSceneFor is newScene for a test that may take that long.
func newSceneFor(t *testing.T, patience time.Duration) *scene {
	l := lab.Require(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s := &scene{T: t, lab: l, ctx: ctx}
	before, err := l.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	s.before = before
	t.Cleanup(func() {
		defer cancel()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(l.Dir(), "log", "faultgraft.log"))
			t.Logf("the agent's log ends with:\n%s", log[max(0, len(log)-3000):])
		}
		if _, err := l.Faultgraft(ctx, "recover", "--all"); err != nil {
			t.Errorf("recover --all: %v", err)
		}
		wait, stop := context.WithTimeout(ctx, time.Minute)
		defer stop()
		left, err := l.Settle(wait, s.before)
		if err != nil {
			t.Errorf("look at the lab: %v", err)
		}
		for _, d := range left {
			t.Errorf("not as before: %s", d)
		}
	})
	return s
}

func (s *scene) nerdctl(args ...string) string {
	s.Helper()
	out, err := s.lab.Nerdctl(s.ctx, args...)
	if err != nil {
		s.Fatalf("nerdctl %s: %v", args[0], err)
	}
	return out
}

// run starts a nerdctl container that sleeps, with a volume at /data that holds the file f, and returns its id.
func (s *scene) run(name string, labels ...string) (id, data string) {
	s.Helper()
	data = s.volume()
	args := []string{"run", "-d", "--name", name, "--net", "none", "-v", data + ":/data"}
	for _, l := range labels {
		args = append(args, "--label", l)
	}
	s.Cleanup(func() { _, _ = s.lab.Nerdctl(s.ctx, "rm", "-f", name) }) // most tests remove it earlier
	return s.nerdctl(append(args, lab.Image, "sleep", "1000")...), data
}

func (s *scene) volume() string {
	s.Helper()
	data := s.TempDir()
	if err := os.WriteFile(filepath.Join(data, "f"), []byte("content"), 0o644); err != nil {
		s.Fatal(err)
	}
	return data
}

// cat reads /data/f in a container; it returns what came and whether it worked.
func (s *scene) cat(name string) (string, bool) {
	s.Helper()
	out, err := s.lab.Nerdctl(s.ctx, "exec", name, "cat", "/data/f")
	var ce *lab.CommandError
	if err != nil && !errors.As(err, &ce) {
		s.Fatal(err)
	}
	if ce != nil {
		out += ce.Stderr
	}
	return out, err == nil
}

func (s *scene) grafts() []keeper.Graft {
	s.Helper()
	out, err := s.lab.Faultgraft(s.ctx, "ps", "-o", "json")
	if err != nil {
		s.Fatalf("ps: %v", err)
	}
	var g []keeper.Graft
	if err := json.Unmarshal([]byte(out), &g); err != nil {
		s.Fatalf("ps: %v in %q", err, out)
	}
	return g
}

// await waits until a container has a line in ps with that state.
func (s *scene) await(id string, state keeper.State) keeper.Graft {
	s.Helper()
	var last []keeper.Graft
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		last = s.grafts()
		for _, g := range last {
			if g.Target.ID == id && g.State == state {
				return g
			}
		}
	}
	s.Fatalf("container %s never became %s; ps: %+v", id, state, last)
	return keeper.Graft{}
}

const readFault = "io error=EIO op=read path=/data/** ttl=5m"

// P1: nerdctl's and ctr's labels and CRI's annotations give the same plan.
func TestLabelsAndAnnotationsGiveTheSamePlan(t *testing.T) {
	s := newScene(t)
	id, _ := s.run("e2e-label", "wal.faultgraft.io="+readFault)
	plans := map[string]keeper.Graft{"nerdctl": s.await(id, keeper.StateActive)}
	if out, ok := s.cat("e2e-label"); ok || !strings.Contains(out, "I/O error") && !strings.Contains(out, "Input/output error") {
		t.Errorf("nerdctl: cat: %q", out)
	}

	data := s.volume()
	if _, err := s.lab.Ctr(s.ctx, "run", "-d", "--label", "wal.faultgraft.io="+readFault,
		"--mount", "type=bind,src="+data+",dst=/data,options=rbind:rw", lab.Image, "e2e-ctr", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_, kerr := s.lab.Ctr(s.ctx, "task", "rm", "-f", "e2e-ctr")
		_, rerr := s.lab.Ctr(s.ctx, "container", "rm", "e2e-ctr")
		if err := errors.Join(kerr, rerr); err != nil {
			t.Error(err)
		}
	}()
	plans["ctr"] = s.await("e2e-ctr", keeper.StateActive)

	pod, err := s.lab.RunPod(s.ctx, lab.PodSpec{Name: "e2e-pod", Containers: []lab.ContainerSpec{
		{Name: "main", Command: []string{"sleep", "1000"}, Annotations: map[string]string{"wal.faultgraft.io": readFault},
			Mounts: []lab.Mount{{Host: s.volume(), Container: "/data"}}},
		{Name: "other", Command: []string{"sleep", "1000"}, Mounts: []lab.Mount{{Host: s.volume(), Container: "/data"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := pod.Remove(s.ctx); err != nil {
			t.Error(err)
		}
	}()
	plans["CRI"] = s.await(pod.Containers[0].ID, keeper.StateActive)
	for _, g := range s.grafts() {
		if g.Target.ID == pod.Containers[1].ID {
			t.Errorf("the container without an annotation has graft %+v", g)
		}
	}
	for how, g := range plans {
		if g.Path != "/data" || len(g.Rules) != 1 || g.Rules[0].Name != "wal" || g.Rules[0].Text != readFault {
			t.Errorf("%s: graft on %s with %+v", how, g.Path, g.Rules)
		}
	}
	s.nerdctl("rm", "-f", "e2e-label")
}

// A bad label never stops a container; ps says what is wrong with it.
func TestBadLabel(t *testing.T) {
	s := newScene(t)
	id, _ := s.run("e2e-bad", "wal.faultgraft.io=io error=EIOO op=read path=/data/**")
	g := s.await(id, "refused")
	for _, want := range []string{"wal.faultgraft.io", "column 10", "EIO"} {
		if !strings.Contains(g.Reason, want) {
			t.Errorf("ps says %q, without %q", g.Reason, want)
		}
	}
	if out, ok := s.cat("e2e-bad"); !ok || out != "content" {
		t.Errorf("the container reads %q", out)
	}
	s.nerdctl("rm", "-f", "e2e-bad")
}

// enable.faultgraft.io=false beats everything.
func TestExcluded(t *testing.T) {
	s := newScene(t)
	marker, _ := s.run("e2e-excluded", "enable.faultgraft.io=false", "wal.faultgraft.io="+readFault)
	id, _ := s.run("e2e-included", "wal.faultgraft.io="+readFault)
	s.await(id, keeper.StateActive) // the one that came later is grafted: the first was looked at
	for _, g := range s.grafts() {
		if g.Target.ID == marker {
			t.Errorf("grafted: %+v", g)
		}
	}
	s.nerdctl("rm", "-f", "e2e-excluded", "e2e-included")
}

// G24: a label that comes to a running container changes its graft in place, of one container among others.
func TestLabelsChangeInPlace(t *testing.T) {
	s := newScene(t)
	id, _ := s.run("e2e-changed", "wal.faultgraft.io="+readFault)
	other, _ := s.run("e2e-unchanged", "wal.faultgraft.io="+readFault)
	g, unchanged := s.await(id, keeper.StateActive), s.await(other, keeper.StateActive)
	if _, err := s.lab.Ctr(s.ctx, "containers", "label", id, "full.faultgraft.io=io error=ENOSPC op=create path=/data/** ttl=5m"); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		now := s.await(id, keeper.StateActive)
		if len(now.Rules) == 2 {
			if now.ID != g.ID {
				t.Errorf("graft %s took the place of %s", now.ID, g.ID)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the label is not followed: %+v", now)
		}
	}
	if _, err := s.lab.Nerdctl(s.ctx, "exec", "e2e-changed", "touch", "/data/x"); err == nil || !strings.Contains(err.Error(), "No space left") {
		t.Errorf("create: %v", err)
	}
	if out, ok := s.cat("e2e-changed"); ok {
		t.Errorf("the rule that stayed: read %q", out)
	}
	if now := s.await(other, keeper.StateActive); now.ID != unchanged.ID || len(now.Rules) != 1 {
		t.Errorf("the other container: %+v, was %+v", now, unchanged)
	}
	s.nerdctl("rm", "-f", "e2e-changed", "e2e-unchanged")
}

// The user's command finds a container by name, without any label, and undoes it.
func TestInjectByName(t *testing.T) {
	s := newScene(t)
	s.run("e2e-inject")
	if out, ok := s.cat("e2e-inject"); !ok {
		t.Fatalf("before: %s", out)
	}
	id, err := s.lab.Faultgraft(s.ctx, "inject", "e2e-inject", "--path", "/data", "io error=EIO op=read ttl=1m")
	if err != nil {
		t.Fatal(err)
	}
	if out, ok := s.cat("e2e-inject"); ok {
		t.Errorf("grafted: read %q", out)
	}
	// Over a path that is grafted the rule is added to that graft.
	again, err := s.lab.Faultgraft(s.ctx, "inject", "e2e-inject", "--path", "/data", "io error=EROFS op=create ttl=1m")
	if err != nil || strings.TrimSpace(again) != strings.TrimSpace(id) {
		t.Errorf("inject once more: graft %q, %v; want %q", again, err, id)
	}
	if _, err := s.lab.Nerdctl(s.ctx, "exec", "e2e-inject", "touch", "/data/x"); err == nil || !strings.Contains(err.Error(), "Read-only") {
		t.Errorf("create: %v", err)
	}
	if out, ok := s.cat("e2e-inject"); ok {
		t.Errorf("with a second rule: read %q", out)
	}
	if _, err := s.lab.Faultgraft(s.ctx, "recover", id); err != nil {
		t.Fatal(err)
	}
	if out, ok := s.cat("e2e-inject"); !ok || out != "content" {
		t.Errorf("recovered: %q", out)
	}
	// A directory of the image itself, on overlayfs.
	id, err = s.lab.Faultgraft(s.ctx, "inject", "e2e-inject", "--path", "/tmp", "io error=ENOSPC op=create ttl=1m")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.lab.Nerdctl(s.ctx, "exec", "e2e-inject", "touch", "/tmp/x"); err == nil || !strings.Contains(err.Error(), "No space left") {
		t.Errorf("create on overlayfs: %v", err)
	}
	if _, err := s.lab.Faultgraft(s.ctx, "recover", id); err != nil {
		t.Fatal(err)
	}
	s.nerdctl("exec", "e2e-inject", "touch", "/tmp/x")
	s.nerdctl("rm", "-f", "e2e-inject")
}

// G23: a layer over the root of a container on overlayfs. Its program and sessions that are opened later are under it.
func TestGraftOverRoot(t *testing.T) {
	s := newScene(t)
	s.run("e2e-root")
	s.nerdctl("exec", "e2e-root", "sh", "-c", "echo -n image >/tmp/f; mkdir -p /srv/d")
	before := s.nerdctl("exec", "e2e-root", "sh", "-c", "cat /proc/1/mountinfo; ls -a /")
	id, err := s.lab.Faultgraft(s.ctx, "inject", "e2e-root", "--path", "/", "io error=ENOSPC op=create+mkdir ttl=1m")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]string{"create": "touch /tmp/x", "mkdir": "mkdir /srv/d/e"} {
		if _, err := s.lab.Nerdctl(s.ctx, "exec", "e2e-root", "sh", "-c", c); err == nil || !strings.Contains(err.Error(), "No space left") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if out, ok := s.cat("e2e-root"); !ok || out != "content" {
		t.Errorf("the volume: %q", out)
	}
	s.nerdctl("exec", "e2e-root", "sh", "-c", "touch /data/x && rm /data/x && cat /etc/hosts && echo x >/dev/null && ls /proc/1/fd && test \"$(cat /tmp/f)\" = image")
	s.nerdctl("exec", "-w", "/srv/d", "e2e-root", "sh", "-c", "test \"$PWD\" = /srv/d && test -e ../d")
	if _, err := s.lab.Faultgraft(s.ctx, "recover", strings.TrimSpace(id)); err != nil {
		t.Fatal(err)
	}
	s.nerdctl("exec", "e2e-root", "touch", "/tmp/x", "/srv/d/e")
	s.nerdctl("exec", "e2e-root", "rm", "/srv/d/e")
	if after := s.nerdctl("exec", "e2e-root", "sh", "-c", "cat /proc/1/mountinfo; ls -a /"); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
	s.nerdctl("rm", "-f", "e2e-root")
}

// P9: what runs the containers, faultgraft itself, pause processes and kube-system are refused.
func TestProtected(t *testing.T) {
	s := newScene(t)
	containerd, err := s.lab.PID()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := s.run("e2e-protected", "wal.faultgraft.io="+readFault)
	g := s.await(id, keeper.StateActive)
	pod, err := s.lab.RunPod(s.ctx, lab.PodSpec{Name: "e2e-system", Namespace: "kube-system", Containers: []lab.ContainerSpec{{
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
	if r := s.await(pod.Containers[0].ID, "refused"); !strings.Contains(r.Reason, "kube-system") {
		t.Errorf("a pod of kube-system: %q", r.Reason)
	}
	for name, pid := range map[string]int{
		"containerd": containerd, "shim": parent(t, g.Target.PID), "the agent": s.agent(), "a pause process": s.pause(),
	} {
		_, err := s.lab.Faultgraft(s.ctx, "inject", "--pid", strconv.Itoa(pid), "--path", "/tmp", "io error=EIO op=read ttl=1m")
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s (pid %d): %v", name, pid, err)
		}
	}
	s.nerdctl("rm", "-f", "e2e-protected")
}

func parent(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	p, err := strconv.Atoi(f[1])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// find returns the process of the lab whose binary and first argument match.
func (s *scene) find(exe, argument string) int {
	s.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		s.Fatal(err)
	}
	for _, l := range links {
		target, err := os.Readlink(l)
		if err != nil || !strings.HasSuffix(strings.TrimSuffix(target, " (deleted)"), exe) {
			continue
		}
		dir := filepath.Dir(l)
		args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || argument != "" && !strings.Contains(string(args), argument) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil {
			return pid
		}
	}
	return 0
}

// agent is the plugin that containerd launched.
func (s *scene) agent() int { return s.find("nri/plugins/10-faultgraft", "10-faultgraft") }
func (s *scene) pause() int { return s.find("/pause", "") }

// P3, P11, P15, and the agent's death: containers that ran before are found; a
// killed agent changes nothing; a stopped and purged one leaves nothing.
func TestAgentComesAndGoes(t *testing.T) {
	s := newScene(t)
	s.alone()
	id, _ := s.run("e2e-before", "wal.faultgraft.io="+readFault)
	if out, ok := s.cat("e2e-before"); !ok {
		t.Fatalf("without an agent: %s", out)
	}
	agent := s.startAgent()
	first := s.await(id, keeper.StateActive)
	if out, ok := s.cat("e2e-before"); ok {
		t.Errorf("a container that ran before the agent reads %q", out)
	}
	state, err := s.lab.Path("/run/faultgraft")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"daemon.sock", "keepers/*/control.sock"} {
		found, err := filepath.Glob(filepath.Join(state, pattern))
		if err != nil || len(found) != 1 {
			t.Errorf("%s: %q, %v", pattern, found, err)
			continue
		}
		if fi, err := os.Stat(found[0]); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", pattern, fi.Mode(), err)
		}
	}
	stop(t, agent, syscall.SIGKILL)
	if out, ok := s.cat("e2e-before"); ok {
		t.Errorf("with the agent killed the fault is gone: %q", out)
	}
	agent = s.startAgent()
	// A container that starts now is grafted: the new agent is at work, and has seen the old one too.
	other, _ := s.run("e2e-after", "wal.faultgraft.io="+readFault)
	s.await(other, keeper.StateActive)
	seen := 0
	for _, g := range s.grafts() {
		if g.Target.ID == id {
			seen++
			if g.ID != first.ID {
				t.Errorf("graft %s became %s", first.ID, g.ID)
			}
		}
	}
	if seen != 1 {
		t.Errorf("%d grafts on the first container", seen)
	}
	if _, err := s.lab.Faultgraft(s.ctx, "purge"); err == nil || !strings.Contains(err.Error(), "still runs") {
		t.Errorf("purge beside an agent: %v", err)
	}
	stop(t, agent, syscall.SIGTERM)
	if _, err := s.lab.Faultgraft(s.ctx, "purge"); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(state); err == nil && len(entries) > 0 {
		t.Errorf("the state directory still holds %v", entries)
	}
	for _, n := range []string{"e2e-before", "e2e-after"} {
		if out, ok := s.cat(n); !ok || out != "content" {
			t.Errorf("%s reads %q", n, out)
		}
	}
	s.nerdctl("rm", "-f", "e2e-before", "e2e-after")
}

// startAgent runs `faultgraft plugin` by hand, as systemd would.
func (s *scene) startAgent() int {
	s.Helper()
	cmd, err := s.lab.FaultgraftCommand(s.ctx, "plugin")
	if err != nil {
		s.Fatal(err)
	}
	return s.follow(cmd)
}

// follow starts an agent; its log is shown if the test fails, and it ends with the test.
func (s *scene) follow(cmd *exec.Cmd) int {
	s.Helper()
	log, err := os.OpenFile(filepath.Join(s.TempDir(), "agent.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	_ = log.Close()
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	s.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if s.Failed() {
			b, _ := os.ReadFile(log.Name())
			s.Logf("the agent by hand said:\n%s", b[max(0, len(b)-3000):])
		}
	})
	return cmd.Process.Pid
}

// stop signals a process and waits until it has gone.
func stop(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatalf("signal %d: %v", pid, err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d does not end", pid)
		}
	}
}
