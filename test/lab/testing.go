package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

var shared struct {
	sync.Mutex
	opts Options
	lab  *Lab
	err  error
	skip string
	done bool
}

// Main runs a package's tests and takes the lab down after them:
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
func Main(m *testing.M) int { return MainWith(m, Options{}) }

// MainWith is Main for a lab with other options.
func MainWith(m *testing.M, o Options) int {
	shared.opts = o
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.lab != nil {
		if err := shared.lab.Down(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return max(code, 1)
		}
	}
	return code
}

// Require returns the lab that the package's tests share, started at the first
// call. Where the machine cannot run it the test is skipped with the reason,
// or, when CI=true, fails. The package needs a TestMain that calls Main.
func Require(t testing.TB) *Lab {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if !shared.done {
		shared.done = true
		if shared.skip = unable(); shared.skip == "" {
			ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
			defer cancel()
			shared.lab, shared.err = Up(ctx, shared.opts)
		}
	}
	switch {
	case shared.skip != "" && os.Getenv("CI") == "true":
		t.Fatalf("the lab cannot run, and CI=true forbids to skip it: %s", shared.skip)
	case shared.skip != "":
		t.Skipf("the lab cannot run: %s", shared.skip)
	case shared.err != nil:
		t.Fatal(shared.err)
	}
	return shared.lab
}

// RequireDatabases is Require for tests that need PostgresImage and RedisImage.
func RequireDatabases(t testing.TB) *Lab {
	t.Helper()
	l := Require(t)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	err := l.Databases(ctx)
	switch {
	case err != nil && os.Getenv("CI") == "true":
		t.Fatalf("no databases, and CI=true forbids to skip them: %v", err)
	case err != nil:
		t.Skipf("no databases: %v", err)
	}
	return l
}

// unable says why the lab cannot run here; empty when it can.
func unable() string {
	if os.Geteuid() != 0 {
		return "not root"
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return "no /dev/fuse: load it with `modprobe fuse`"
	}
	dir, err := labDir("")
	if err != nil {
		return err.Error()
	}
	// building takes longer than a test may
	if _, err := os.Stat(filepath.Join(dir, "stamps", "nerdctl")); err != nil {
		return "it is not built: run contrib/lab/lab.sh build"
	}
	return ""
}
