// Package property swaps the files of programs that never stand still: they make
// processes and threads without end (test/target/storms.c), each of which checks
// what it holds. FAULTGRAFT_PROPERTY_TIME says for how long.
package property

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// binaryDir holds the programs, each built when the first test wants it.
var binaryDir string

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("skipped: needs root, /dev/fuse and ptrace")
		return
	}
	if os.Getenv("FAULTGRAFT_TEST_NAMESPACE") == "" {
		os.Exit(inOwnNamespace())
	}
	dir, err := os.MkdirTemp("", "faultgraft-property-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // programs under other users start from here
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "a place for the binaries:", err)
		os.Exit(1)
	}
	binaryDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// inOwnNamespace runs the tests in a mount namespace of their own, which plays
// the host: no layer ever lies where another program could meet it.
func inOwnNamespace() int {
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", exe}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), "FAULTGRAFT_TEST_NAMESPACE=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// builds are functions that build a program once.
var builds sync.Map

// built returns a program's path, after building it. The test skips where there is
// no compiler for it.
func built(t testing.TB, name string, command ...string) string {
	t.Helper()
	path := filepath.Join(binaryDir, name)
	once, _ := builds.LoadOrStore(name, sync.OnceValue(func() error {
		cmd := exec.Command(command[0], append(command[1:], "-o", path)...)
		if command[0] == "go" { // -o comes before the package
			cmd = exec.Command("go", "build", "-o", path, command[1])
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
		return nil
	}))
	err := once.(func() error)()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skipf("%v: apt-get install gcc libc6-dev", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func storms(t testing.TB) string {
	return built(t, "storms", "gcc", "-O1", "-pthread", "../target/storms.c")
}

func target(t testing.TB) string {
	return built(t, "target", "gcc", "-O1", "-pthread", "../target/target.c")
}

func faultgraft(t testing.TB) string {
	return built(t, "faultgraft", "go", "github.com/faultgraft/faultgraft/cmd/faultgraft")
}
