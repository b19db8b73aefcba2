package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newManCommand writes the manual pages; make man calls it.
func newManCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages of all commands to a folder",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root.InitDefaultCompletionCmd()
			root.DisableAutoGenTag = true
			h := &doc.GenManHeader{Section: "8", Source: "faultgraft " + version, Manual: "System Administration", Date: &time.Time{}}
			if err := doc.GenManTree(root, h, args[0]); err != nil {
				return fmt.Errorf("manual pages in %s: %w", args[0], err)
			}
			return undated(args[0])
		},
	}
}

// undated takes the date of the year 1 out of the pages, which stands for none.
func undated(dir string) error {
	pages, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, p := range pages {
		name := dir + "/" + p.Name()
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(strings.Replace(string(b), `"Jan 0001"`, `""`, 1)), 0o644); err != nil {
			return err
		}
	}
	return nil
}
