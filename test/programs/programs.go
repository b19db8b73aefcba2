// Package programs has what tests with real target programs have in common: the programs
// are built once, when a test wants them, and the tests run in a mount namespace of their
// own, which plays the host.
package programs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// inside says to a test binary that it is in its namespace.
const inside = "FAULTGRAFT_TEST_NAMESPACE"

// prebuilt names a folder with the programs, on a machine without compilers.
const prebuilt = "FAULTGRAFT_TEST_TARGETS"

// place is where the programs are.
var place string

// Main runs the tests of a package as root in a mount namespace of their own: no layer ever
// lies where another program could meet it. before is called there. It returns the exit status.
func Main(m *testing.M, before func() error) int {
	if os.Getuid() != 0 {
		fmt.Println("skipped: needs root, /dev/fuse and ptrace")
		return 0
	}
	if os.Getenv(inside) == "" {
		return inNamespace()
	}
	return With(func() int {
		if err := before(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	})
}

// With runs tests that want programs, and no namespace of their own. It returns their exit status.
func With(run func() int) int {
	if place = os.Getenv(prebuilt); place == "" {
		dir, err := os.MkdirTemp("", "faultgraft-programs-")
		if err == nil {
			err = os.Chmod(dir, 0o755) // programs under other users start from here
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "a place for the programs:", err)
			return 1
		}
		place = dir
		defer func() { _ = os.RemoveAll(dir) }()
	}
	return run()
}

func inNamespace() int {
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", exe}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// builds are functions that build a program once, by its name.
var builds sync.Map

func build(name string, command func(path string) *exec.Cmd) (string, error) {
	path := filepath.Join(place, name)
	once, _ := builds.LoadOrStore(name, sync.OnceValue(func() error {
		if os.Getenv(prebuilt) != "" {
			_, err := os.Stat(path)
			return err
		}
		cmd := command(path)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
		return nil
	}))
	return path, once.(func() error)()
}

// Go builds a command of this module, "cmd/faultgraft", and returns its path.
func Go(pkg string) (string, error) {
	name := path.Base(pkg)
	if strings.HasPrefix(pkg, "test/target/") { // there is one of that name in C
		name = "go" + name
	}
	return build(name, func(path string) *exec.Cmd {
		cmd := exec.Command("go", "build", "-o", path, "github.com/faultgraft/faultgraft/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		return cmd
	})
}

// MustGo is Go for a test.
func MustGo(t testing.TB, pkg string) string {
	t.Helper()
	path, err := Go(pkg)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// C builds NAME.c of test/target for a test in a folder beside it, and returns its path.
// The test skips where there is no compiler.
func C(t testing.TB, name string) string {
	t.Helper()
	path, err := build(name, func(path string) *exec.Cmd {
		return exec.Command("gcc", "-O1", "-pthread", "../target/"+name+".c", "-o", path)
	})
	if errors.Is(err, exec.ErrNotFound) {
		t.Skipf("%v: apt-get install gcc libc6-dev", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}
