package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

var consoleBlock = regexp.MustCompile("(?ms)^```console\n(.*?)^```")

// TestQuickStart does what docs/quick-start.md says, step by step, and gets what
// the page shows; … on the page stands for anything.
func TestQuickStart(t *testing.T) {
	s := newScene(t)
	b, err := os.ReadFile("../../docs/quick-start.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.ReplaceAll(string(b), "/tmp/quick", t.TempDir())
	page = strings.ReplaceAll(page, "lab.local/busybox:1", lab.Image)
	t.Cleanup(func() { _, _ = s.lab.Nerdctl(s.ctx, "rm", "-f", "quick") }) // the page has removed it, if all went well
	file := filepath.Join(t.TempDir(), "quick.yaml")
	manifest := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindStringSubmatch(page)
	if manifest == nil {
		t.Fatal("the page has no policy")
	}
	if err := os.WriteFile(file, []byte(manifest[1]), 0o644); err != nil {
		t.Fatal(err)
	}
	page = strings.ReplaceAll(page, "-f quick.yaml", "-f "+file)
	t.Cleanup(func() { _, _ = s.lab.Faultgraft(s.ctx, "delete", "quick") }) // likewise
	steps := 0
	for _, block := range consoleBlock.FindAllStringSubmatch(page, -1) {
		for _, step := range strings.Split("\n"+strings.TrimSuffix(block[1], "\n"), "\n$ ")[1:] {
			command, want, _ := strings.Cut(step, "\n")
			out, ok := s.shows(command, want)
			// What looks only may come a moment too early after what was done.
			looks := strings.HasPrefix(command, "nerdctl exec") || strings.HasPrefix(command, "faultgraft show") || strings.HasPrefix(command, "faultgraft events")
			for end := time.Now().Add(20 * time.Second); !ok && looks && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				out, ok = s.shows(command, want)
			}
			if !ok {
				t.Fatalf("$ %s\n%s\nthe page shows\n%s", command, out, want)
			}
			steps++
		}
	}
	if steps < 10 {
		t.Errorf("the page has %d steps", steps)
	}
}

// shows runs a command in the lab and compares what it prints with the page.
func (s *scene) shows(command, want string) (string, bool) {
	s.Helper()
	cmd, err := s.lab.Command(s.ctx, "sh", "-c", command)
	if err != nil {
		s.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	return fmt.Sprintf("%s(%v)", out, err), like(want).Match(out)
}

// like gives the expression for what a page shows: blanks of any length, and anything for ….
func like(shown string) *regexp.Regexp {
	parts := strings.Split(shown, "…")
	for i, p := range parts {
		parts[i] = regexp.MustCompile(`\s+`).ReplaceAllString(regexp.QuoteMeta(p), `\s+`)
	}
	return regexp.MustCompile("(?s)" + strings.Join(parts, ".*"))
}
