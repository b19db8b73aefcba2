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

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/plugin/policies"
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
--policies it has the policies only.

A keeper that does not answer, and a server whose keeper was killed and for which no other
one listens after 10 s, are named on standard error, and the status is 1: what they
have is missing in the list.`,
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
			grafts, err := g.listGrafts(c.Context())
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

// listGrafts lists the grafts of all keepers. The error names those of whose grafts nothing is known.
func (g *global) listGrafts(ctx context.Context) ([]keeper.Graft, error) {
	unheard := g.keepers().Unheard(ctx)
	grafts, err := g.keepers().List(ctx)
	if grafts == nil {
		return nil, err // it is not known which keepers there are
	}
	return grafts, errors.Join(err, unheard)
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
		if g.Takeovers > 0 {
			if _, err := fmt.Fprintf(w, "%s: its server died and was replaced %s; see faultgraft events\n", g.ID, times(g.Takeovers)); err != nil {
				return err
			}
		}
	}
	return nil
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
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
