package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/faultgraft/faultgraft/plugin/policies"
)

// printPolicies is the table of policies, each with its targets below it.
func printPolicies(w io.Writer, all []policies.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(cells ...string) {
		_, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) // tabwriter keeps the error for Flush
	}
	line("POLICY", "TARGET", "STATE", "SINCE", "PAUSE", "HITS", "ENDS IN", "NEXT")
	for _, p := range all {
		left, next := "-", "-"
		if p.Left > 0 {
			left = p.Left.String()
		}
		if !p.Next.IsZero() {
			next = p.Next.Local().Format(time.DateTime)
		}
		state := string(p.Phase)
		line(p.Name, fmt.Sprintf("%d of %d%s", p.Selected, p.Matching, stateCounts(p.States)), state, ago(p.Since), "-", fmt.Sprint(p.Hits), left, next)
		for _, one := range p.Targets {
			line("", targetName(one.Target), string(one.State), ago(one.Since), fmt.Sprintf("%.1f ms", one.PauseMS), fmt.Sprint(one.Hits), "", "")
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, p := range all {
		if p.Reason != "" {
			if _, err := fmt.Fprintf(w, "policy %s %s: %s\n", p.Name, p.Phase, p.Reason); err != nil {
				return err
			}
		}
		for _, one := range p.Targets {
			if one.Reason == "" {
				continue
			}
			if _, err := fmt.Fprintf(w, "policy %s in %s %s: %s\n", p.Name, targetName(one.Target), one.State, one.Reason); err != nil {
				return err
			}
		}
	}
	return nil
}

// stateCounts lists how many targets are in which state.
func stateCounts(states map[policies.TargetState]int) string {
	var parts []string
	for _, s := range slices.Sorted(maps.Keys(states)) {
		parts = append(parts, fmt.Sprintf("%d %s", states[s], s))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
