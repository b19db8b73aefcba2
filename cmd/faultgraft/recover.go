package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

func newRecoverCommand(g *global) *cobra.Command {
	var all, purge bool
	c := &cobra.Command{
		Use:   "recover (ID... | --all)",
		Short: "Take layers off and end kernel faults: the target is as it was before",
		RunE: func(c *cobra.Command, ids []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			if all == (len(ids) > 0) {
				return errors.New("name grafts or kernel faults (see faultgraft ps), or say --all")
			}
			if purge && !all {
				return errors.New("--purge goes with --all")
			}
			var errs []error
			if all {
				faults, err := g.kernelFaults(c.Context())
				errs = append(errs, err)
				for _, f := range faults {
					ids = append(ids, f.ID)
				}
				grafts, err := g.keepers().List(c.Context())
				errs = append(errs, err)
				for _, gr := range grafts {
					ids = append(ids, gr.ID)
				}
			}
			done := []any{}
			for _, id := range ids {
				if plugin.IsKernelFault(id) {
					f, err := g.endKernel(c.Context(), id)
					if all && errors.Is(err, plugin.ErrNoKernelFault) {
						continue
					}
					if err != nil {
						errs = append(errs, err)
						continue
					}
					done = append(done, f)
					if g.output == "table" {
						errs = append(errs, kernelEnded(c.OutOrStdout(), f))
					}
					continue
				}
				gr, err := g.keepers().Ungraft(c.Context(), id)
				if all && errors.Is(err, keeper.ErrNoGraft) {
					continue // it ended by itself meanwhile
				}
				if err != nil {
					errs = append(errs, err)
					continue
				}
				done = append(done, gr)
				if g.output == "table" {
					errs = append(errs, recovered(c.OutOrStdout(), gr))
				}
			}
			if g.output != "table" {
				errs = append(errs, g.print(c.OutOrStdout(), done))
			}
			if err := errors.Join(errs...); err != nil || !purge {
				return err
			}
			return g.purge(c.Context())
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all grafts and kernel faults on this node")
	c.Flags().BoolVar(&purge, "purge", false, "with --all: remove the state directory too, event log included")
	g.outputFlag(c)
	return c
}

// purge waits for the keepers to end and removes what they left.
func (g *global) purge(ctx context.Context) error {
	for end := time.Now().Add(10 * time.Second); ; {
		err := keeper.Purge(g.stateDir)
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			left, lerr := g.keepers().List(ctx)
			for _, gr := range left {
				if gr.State == keeper.StateLingering {
					err = fmt.Errorf("%w; graft %s: %s", err, gr.ID, gr.Reason)
				}
			}
			return errors.Join(err, lerr)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func recovered(w io.Writer, g keeper.Graft) error {
	var fired uint64
	for _, r := range g.Rules {
		fired += r.Fired
	}
	_, err := fmt.Fprintf(w, "recovered %s: %s of %s is as before (%s injected, stopped for %.1f ms)\n", g.ID, g.Path, displayName(g.Target), count(int(fired), "fault"), g.PauseMs)
	if err == nil && g.Report != nil {
		for _, s := range g.Report.Skipped {
			_, err = fmt.Fprintf(w, "  still on the layer: %s: %s\n", &s.Object, s.Reason)
		}
		for _, s := range g.Report.Kept {
			_, err = fmt.Fprintf(w, "  goes on as it is: %s: %s\n", &s.Object, s.Reason)
		}
		if err == nil && g.State == keeper.StateLingering {
			_, err = fmt.Fprintf(w, "  lingers: %s\n", g.Reason)
		}
		for _, n := range g.Report.Notes {
			_, err = fmt.Fprintf(w, "  note: %s\n", n)
		}
	}
	return err
}
