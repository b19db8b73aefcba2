package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

func newEventsCommand(g *global) *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:   "events",
		Short: "Print what happened: grafts, kernel faults, and every injected fault",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			w := c.OutOrStdout()
			return keeper.ReadEvents(c.Context(), g.stateDir, follow, func(e keeper.Event) error {
				if g.output != "table" {
					return json.NewEncoder(w).Encode(e)
				}
				_, err := fmt.Fprintln(w, eventLine(e))
				return err
			})
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing what happens")
	c.Flags().StringVarP(&g.output, "output", "o", "table", "table or json (one object a line)")
	return c
}

func eventLine(e keeper.Event) string {
	who := e.Name
	if who == "" {
		who = e.Target
	}
	s := fmt.Sprintf("%s  %-8s %s %s", e.Time.Local().Format("15:04:05.000000"), e.Type, e.Graft, who)
	switch {
	case e.Type == keeper.EventFault && e.Hook != "":
		return s + kernelOutcome(e)
	case e.Type == keeper.EventFault:
		s += fmt.Sprintf("  %s #%d: %s %s", policy.FullName(e.Policy, e.Rule), e.N, e.Op, e.Path)
		if e.Size > 0 {
			s += fmt.Sprintf(" [%d+%d]", e.Offset, e.Size)
		}
		s += fmt.Sprintf(" by thread %d", e.PID)
		s += outcome(e)
		if e.LatencyMs > 0 {
			s += fmt.Sprintf(" delayed %.3g ms", e.LatencyMs)
			if e.Cut {
				s += " (cut)"
			}
		}
		if e.Errno != "" {
			s += " -> " + e.Errno
		}
		return s
	case e.Type == keeper.EventPolicy:
		s = fmt.Sprintf("%s  %-8s %s", e.Time.Local().Format("15:04:05.000000"), e.Type, strings.TrimSpace(e.Policy+" "+e.Action))
		if e.Run > 0 {
			s += fmt.Sprintf("  run %d", e.Run)
		}
		if e.Who != "" {
			s += "  (" + e.Who + ")"
		}
		if e.Message != "" {
			s += "  " + e.Message
		}
		return s
	}
	if e.Path != "" {
		s += "  " + e.Path
	}
	if e.Hook != "" {
		s += fmt.Sprintf("  kernel %s (%s)", e.Hook, e.Backend)
	}
	if e.By != "" {
		s += "  by " + string(e.By)
	}
	if e.Who != "" {
		s += "  (" + e.Who + ")"
	}
	if e.PauseMs > 0 {
		s += fmt.Sprintf("  paused %.1f ms", e.PauseMs)
	}
	if e.Message != "" {
		s += "  " + e.Message
	}
	return s
}

// outcome is what became of the operation, as far as latency and errno do not tell it.
func outcome(e keeper.Event) string {
	switch e.Action {
	case "", "error", "latency":
		return ""
	case "short", "torn", "nospace", "quota":
		if e.Bytes == 0 && e.Action != "torn" {
			break // refused: the errno tells
		}
		return fmt.Sprintf(" %s: %d bytes", e.Action, e.Bytes)
	case "corrupt":
		var n int64
		for _, p := range e.Places {
			n += p.Size
		}
		return fmt.Sprintf(" corrupt: %d bytes in %d places", n, len(e.Places))
	}
	return " " + e.Action
}
