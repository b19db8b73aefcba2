package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/spf13/cobra"
)

// validRule is what validate prints of a rule with -o json and -o yaml.
type validRule struct {
	policy.Rule
	// Canonical is the rule as faultgraft would write it, with what the author left out.
	Canonical string           `json:"canonical"`
	GraftPath string           `json:"graftPath"`
	Meaning   []policy.Meaning `json:"meaning"`
}

func (r validRule) table(w io.Writer) error {
	if _, err := fmt.Fprintln(w, "ok  "+r.Canonical); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, m := range r.Meaning {
		_, _ = fmt.Fprintf(t, "    %s\t%s\n", m.Name, m.Text) // tabwriter keeps an error of the writes for Flush
	}
	return t.Flush()
}

func newValidateCommand(g *global) *cobra.Command {
	var rules []string
	c := &cobra.Command{
		Use:   "validate --rule 'RULE'...",
		Short: "Check rules and say what they mean, without touching anything",
		Long: `Check rules, and say in words what each of them does, to which operations and
files, and when. Nothing is grafted. A rule that is wrong is shown with the place
of the mistake and a way out, and the exit status is not 0.

A rule is "io" and fields NAME=VALUE:
  waits       latency cap hang throttle burst
  actions     error short corrupt torn lost nospace quota attr
  operations  op=read+write, or a group: data, meta, sync, all
  filters     path exclude comm exe uid pid offset size
  trigger     p after every times nth afterBytes delay active idle ttl seed
docs/faults.md has an example of each, docs/rules.md the grammar.`,
		Example: `  faultgraft validate --rule 'io error=EIO op=fsync path=/data/** p=5%'
  faultgraft validate -o json --rule 'io latency=pareto(10ms,1.5) cap=1s op=read path=/data/**'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			if len(rules) == 0 {
				return errors.New("give a rule with --rule, for instance --rule 'io error=EIO op=fsync path=/data/**'")
			}
			var errs []error
			valid := []validRule{}
			for _, text := range rules {
				r, err := policy.ParseRule("rule", text, policy.Defaults{})
				if err != nil {
					errs = append(errs, detailed(err))
					continue
				}
				v := validRule{Rule: r, Canonical: r.String(), GraftPath: policy.GraftPath(r.IO.Path), Meaning: r.Explain()}
				valid = append(valid, v)
				if g.output == "table" {
					if err := v.table(c.OutOrStdout()); err != nil {
						return err
					}
				}
			}
			if g.output != "table" {
				errs = append(errs, g.print(c.OutOrStdout(), valid))
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().StringArrayVar(&rules, "rule", nil, "a rule to check; may be repeated")
	g.outputFlag(c)
	return c
}
