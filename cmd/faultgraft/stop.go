package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/wire"
	"github.com/spf13/cobra"
)

func newStopCommand(g *global) *cobra.Command {
	var all bool
	var reason string
	c := &cobra.Command{
		Use:   "stop --all --reason REASON",
		Short: "End all faults of this node at once, and let none start until it is released",
		Long: `End all faults on this node: grafts and kernel faults, from labels, policies and
people alike. No fault starts until "faultgraft release"; whoever tries is told the
reason. It works with and without a node agent, and holds over a restart of one.

After the release, what labels and policies ask for is applied again if its time (ttl)
is not up: the clock has gone on. What a person injected is not.

A keeper that does not answer (stopped, hung) is killed after some seconds, and its
layers are taken off without it; the output says so.`,
		Example: `  faultgraft stop --all --reason 'incident 4711'
  faultgraft release`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			if !all {
				return errors.New("say --all: a stop is of all faults on this node; see faultgraft recover and faultgraft pause for some of them")
			}
			if reason == "" {
				return errors.New("say why with --reason: everybody who wants to start a fault is told")
			}
			r, err := g.stopAll(c.Context(), reason)
			if err != nil && r.Since.IsZero() {
				return err
			}
			if g.output != "table" {
				err = errors.Join(g.print(c.OutOrStdout(), r), err)
			} else {
				err = errors.Join(stopped(c.OutOrStdout(), r), err)
			}
			if err == nil && len(r.Failed) > 0 {
				err = fmt.Errorf("%s could not be taken off yet; see faultgraft ps", count(len(r.Failed), "fault"))
			}
			return err
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all faults on this node")
	c.Flags().StringVar(&reason, "reason", "", "why")
	g.outputFlag(c)
	return c
}

// stopAll asks the agent. Without one, or with one that does not answer, it is done from here.
func (g *global) stopAll(ctx context.Context, reason string) (plugin.StopReport, error) {
	asked, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	r, err := plugin.NewClient(g.stateDir).Stop(asked, reason)
	if err == nil {
		return r, nil
	}
	direct, derr := g.direct().Stop(ctx, reason, wire.Self())
	if errors.Is(err, plugin.ErrNoAgent) {
		return direct, derr
	}
	return direct, errors.Join(fmt.Errorf("the agent did not answer; grafts were taken off without it, kernel faults that it holds may be left: %w", err), derr)
}

func stopped(w io.Writer, r plugin.StopReport) error {
	_, err := fmt.Fprintf(w, "stopped: %s were taken off in %.0f ms; none starts until `faultgraft release`\n", count(len(r.Reverted), "fault"), r.TookMs)
	for _, f := range r.Forced {
		if err == nil && f.State != keeper.StateFailed {
			_, err = fmt.Fprintf(w, "  by force: %s of %s: %s\n", f.ID, displayName(f.Target), f.Reason)
		}
	}
	for _, f := range r.Failed {
		if err == nil {
			_, err = fmt.Fprintf(w, "  not yet: %s of %s: %s\n", f.ID, displayName(f.Target), f.Reason)
		}
	}
	if err == nil && r.Warning != "" {
		_, err = fmt.Fprintf(w, "  warning: %s\n", r.Warning)
	}
	return err
}

// releaseNode lifts a stop.
func (g *global) releaseNode(c *cobra.Command) error {
	ctx, cancel := context.WithTimeout(c.Context(), agentTimeout)
	defer cancel()
	was, err := plugin.NewClient(g.stateDir).Release(ctx)
	if errors.Is(err, plugin.ErrNoAgent) {
		var found *keeper.Stopped
		if found, err = g.direct().Release(wire.Self()); err == nil {
			was = *found
		}
	}
	if err != nil {
		return err
	}
	if g.output != "table" {
		return g.print(c.OutOrStdout(), was)
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "released: faults can start again (it was stopped since %s: %s)\n", was.Since.Local().Format(time.DateTime), was.Reason)
	return err
}
