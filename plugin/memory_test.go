package plugin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMemoryIsKept(t *testing.T) {
	dir := t.TempDir()
	m, warning, err := loadMemory(dir, time.Now())
	if warning != nil || err != nil {
		t.Fatal(warning, err)
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	k, gone := Key{"default", "a"}, Key{"default", "gone"}
	rules := []appliedRule{{Name: "wal", Text: dataRule, Since: time.Unix(100, 0).UTC(), Done: true, Graft: "g1"}}
	for _, err := range []error{m.set(k, os.Getpid(), start, rules), m.set(gone, os.Getpid(), start+1, rules)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	again, warning, err := loadMemory(dir, time.Now())
	if warning != nil || err != nil {
		t.Fatal(warning, err)
	}
	if got := again.rules(k, os.Getpid(), start); !cmp.Equal(got, rules) {
		t.Error(cmp.Diff(rules, got))
	}
	if got := again.rules(k, os.Getpid(), start+1); got != nil {
		t.Errorf("another task of the container is said to have %+v", got)
	}
	if got := again.rules(gone, os.Getpid(), start+1); got != nil {
		t.Errorf("a task that ended is remembered: %+v", got)
	}
	if err := again.forget(k); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("nothing to remember, but %v, %v is left", left, err)
	}
}

func TestMemoryThatCannotBeReadIsSetAside(t *testing.T) {
	for _, text := range []string{"", "{", `{"version":2,"tasks":[]}`, `{"version":1,"tasks":[]} x`, `{"version":1,"tusks":[]}`, "[]"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, memoryFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, warning, err := loadMemory(dir, time.Unix(5, 0))
		if err != nil || m == nil || warning == nil || !strings.Contains(warning.Error(), "daemon.json.corrupt-5") {
			t.Errorf("%q: warning %v, error %v", text, warning, err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "daemon.json.corrupt-5")); err != nil || string(b) != text {
			t.Errorf("%q: set aside as %q, %v", text, b, err)
		}
	}
}

func TestStartTime(t *testing.T) {
	// A name with blanks and parentheses must not shift the fields.
	dir := t.TempDir()
	odd := filepath.Join(dir, "a) R 1 (b")
	if err := os.Symlink("/proc/self/exe", odd); err != nil {
		t.Fatal(err)
	}
	start, err := startTime(os.Getpid())
	if err != nil || start == 0 {
		t.Fatal(start, err)
	}
	if err := os.WriteFile("/proc/self/comm", []byte("x) S 1 (2 3"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := startTime(os.Getpid()); err != nil || again != start {
		t.Errorf("%d, %v; want %d", again, err, start)
	}
}
