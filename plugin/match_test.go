package plugin

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestMatch(t *testing.T) {
	all := []Container{
		{Key: Key{"default", "aaa111"}, Name: "pg", PID: 1},
		{Key: Key{"default", "aaa222"}, Name: "redis", PID: 2},
		{Key: Key{"other", "bbb"}, Name: "pg", PID: 3},
		{Key: Key{criNamespace, "ccc"}, Name: "main", Pod: "web-0", PodNamespace: "prod", PID: 4},
		{Key: Key{criNamespace, "ddd"}, Name: "main", Pod: "web-1", PodNamespace: "prod", PID: 5},
		{Key: Key{criNamespace, "eee"}, Name: "main", Pod: "web-1", PodNamespace: "prod"}, // its restarted forerunner
		{Key: Key{criNamespace, "fff"}, Name: "side", Pod: "web-1", PodNamespace: "prod", PID: 6},
		{Key: Key{"default", "redis2"}, Name: "stopped"},
	}
	for ref, want := range map[string]string{
		"aaa111": "aaa111", "aaa2": "aaa222", "redis": "aaa222", "default/pg": "aaa111", "other/pg": "bbb", "other/bbb": "bbb", "web-0": "ccc",
		"web-1/main": "ddd", "prod/web-1/side": "fff", "prod/web-0": "ccc", "side": "fff",
	} {
		if got, err := match(all, ref); err != nil || got.ID != want {
			t.Errorf("%s: %s, %v; want %s", ref, got.ID, err, want)
		}
	}
	for ref, want := range map[string]string{
		"pg": "several containers", "aaa": "several containers", "main": "prod/web-0/main", "web-1": "several containers",
		"stopped": "is not running", "redis2": "is not running", "eee": "is not running", "nope": "no such container", "": "no container named",
	} {
		if got, err := match(all, ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %s, %v; want an error with %q", ref, got.ID, err, want)
		}
	}
	if _, err := match(all, "nope"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v is not ErrNotFound", err)
	}
}

// startIdle starts a process that does nothing, in namespaces of its own if flags say so.
func startIdle(t *testing.T, flags uintptr) int {
	t.Helper()
	cmd := exec.Command("sh", "-c", "echo ready; read x") // ends with its standard input, also when this test dies
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // read ends, and with it the shell
		if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() != 1 {
			t.Error(err)
		}
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func TestCheckProcess(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: looks at the namespaces of processes")
	}
	own := startIdle(t, syscall.CLONE_NEWNS)
	want, err := startTime(own)
	if err != nil {
		t.Fatal(err)
	}
	if start, err := checkProcess(own); err != nil || start != want {
		t.Errorf("a process with its own mount namespace: %d, %v; want %d", start, err, want)
	}
	if _, err := checkProcess(startIdle(t, 0)); err == nil || !strings.Contains(err.Error(), "mount namespace") {
		t.Errorf("a process of the host: %v", err)
	}
	for what, pid := range map[string]int{"this process": os.Getpid(), "init": 1, "kthreadd": 2} {
		if start, err := checkProcess(pid); err == nil {
			t.Errorf("%s (%d) may be touched", what, pid)
		} else if what == "this process" && start == 0 {
			t.Errorf("%s counts as ended: %v", what, err)
		}
	}
	if start, err := checkProcess(1 << 30); err == nil || start != 0 {
		t.Errorf("a process that does not exist: %d, %v", start, err)
	}
}
