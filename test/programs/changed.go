package programs

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Version is another version of faultgraft: this tree with its own name, and with sources in which something is different.
type Version struct {
	// Name is what its --version says.
	Name string
	// Changes has, by file of the module, a text that is there once and what takes its place.
	Changes map[string][2]string
}

// MustVersion builds it, and returns the path of the program. The sources stay as they are: the go command is told to read others in their place.
func MustVersion(t testing.TB, v Version) string {
	t.Helper()
	if os.Getenv(prebuilt) != "" {
		t.Skip("needs a compiler: it builds another version")
	}
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatal(err)
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	dir := t.TempDir()
	for file, change := range v.Changes {
		path := filepath.Join(strings.TrimSpace(string(root)), file)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(b), change[0]); n != 1 {
			t.Fatalf("%s has %q %d times", file, change[0], n)
		}
		changed := filepath.Join(dir, strings.ReplaceAll(file, "/", "-"))
		if err := os.WriteFile(changed, []byte(strings.Replace(string(b), change[0], change[1], 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[path] = changed
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, b, 0o644); err != nil {
		t.Fatal(err)
	}
	path, err := build("faultgraft-"+v.Name, func(path string) *exec.Cmd {
		cmd := exec.Command("go", "build", "-overlay", list, "-ldflags", "-X main.version="+v.Name, "-o", path, "github.com/faultgraft/faultgraft/cmd/faultgraft")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		return cmd
	})
	if err != nil {
		t.Fatal(fmt.Errorf("build version %s: %w", v.Name, err))
	}
	return path
}
