package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/spf13/cobra"
)

func newUpdateCommand(g *global) *cobra.Command {
	var name string
	var c keeper.Change
	cmd := &cobra.Command{
		Use:   "update GRAFT ['RULE'...]",
		Short: "Change the rules of a graft without stopping the target",
		Long: `Give a graft other rules. The layer stays in place and no I/O waits for the change.
A rule that the graft has already, by its text, goes on as it is: with its counters,
its seed and its clock. The others begin, or end, at once.

Only files that the kernel has served by itself until now and that a new rule can
match are moved again; the processes that have them open are stopped for that, and
no others.`,
		Example: `  faultgraft update g-5b1f8a02 'io error=ENOSPC op=write' 'io latency=20ms op=read'
  faultgraft update g-5b1f8a02 --keep 'io error=EIO op=fsync times=1'
  faultgraft update g-5b1f8a02 --drop rule-2`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			id, texts := args[0], args[1:]
			if err := refuseKernelFault(id, "its rule cannot be changed in place; recover it, and inject the new rule"); err != nil {
				return err
			}
			c.Keep = c.Keep || len(c.Drop) > 0
			if len(texts) == 0 && len(c.Drop) == 0 {
				return fmt.Errorf("give the rules that the graft is to have; faultgraft recover %s takes it off", id)
			}
			now, err := g.keepers().Find(cmd.Context(), id)
			if err != nil {
				return err
			}
			if c.Rules, err = parseRules(name, now.Path, 0, texts); err != nil {
				return err
			}
			for _, r := range c.Rules {
				if r.Kernel != nil {
					return fmt.Errorf("rule %q: a graft carries out io rules only; faultgraft inject --kernel takes this one", r.Text)
				}
			}
			c.Origin = keeper.OriginUser
			gr, err := g.keepers().Update(cmd.Context(), id, c)
			if err != nil {
				return err
			}
			if g.output != "table" {
				return g.print(cmd.OutOrStdout(), gr)
			}
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), gr.ID); err != nil {
				return err
			}
			explainChange(cmd.ErrOrStderr(), gr)
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&c.Keep, "keep", false, "keep the rules that the graft has, and add these")
	f.StringSliceVar(&c.Drop, "drop", nil, "end the rule of that name and keep the others; may be repeated")
	f.StringVar(&name, "name", "rule", "name of new rules in ps and events")
	limitFlags(f, &c.Limits, "moved that a new rule can match")
	g.outputFlag(cmd)
	return cmd
}

// explainChange says what a change of rules came to.
func explainChange(w io.Writer, g keeper.Graft) {
	var b strings.Builder
	fmt.Fprintf(&b, "graft over %s of %s (pid %d) has %s", g.Path, displayName(g.Target), g.Target.PID, count(len(g.Rules), "rule"))
	if r := g.Report; r != nil && len(r.Stopped) > 0 {
		fmt.Fprintf(&b, ": %s moved again, %s", count(len(r.Swapped), "open object"), stoppedFor(len(r.Stopped), g.Pause))
	} else {
		b.WriteString(", nothing had to be stopped")
	}
	b.WriteString("\n")
	for _, r := range g.Rules {
		fmt.Fprintf(&b, "  %s: %s\n    until %s\n", r.FullName(), r.Text, r.Expires.Local().Format(time.TimeOnly))
	}
	explainReport(&b, g.Report, "not covered")
	_, _ = io.WriteString(w, b.String()) // a closed standard error is not worth failing for
}

func displayName(t keeper.Target) string {
	if t.Name != "" {
		return t.Name
	}
	return t.ID
}
