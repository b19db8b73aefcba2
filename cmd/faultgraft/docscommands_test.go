package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	docBlock   = regexp.MustCompile("(?ms)^ *```([a-z]*)\n(.*?)^ *```")
	docCommand = regexp.MustCompile(`(?:^|[\s;&|])faultgraft ((?:[^'"\n]|'[^']*'|"[^"]*")*)`)
	docWord    = regexp.MustCompile(`(?:'[^']*'|"[^"]*"|[^\s'"])+`)
)

// TestCommandsOfTheDocs shows that every command of faultgraft in a block of
// console or sh of the documentation is one, with flags that it has.
func TestCommandsOfTheDocs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, page := range append(pages, "../../README.md") {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range docBlock.FindAllStringSubmatch(string(b), -1) {
			if block[1] != "console" && block[1] != "sh" {
				continue
			}
			text := strings.ReplaceAll(block[2], "\\\n", " ")
			for line := range strings.SplitSeq(text, "\n") {
				line, isCommand := strings.CutPrefix(strings.TrimSpace(line), "$ ")
				line, _, _ = strings.Cut(line, "  #")
				line = strings.TrimSpace(line)
				if block[1] == "console" && !isCommand {
					continue // what a command prints
				}
				for _, m := range docCommand.FindAllStringSubmatch(line, -1) {
					seen++
					checkCommand(t, filepath.Base(page), m[1])
				}
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d commands were found", seen)
	}
}

func checkCommand(t *testing.T, page, command string) {
	t.Helper()
	var args []string
	for _, w := range docWord.FindAllString(command, -1) {
		if strings.ContainsAny(w[:1], "|;>&#)") || w == "…" {
			break // the rest is the shell's
		}
		args = append(args, strings.NewReplacer("'", "", `"`, "").Replace(w))
	}
	root := newRootCommand()
	root.InitDefaultCompletionCmd(args...) // which Execute adds
	c, rest, err := root.Find(args)
	if err != nil || c == c.Root() {
		t.Errorf("%s: faultgraft %s: there is no such command (%v)", page, command, err)
		return
	}
	if err := c.ParseFlags(rest); err != nil {
		t.Errorf("%s: faultgraft %s: %v", page, command, err)
	}
}
