package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

func (g *global) checkOutput() error {
	switch g.output {
	case "table", "json", "yaml":
		return nil
	}
	return fmt.Errorf("-o %s: it is table, json or yaml", g.output)
}

// print writes v as JSON or YAML.
func (g *global) print(w io.Writer, v any) error {
	var b []byte
	var err error
	if g.output == "yaml" {
		b, err = yaml.Marshal(v)
	} else {
		b, err = json.MarshalIndent(v, "", "  ")
		b = append(b, '\n')
	}
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

func newPsCommand(g *global) *cobra.Command {
	var onlyPolicies bool
	c := &cobra.Command{
		Use:   "ps",
		Short: "List grafts, kernel faults and policies, and what they did",
		Long: `List the grafts and kernel faults on this node, with how often each rule matched and
fired, and the containers whose labels were refused, with the reason; then the
policies with their targets. With -o json or yaml the list has the faults only; with
--policies it has the policies only.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			known, perr := g.policies(c.Context())
			if perr == nil && (onlyPolicies || g.output == "table") {
				known, perr = g.withTargets(c.Context(), known)
			}
			if onlyPolicies && g.output != "table" {
				return errors.Join(g.print(c.OutOrStdout(), append([]policies.Status{}, known...)), perr)
			}
			if onlyPolicies {
				return errors.Join(printPolicies(c.OutOrStdout(), known), perr)
			}
			grafts, err := g.keepers().List(c.Context())
			faults, kerr := g.kernelFaults(c.Context())
			refused, rerr := g.refused(c.Context())
			err = errors.Join(err, kerr, rerr)
			if g.output != "table" {
				return errors.Join(g.print(c.OutOrStdout(), listed(grafts, faults, refused)), err)
			}
			for _, f := range faults {
				grafts = append(grafts, asGraft(f))
			}
			err = errors.Join(printGrafts(c.OutOrStdout(), append(grafts, refused...)), err, perr)
			if len(known) > 0 {
				_, werr := fmt.Fprintln(c.OutOrStdout())
				err = errors.Join(err, werr, printPolicies(c.OutOrStdout(), known))
			}
			return errors.Join(err, g.sayStopped(c.OutOrStdout()))
		},
	}
	c.Flags().BoolVar(&onlyPolicies, "policies", false, "list the policies and their targets, not the faults")
	g.outputFlag(c)
	return c
}

// sayStopped adds that the node is stopped, if it is.
func (g *global) sayStopped(w io.Writer) error {
	s, err := keeper.ReadStopped(g.stateDir)
	if err != nil || s == nil {
		return err
	}
	_, err = fmt.Fprintln(w, s.Err())
	return err
}

// listed is one list of all there is: kernel faults have the fields of grafts, and `kernel` instead of `path`.
func listed(grafts []keeper.Graft, faults []plugin.KernelFault, refused []keeper.Graft) []any {
	all := []any{}
	for _, gr := range grafts {
		all = append(all, gr)
	}
	for _, f := range faults {
		all = append(all, f)
	}
	for _, gr := range refused {
		all = append(all, gr)
	}
	return all
}

// refused asks the node agent, if there is one, for containers that have no graft though their labels ask for one.
func (g *global) refused(ctx context.Context) ([]keeper.Graft, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	containers, warning, err := plugin.NewClient(g.stateDir).Containers(ctx)
	if errors.Is(err, plugin.ErrNoAgent) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	if warning != "" {
		err = errors.New(warning)
	}
	var out []keeper.Graft
	for _, c := range containers {
		switch c.State {
		case plugin.StateRefused, plugin.StateFailed, plugin.StatePending:
		default:
			if len(c.Problems) == 0 {
				continue
			}
		}
		if c.State == plugin.StatePending && c.PID == 0 {
			continue
		}
		reason := strings.Join(append(c.Problems, c.Reason), "; ")
		out = append(out, keeper.Graft{
			ID: "-", Target: keeper.Target{ID: c.ID, Name: c.Name, Namespace: c.Namespace, PID: c.PID},
			State: keeper.State(c.State), Reason: strings.TrimSuffix(reason, "; "), Since: c.Since, Rules: []keeper.RuleStatus{},
		})
	}
	return out, err
}

func printGrafts(w io.Writer, grafts []keeper.Graft) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) {
		_, _ = fmt.Fprintf(t, format, args...) // tabwriter keeps the error for Flush
	}
	line("ID\tTARGET\tPID\tPATH\tSTATE\tRULE\tMATCHED\tFIRED\tENDS IN\n")
	for _, g := range grafts {
		name := displayName(g.Target)
		path := g.Path
		if path == "" {
			path = "-"
		}
		state := string(g.State)
		if len(g.Rules) == 0 {
			line("%s\t%s\t%d\t%s\t%s\t-\t-\t-\t-\n", g.ID, name, g.Target.PID, path, state)
		}
		for i, r := range g.Rules {
			if i == 0 {
				line("%s\t%s\t%d\t%s\t%s\t", g.ID, name, g.Target.PID, path, state)
			} else {
				line("\t\t\t\t\t")
			}
			left := "ended"
			if d := time.Until(r.Expires); d > 0 && !r.Expired {
				left = d.Round(time.Second).String()
			}
			line("%s\t%d\t%d\t%s\n", r.FullName(), r.Matched, r.Fired, left)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, g := range grafts {
		if g.Reason != "" {
			if _, err := fmt.Fprintf(w, "%s %s: %s\n", g.Target.ID, g.State, g.Reason); err != nil {
				return err
			}
		}
	}
	return nil
}

func newShowCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "show (ID | POLICY)",
		Short: "Show one graft, kernel fault or policy in full",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if g.output == "table" {
				g.output = "yaml"
			}
			if err := g.checkOutput(); err != nil {
				return err
			}
			if plugin.IsKernelFault(args[0]) {
				return g.showKernel(c, args[0])
			}
			gr, err := g.keepers().Find(c.Context(), args[0])
			if errors.Is(err, keeper.ErrNoGraft) {
				ctx, cancel := context.WithTimeout(c.Context(), agentTimeout)
				defer cancel()
				switch st, perr := plugin.NewClient(g.stateDir).Policy(ctx, args[0]); {
				case perr == nil:
					return g.print(c.OutOrStdout(), st)
				case !errors.Is(perr, plugin.ErrNoPolicy) && !errors.Is(perr, plugin.ErrNoAgent):
					return perr
				}
				return fmt.Errorf("no graft and no policy %s (see faultgraft ps)", args[0])
			}
			if err != nil {
				return err
			}
			return g.print(c.OutOrStdout(), gr)
		},
	}
	c.Flags().StringVarP(&g.output, "output", "o", "yaml", "json or yaml")
	return c
}

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
