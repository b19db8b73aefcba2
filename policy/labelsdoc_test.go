package policy

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestLabelsPage shows that the labels of docs/labels.md are rules, and that the
// wrong one is refused as it says.
func TestLabelsPage(t *testing.T) {
	b, err := os.ReadFile("../docs/labels.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	rows := regexp.MustCompile("(?m)^\\| .* \\| `([a-z]+\\."+regexp.QuoteMeta(Domain)+"[^`]*)` \\| `([^`]+)` \\|$").FindAllStringSubmatch(page, -1)
	inline := regexp.MustCompile(`--label (\S+)='([^']+)'`).FindAllStringSubmatch(page, -1)
	for _, m := range append(rows, inline...) {
		res := ParseLabels(Subject{Labels: map[string]string{m[1]: m[2]}, ContainerName: "db"}, Defaults{})
		if len(res.Problems) > 0 || len(res.Rules) != 1 && !res.Disabled {
			t.Errorf("%s=%s: %+v", m[1], m[2], res)
		}
	}
	if len(rows) < 5 || len(inline) < 1 {
		t.Errorf("%d rows and %d commands", len(rows), len(inline))
	}
	_, shown, _ := strings.Cut(page, "error:\n\n```\n")
	shown, _, _ = strings.Cut(shown, "\n```")
	key, text := "wal."+Domain, strings.TrimPrefix(strings.Split(shown+"\n", "\n")[1], "  ")
	res := ParseLabels(Subject{Labels: map[string]string{key: text}}, Defaults{})
	if len(res.Problems) != 1 || res.Problems[0].Detail() != shown {
		t.Errorf("%+v\nwant\n%s", res.Problems, shown)
	}
}
