package failpoint

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

var steps = Of("test", "first", "second")

func TestMain(m *testing.M) {
	if os.Getenv(At) != "" {
		steps.Pass("first")
		if err := steps.Err("second"); err != nil {
			_, _ = os.Stderr.WriteString(err.Error())
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestPoints(t *testing.T) {
	for _, c := range []struct {
		at, file string
		killed   bool
		status   int
	}{
		{"kill:test.first", "kill test.first", true, 0},
		{"kill:test.second", "kill test.second", true, 0},
		{"test.second", "fail test.second", false, 3},
		{"test.first", "fail test.first", false, 0}, // nobody there can fail
		{"panic:test.first", "panic test.first", false, 2},
		{"kill:test.first#2", "", false, 0},
		{"kill:test.other", "", false, 2}, // a mistake of the test
	} {
		dir := t.TempDir()
		run := func() *exec.Cmd {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), At+"="+c.at, Reached+"="+dir)
			_ = cmd.Run() // its status is looked at
			return cmd
		}
		cmd := run()
		ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if ws.Signaled() != c.killed || c.killed && ws.Signal() != syscall.SIGKILL || !c.killed && ws.ExitStatus() != c.status {
			t.Errorf("%s: %v", c.at, cmd.ProcessState)
		}
		made, _ := filepath.Glob(dir + "/*")
		if got := strings.TrimPrefix(strings.Join(made, " "), dir+"/"); got != c.file {
			t.Errorf("%s: reached %q, want %q", c.at, got, c.file)
		}
		if again := run(); again.ProcessState.ExitCode() != 0 && c.file != "" {
			t.Errorf("%s: it happens again: %v", c.at, again.ProcessState)
		}
	}
}

func TestUnknownStep(t *testing.T) {
	if err := steps.at("third", parse("test.first", "")); err == nil || !strings.Contains(err.Error(), `no step "third"`) {
		t.Errorf("%v", err)
	}
}

func TestAll(t *testing.T) {
	if got := strings.Join(All(), " "); got != "test.first test.second" {
		t.Errorf("%q", got)
	}
	defer func() {
		if recover() == nil {
			t.Error("a name that is there twice is taken")
		}
	}()
	Of("test", "first")
}

// So many processes come to it one after the other, and the next one passes.
func TestTimes(t *testing.T) {
	dir := t.TempDir()
	for n := 1; n <= 4; n++ {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), At+"=kill:test.first", Reached+"="+dir, Times+"=3")
		_ = cmd.Run() // its status is looked at
		if killed := cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled(); killed != (n <= 3) {
			t.Errorf("process %d: %v", n, cmd.ProcessState)
		}
		if _, err := os.Stat(filepath.Join(dir, MarkOf("kill", "test.first", n))); (err == nil) != (n <= 3) {
			t.Errorf("the mark of process %d: %v", n, err)
		}
	}
}
