package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/spf13/cobra"
)

// validRule is what validate prints of a rule with -o json and -o yaml.
type validRule struct {
	policy.Rule
	// Canonical is the rule as faultgraft would write it, with what the author left out.
	Canonical string `json:"canonical"`
	// GraftPath is what a layer is put over; a kernel rule needs none.
	GraftPath string           `json:"graftPath,omitempty"`
	Meaning   []policy.Meaning `json:"meaning"`
	// Here is how this machine would carry out a kernel rule.
	Here *carrier `json:"here,omitempty"`
}

// carrier is how a kernel rule would be carried out, or why not.
type carrier struct {
	OK     bool   `json:"ok"`
	Reason string `json:"reason"`
	kernel.Resolution
}

// carry finds out how this machine would carry out a kernel rule. That it
// cannot is not the rule's fault; the error is about the rule.
func carry(r policy.Rule) (*carrier, error) {
	how, err := kernel.Check(r)
	var wrong *policy.SyntaxError
	if errors.As(err, &wrong) {
		return nil, wrong
	}
	c := &carrier{OK: err == nil, Resolution: how}
	if err != nil {
		c.Hook, c.Reason = r.Kernel.Hook.String(), err.Error()
	}
	return c, nil
}

func (c *carrier) words() string {
	if !c.OK {
		return "not on this machine: " + c.Reason
	}
	s := "by " + c.Backend + " on " + strings.Join(c.Functions, ", ")
	if c.Chain != "" {
		s += ", the call chain by " + c.Chain
	}
	if c.Note != "" {
		s += " (" + c.Note + ")"
	}
	return s
}

func (r validRule) table(w io.Writer) error {
	if _, err := fmt.Fprintln(w, "ok  "+r.Canonical); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, m := range r.Meaning {
		_, _ = fmt.Fprintf(t, "    %s\t%s\n", m.Name, m.Text) // tabwriter keeps an error of the writes for Flush
	}
	if r.Here != nil {
		_, _ = fmt.Fprintf(t, "    here\t%s\n", r.Here.words())
	}
	return t.Flush()
}

func checkRule(text string) (validRule, error) {
	r, err := policy.ParseRule("rule", text, policy.Defaults{})
	if err != nil {
		return validRule{}, err
	}
	return explained(r)
}

// explained says what a rule means, and checks a kernel rule's predicates.
func explained(r policy.Rule) (v validRule, err error) {
	v = validRule{Rule: r, Canonical: r.String(), Meaning: r.Explain()}
	if r.Kernel != nil {
		v.Here, err = carry(r)
	} else {
		v.GraftPath = policy.GraftPath(r.IO.Path)
	}
	return v, err
}

func newValidateCommand(g *global) *cobra.Command {
	var rules []string
	c := &cobra.Command{
		Use:   "validate FILE...|-|--rule 'RULE'...",
		Short: "Check policies and rules and say what they mean, without touching anything",
		Long: `Check files of FaultPolicies and of Chaos Mesh's IOChaos, KernelChaos and Schedule, or
rules. Each mistake has its file, line and column and a way out, and with one the exit
status is not 0; so it is for CI. With -o json the mistakes are under "errors".

Of rules, say in words what each of them does, to which operations and
files, and when. Nothing is grafted or loaded. A rule that is wrong is shown with the
place of the mistake and a way out, and the exit status is not 0. Of a kernel rule the
predicates are checked against the running kernel's types, and "here" says how this
machine would carry it out; that it cannot is no mistake of the rule.

A rule is "io" or "kernel" and fields NAME=VALUE. Of io rules:
  waits       latency cap hang throttle burst
  actions     error short corrupt torn lost nospace quota attr
  operations  op=read+write, or a group: data, meta, sync, all
  filters     path exclude comm exe uid pid offset size
  trigger     p after every times nth afterBytes delay active idle ttl seed
Of kernel rules:
  what fails  hook=slab, page, bio, function:NAME, syscall:NAME or lsm:NAME; error
  filters     within comm uid pid
  how         backend stack
  trigger     the same but afterBytes
docs/faults.md has an example of each for io, docs/kernel.md for kernel, docs/rules.md
the grammar.`,
		Example: `  faultgraft validate policies/*.yaml
  faultgraft validate --rule 'io error=EIO op=fsync path=/data/** p=5%'
  faultgraft validate --rule 'kernel hook=syscall:mount(flags & 1) error=EPERM times=3'
  faultgraft validate -o json --rule 'io latency=pareto(10ms,1.5) cap=1s op=read path=/data/**'`,
		RunE: func(c *cobra.Command, files []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			switch {
			case len(files) > 0 && len(rules) > 0:
				return errors.New("give files or --rule, not both")
			case len(files) > 0:
				return validateFiles(c, g, files)
			case len(rules) == 0:
				return errors.New("give files, or a rule with --rule, for instance --rule 'io error=EIO op=fsync path=/data/**'")
			}
			var errs []error
			valid := []validRule{}
			for _, text := range rules {
				v, err := checkRule(text)
				if err != nil {
					errs = append(errs, detailed(err))
					continue
				}
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
