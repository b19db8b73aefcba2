package main

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
)

func newRecoverCommand(g *global) *cobra.Command {
	var all, orphans, purge bool
	c := &cobra.Command{
		Use:   "recover (ID... | --all | --orphans)",
		Short: "Take layers off and end kernel faults: the target is as it was before",
		Long: `Take layers off and end kernel faults: the target is as it was before. No agent is
needed. --orphans looks for what processes left that were killed, and leaves alone what
others hold: layers that nobody serves any more (calls on them fail with ENOTCONN),
kernel faults that are over or were never armed to their end, and files in the state
directory. --all does that too.

Where a keeper was killed, another one takes its layers off. --all waits until that can be
asked (30 s at most), and --purge until no process of the state directory is left; each
says who it waited for in vain. A server whose keeper was killed may serve a layer on that
is off and still used: nothing is to be taken off there, and both say so.

A layer that nobody serves may still have a keeper that is about to take it off, also one
of another state directory: --orphans leaves it alone and says so, and --all does where
the state directory is another one. A kernel fault that outlives its agent (--outlive) and
that a running agent of another state directory armed is left alone by --all as well.`,
		RunE: func(c *cobra.Command, ids []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			switch {
			case all && orphans:
				return errors.New("--all recovers orphans too; say one of the two")
			case (all || orphans) == (len(ids) > 0):
				return errors.New("name grafts or kernel faults (see faultgraft ps), or say --all or --orphans")
			case purge && !all:
				return errors.New("--purge goes with --all")
			}
			r := recovery{g: g, c: c, lenient: all, done: []any{}}
			if all {
				ids = r.everything()
			}
			if !orphans {
				r.fail(g.direct().Recovering(c.Context(), ids, all))
			}
			for _, id := range ids {
				r.recover(id)
			}
			if all {
				r.late(ids)
			}
			if all || orphans {
				r.orphans(all)
			}
			if all {
				r.fail(g.keepers().EndIdle(c.Context()))
			}
			if g.output != "table" {
				r.fail(g.print(c.OutOrStdout(), r.done))
			}
			if err := errors.Join(r.errs...); err != nil || !purge {
				return err
			}
			return g.keepers().Purge(c.Context())
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all grafts and kernel faults on this node")
	c.Flags().BoolVar(&orphans, "orphans", false, "what was left by processes that were killed, and nothing else")
	c.Flags().BoolVar(&purge, "purge", false, "with --all: remove the state directory too, event log included")
	g.outputFlag(c)
	return c
}

// recovery is one run of the command.
type recovery struct {
	g       *global
	c       *cobra.Command
	lenient bool // what ended by itself meanwhile is no error
	done    []any
	errs    []error
}

// fail notes an error, once: a keeper that does not answer is met at each step.
func (r *recovery) fail(err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			r.fail(e)
		}
		return
	}
	if err != nil && !slices.ContainsFunc(r.errs, func(e error) bool { return e.Error() == err.Error() }) {
		r.errs = append(r.errs, err)
	}
}

// everything is the ids of all that there is.
func (r *recovery) everything() (ids []string) {
	faults, err := r.g.kernelFaults(r.c.Context())
	r.fail(err)
	for _, f := range faults {
		if dir := f.Kernel.HeldBy; dir != "" {
			_, err := fmt.Fprintf(r.c.ErrOrStderr(), "left alone: kernel fault %s (%s): the agent of the state directory %s holds it. `faultgraft recover %s`, or `recover --all` with that state directory, ends it\n", f.ID, f.Kernel.Hook, dir, f.ID)
			r.fail(err)
			continue
		}
		ids = append(ids, f.ID)
	}
	return append(ids, r.grafts()...)
}

func (r *recovery) grafts() (ids []string) {
	grafts, err := r.g.keepers().List(r.c.Context())
	r.fail(err)
	for _, gr := range grafts {
		ids = append(ids, gr.ID)
	}
	return ids
}

// late recovers what only those have who follow killed keepers, and did not listen yet.
func (r *recovery) late(done []string) {
	alone, err := r.g.keepers().AwaitFollowers(r.c.Context())
	r.fail(err)
	for _, pid := range alone {
		_, err := fmt.Fprintf(r.c.ErrOrStderr(), "lingers: process %d (server): %s\n", pid, keeper.Lingers)
		r.fail(err)
	}
	for _, id := range r.grafts() {
		if !slices.Contains(done, id) {
			r.recover(id)
		}
	}
}

func (r *recovery) recover(id string) {
	if plugin.IsKernelFault(id) {
		f, err := r.g.endKernel(r.c.Context(), id)
		if r.lenient && errors.Is(err, plugin.ErrNoKernelFault) {
			return
		}
		r.ended(f, err)
		return
	}
	gr, err := r.g.keepers().Ungraft(r.c.Context(), id)
	if r.lenient && errors.Is(err, keeper.ErrNoGraft) {
		return
	}
	if err != nil {
		r.fail(err)
		return
	}
	r.tookOff(gr)
}

func (r *recovery) ended(f plugin.KernelFault, err error) {
	if err != nil {
		r.fail(err)
		return
	}
	r.done = append(r.done, f)
	if r.g.output == "table" {
		r.fail(kernelEnded(r.c.OutOrStdout(), f))
	}
}

func (r *recovery) tookOff(gr keeper.Graft) {
	r.done = append(r.done, gr)
	if r.g.output == "table" {
		r.fail(recovered(r.c.OutOrStdout(), gr))
	}
}

// orphans takes away what processes left that were killed; own says that a layer of
// this state directory comes off also where its keeper lives.
func (r *recovery) orphans(own bool) {
	is, err := r.g.keepers().RecoverOrphans(r.c.Context(), own)
	r.fail(err)
	for _, l := range is.Left {
		_, err := fmt.Fprintln(r.c.ErrOrStderr(), l)
		r.fail(err)
	}
	for _, l := range is.Passed {
		_, err := fmt.Fprintln(r.c.ErrOrStderr(), l)
		r.fail(err)
	}
	for _, gr := range is.Off {
		r.tookOff(gr)
	}
	over, err := r.g.direct().Sweep()
	r.fail(err)
	for _, f := range over {
		r.ended(f, nil)
	}
	_, err = keeper.Sweep(r.g.stateDir)
	r.fail(err)
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
