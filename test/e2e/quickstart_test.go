package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"

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
	steps := 0
	for _, block := range consoleBlock.FindAllStringSubmatch(page, -1) {
		for _, step := range strings.Split("\n"+strings.TrimSuffix(block[1], "\n"), "\n$ ")[1:] {
			command, want, _ := strings.Cut(step, "\n")
			cmd, err := s.lab.Command(s.ctx, "sh", "-c", command)
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.CombinedOutput()
			if !like(want).Match(out) {
				t.Fatalf("$ %s\n%s%v\nthe page shows\n%s", command, out, err, want)
			}
			steps++
		}
	}
	if steps < 10 {
		t.Errorf("the page has %d steps", steps)
	}
}

// like gives the expression for what a page shows: blanks of any length, and anything for ….
func like(shown string) *regexp.Regexp {
	parts := strings.Split(shown, "…")
	for i, p := range parts {
		parts[i] = regexp.MustCompile(`\s+`).ReplaceAllString(regexp.QuoteMeta(p), `\s+`)
	}
	return regexp.MustCompile("(?s)" + strings.Join(parts, ".*"))
}
