package main

import (
	"os"
	"regexp"
	"testing"

	"github.com/faultgraft/faultgraft/plugin"
)

// TestConfigurationOfTheDocs shows that the node configuration which docs/labels.md has is one.
func TestConfigurationOfTheDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/labels.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindAllStringSubmatch(string(b), -1)
	for _, m := range blocks {
		if _, err := plugin.ParseConfig("labels.md", m[1]); err != nil {
			t.Error(err)
		}
	}
	if len(blocks) == 0 {
		t.Error("the page has no configuration")
	}
}
