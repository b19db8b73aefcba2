package wrapper

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// install puts an executable file, or a link, into a folder of its own.
func install(t *testing.T, name, link string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	var err error
	if link != "" {
		err = os.Symlink(link, path)
	} else {
		err = os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFindReal(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ours, copied := install(t, "runc", self), install(t, "runc", install(t, "10-faultgraft", ""))
	real, crun := install(t, "runc", ""), install(t, "crun", "")
	plain := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	path := "relative"
	for _, p := range []string{ours, copied, plain, real, crun} {
		path += ":" + filepath.Dir(p)
	}
	tests := []struct {
		name, real, path, want, err string
		runtime                     string
	}{
		{name: "the next on PATH", path: path, want: real},
		{name: "crun", runtime: "crun", path: path, want: crun},
		{name: "named by path", real: crun, want: crun},
		{name: "named by name", real: "crun", path: path, want: crun},
		{name: "only ourselves", path: filepath.Dir(ours) + ":" + filepath.Dir(copied), err: "no runc but faultgraft's wrapper in PATH="},
		{name: "ourselves by path", real: ours, err: "it is faultgraft's wrapper"},
		{name: "another faultgraft by path", real: copied, err: "it is faultgraft's wrapper"},
		{name: "not executable", real: plain, err: "not executable"},
		{name: "a folder", real: filepath.Dir(real), err: "not a regular file"},
		{name: "not there", real: "/no/such/runc", err: "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", tt.path)
			inv := Invocation{Name: "runc", Options: Options{Real: tt.real}}
			if tt.runtime != "" {
				inv.Name = tt.runtime
			}
			got, err := inv.FindReal()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%s, error %v, want %q", got, err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("%s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

// A wrapper that was taken for the real runtime, as by a script, notices.
func TestFindRealLoop(t *testing.T) {
	real := install(t, "runc", "")
	inv := Invocation{Name: "runc", Options: Options{Real: real}}
	for _, pid := range []int{os.Getpid(), os.Getppid()} { // by execve, as a child
		t.Setenv(guard, strconv.Itoa(pid))
		if _, err := inv.FindReal(); err == nil || !strings.Contains(err.Error(), "called by itself") {
			t.Errorf("error %v", err)
		}
	}
	t.Setenv(guard, "1")
	if os.Getppid() != 1 {
		if _, err := inv.FindReal(); err != nil {
			t.Error(err)
		}
	}
}
