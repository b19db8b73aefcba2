package lab_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

func minute(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T) func(out string, err error) string {
	return func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

func TestNerdctlContainerIsSeenAndLeavesNothing(t *testing.T) {
	l, ctx := lab.Require(t), minute(t)
	before, err := l.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	must(t)(l.Nerdctl(ctx, "run", "-d", "--name", "lab-test", "--net", "none", "-v", data+":/data", lab.Image,
		"sh", "-c", "exec 5>/data/log; echo from-inside >&5; exec sleep 1000"))
	t.Cleanup(func() { _, _ = l.Nerdctl(context.Background(), "rm", "-f", "lab-test") }) // gone already when the test passed
	pid, err := strconv.Atoi(must(t)(l.Nerdctl(ctx, "inspect", "-f", "{{.State.Pid}}", "lab-test")))
	if err != nil {
		t.Fatal(err)
	}
	awaitFile(t, ctx, filepath.Join(data, "log"), "from-inside")

	during, err := l.Snapshot(pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := during.Processes[pid]; !ok {
		t.Errorf("process %d of the container is not in the snapshot: %v", pid, during.Processes)
	}
	if len(before.Diff(during)) == 0 {
		t.Error("the container makes no difference to the snapshot")
	}
	if !strings.Contains(strings.Join(during.Open[pid], "\n"), "fd 5 /data/log ") {
		t.Errorf("descriptor 5 is not listed in:\n%s", strings.Join(during.Open[pid], "\n"))
	}

	must(t)(l.Nerdctl(ctx, "rm", "-f", "lab-test"))
	if d, err := l.Settle(ctx, before); err != nil || len(d) > 0 {
		t.Errorf("left over: %v %v", d, err)
	}
}

// A mount that somebody leaves behind is what Snapshot is for.
func TestSnapshotSeesMount(t *testing.T) {
	l, ctx := lab.Require(t), minute(t)
	before, err := l.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	must(t)(l.Run(ctx, "mount", "-n", "-t", "tmpfs", "left-over", dir))
	after, err := l.Snapshot()
	must(t)(l.Run(ctx, "umount", "-n", dir))
	if err != nil {
		t.Fatal(err)
	}
	d := before.Diff(after)
	if len(d) != 1 || !strings.Contains(d[0], "left-over") {
		t.Errorf("the snapshots differ by %q, want the one mount", d)
	}
}

// A mount that was taken away is a difference; one that went because somebody
// outside of the lab removed the folder under it is not.
func TestSnapshotTellsUnmountFromRemovedFolder(t *testing.T) {
	l, ctx := lab.Require(t), minute(t)
	kept, removed := t.TempDir(), filepath.Join(t.TempDir(), "removed")
	if err := os.Mkdir(removed, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{kept, removed} {
		must(t)(l.Run(ctx, "mount", "-n", "-t", "tmpfs", "inherited", dir))
	}
	before, err := l.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	must(t)(l.Run(ctx, "umount", "-n", kept))
	if err := os.Remove(removed); err != nil {
		t.Fatal(err)
	}
	after, err := l.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	d := before.Diff(after)
	if len(d) != 1 || !strings.Contains(d[0], "gone: ") || !strings.Contains(d[0], kept) {
		t.Errorf("the snapshots differ by %q, want the mount on %s only", d, kept)
	}
}

func TestPodRunsToItsEndAndLeavesNothing(t *testing.T) {
	l, ctx := lab.Require(t), minute(t)
	before, err := l.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	pod, err := l.RunPod(ctx, lab.PodSpec{Name: "lab-test", Containers: []lab.ContainerSpec{{
		Name:    "main",
		Command: []string{"sh", "-c", "cat /data/in; exit 3"},
		Mounts:  []lab.Mount{{Host: hostFile(t, "in", "to the pod\n"), Container: "/data"}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	code, err := pod.Wait(ctx, pod.Containers[0])
	if code != 3 || err != nil {
		t.Errorf("exit status %d, %v; want 3", code, err)
	}
	if log, err := pod.Containers[0].Log(); log != "to the pod\n" || err != nil {
		t.Errorf("log %q, %v", log, err)
	}
	if err := pod.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if d, err := l.Settle(ctx, before); err != nil || len(d) > 0 {
		t.Errorf("left over: %v %v", d, err)
	}
}

func TestContainersOutliveRestart(t *testing.T) {
	l, ctx := lab.Require(t), minute(t)
	must(t)(l.Nerdctl(ctx, "run", "-d", "--name", "lab-restart", "--net", "none", lab.Image, "sleep", "1000"))
	t.Cleanup(func() { _, _ = l.Nerdctl(context.Background(), "rm", "-f", "lab-restart") })
	pid := must(t)(l.Nerdctl(ctx, "inspect", "-f", "{{.State.Pid}}", "lab-restart"))
	old, err := l.PID()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if now, err := l.PID(); err != nil || now == old {
		t.Errorf("containerd is process %d, %v; it was %d before the restart", now, err, old)
	}
	if now := must(t)(l.Nerdctl(ctx, "inspect", "-f", "{{.State.Pid}}", "lab-restart")); now != pid {
		t.Errorf("the container's process is %s, was %s", now, pid)
	}
	must(t)(l.Nerdctl(ctx, "exec", "lab-restart", "true"))
}

// PIDs are used again: whatever process has the number that a dead lab left behind is none of its business.
func TestDownLeavesForeignProcessAlone(t *testing.T) {
	l, ctx := lab.Require(t), minute(t)
	foreign := exec.Command("sleep", "1000")
	if err := foreign.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = foreign.Wait() // always "signal: killed"
		close(ended)
	}()
	t.Cleanup(func() {
		_ = foreign.Process.Kill() // it may have been killed already, which is what the test looks for
		<-ended
	})
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "run", "containerd.pid"), []byte(strconv.Itoa(foreign.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"status", "down"} {
		script := exec.CommandContext(ctx, "../../contrib/lab/lab.sh", command)
		script.Env = append(os.Environ(), "FAULTGRAFT_LAB="+dir)
		out, err := script.CombinedOutput()
		if !strings.Contains(string(out), "lab: down") || command == "down" && err != nil {
			t.Errorf("lab.sh %s: %v: %s", command, err, out)
		}
	}
	select {
	case <-ended:
		t.Error("the process was ended")
	default:
	}
	s, err := l.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{1, os.Getpid(), foreign.Process.Pid} {
		if _, ok := s.Processes[pid]; ok {
			t.Errorf("process %d counts as the lab's", pid)
		}
	}
}

func TestCommandErrorSaysWhatFailed(t *testing.T) {
	l, ctx := lab.Require(t), minute(t)
	_, err := l.Run(ctx, "sh", "-c", "echo because >&2; exit 7")
	var ce *lab.CommandError
	if !errors.As(err, &ce) || ce.ExitCode() != 7 || !strings.Contains(err.Error(), "because") {
		t.Errorf("error %v", err)
	}
}

// hostFile makes a folder with one file and returns the folder.
func hostFile(t *testing.T, name, content string) string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func awaitFile(t *testing.T, ctx context.Context, path, want string) {
	t.Helper()
	for {
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), want) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s holds %q, %v; want %q", path, b, err, want)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
