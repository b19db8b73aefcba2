package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestParseProcCgroup(t *testing.T) {
	for text, want := range map[string]string{
		"0::/\n":        "/",
		"0::/a/b c:d\n": "/a/b c:d",
		"4:memory:/x\n1:name=systemd:/y\n0::/hybrid\n": "/hybrid",
		"0::/../b\n": "/../b",
	} {
		if got, err := parseProcCgroup(text); err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if _, err := parseProcCgroup("4:memory:/x\n1:name=systemd:/\n"); !errors.Is(err, ErrNoCgroup2) {
		t.Errorf("pure v1: %v", err)
	}
	if _, err := parseProcCgroup("0::/a (deleted)\n"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
}

// TestCgroupOf reads the machine that it runs on, hybrid or not; it makes nothing.
func TestCgroupOf(t *testing.T) {
	c, err := CgroupOf(os.Getpid())
	if errors.Is(err, ErrNoCgroup2) {
		t.Skip("no cgroup v2 hierarchy here")
	}
	if err != nil {
		t.Fatal(err)
	}
	again, err := CgroupAt(c.Path)
	if err != nil || again != c {
		t.Errorf("%+v, then %+v, %v", c, again, err)
	}
	if root, err := CgroupAt("/"); err != nil || root.Level != 0 || root.ID != 1 {
		t.Errorf("root: %+v, %v", root, err)
	}
	if _, err := CgroupAt(filepath.Join(c.Path, "no such cgroup")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func FuzzParseProcCgroup(f *testing.F) {
	f.Add("0::/\n")
	f.Add("1:cpu:/\n0::/a (deleted)")
	f.Fuzz(func(t *testing.T, text string) {
		if path, err := parseProcCgroup(text); err == nil && (path == "" || path[0] != '/') {
			t.Errorf("%q gives %q", text, path)
		}
	})
}
