package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/policies"
	"github.com/spf13/cobra"
)

// maxManifest bounds a file of policies, bytes; the agent takes no more.
const maxManifest = 4 << 20

func newApplyCommand(g *global) *cobra.Command {
	var files []string
	var dry bool
	c := &cobra.Command{
		Use:   "apply -f FILE [-f FILE...]",
		Short: "Apply policies: which containers get which faults, when, and what ends them",
		Long: `Apply the policies of FILE ("-" is standard input): FaultPolicies, and Chaos Mesh's
IOChaos and KernelChaos as they are. All of them are applied, or none: every file is
checked first. A policy that is applied once more and asks for the same goes on; one
that asks for something else begins a new run.

With --dry-run nothing is applied: it prints which containers would get which rules.
The agent of this node (faultgraft plugin) keeps the policies, over its own restarts too.`,
		Example: `  faultgraft apply -f pg-wal.yaml
  faultgraft apply -f - --dry-run < pg-wal.yaml`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			if len(files) == 0 {
				return errors.New("name a file with -f, or - for standard input")
			}
			return g.apply(c, files, dry)
		},
	}
	c.Flags().StringSliceVarP(&files, "filename", "f", nil, "file with policies; may be repeated; - is standard input")
	c.Flags().BoolVar(&dry, "dry-run", false, "apply nothing: print targets and rules")
	g.outputFlag(c)
	return c
}

func (g *global) apply(c *cobra.Command, files []string, dry bool) error {
	client := plugin.NewClient(g.stateDir)
	texts := make([][]byte, 0, len(files))
	for _, f := range files {
		text, err := readManifest(c.InOrStdin(), f)
		if err != nil {
			return err
		}
		texts = append(texts, text)
	}
	all := []policies.Result{}
	var errs []error
	each := func(dry bool) {
		all = all[:0]
		for i, f := range files {
			ctx, cancel := context.WithTimeout(c.Context(), agentTimeout)
			results, err := client.ApplyPolicies(ctx, f, texts[i], dry)
			cancel()
			if errs = append(errs, err); errors.Is(err, plugin.ErrNoAgent) {
				return // once is enough
			}
			all = append(all, results...)
		}
	}
	if dry || len(files) > 1 {
		each(true)
	}
	if err := errors.Join(errs...); err != nil {
		return err // nothing was applied
	}
	if !dry {
		each(false)
	}
	if g.output != "table" {
		return errors.Join(append(errs, g.print(c.OutOrStdout(), all))...)
	}
	for _, r := range all {
		errs = append(errs, applied(c.OutOrStdout(), r, dry))
	}
	return errors.Join(errs...)
}

func readManifest(stdin io.Reader, file string) ([]byte, error) {
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // only read from
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxManifest+1))
	if err == nil && len(text) > maxManifest {
		err = fmt.Errorf("more than %d bytes", maxManifest)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return text, nil
}

// applied says what became of a policy, or would.
func applied(w io.Writer, r policies.Result, dry bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "policy %s %s", r.Name, r.Action)
	if dry {
		b.Reset()
		fmt.Fprintf(&b, "policy %s would be %s; nothing was done", r.Name, r.Action)
	}
	fmt.Fprintf(&b, ": %d of %d matching containers, seed %d\n", r.Selected, r.Matching, r.Seed)
	if dry || r.DryRun {
		for _, rule := range r.Rules {
			fmt.Fprintf(&b, "  rule %s: %s (ttl %s)\n", rule.Name, rule.Text, rule.Trigger.TTL)
		}
		for _, t := range r.Targets {
			fmt.Fprintf(&b, "  target %s: %s\n", targetName(t), t.Key)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func targetName(t policies.Target) string {
	if t.Pod != "" {
		return t.PodNamespace + "/" + t.Pod + "/" + t.Name
	}
	return t.Name
}

// policyVerb is a command that does one thing to policies, by their names.
func (g *global) policyVerb(use, short, long, done string, do func(*plugin.Client, context.Context, string) (policies.Status, error)) *cobra.Command {
	c := &cobra.Command{
		Use: use + " NAME...", Short: short, Long: long, Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, names []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			all := []policies.Status{}
			var errs []error
			for _, name := range names {
				ctx, cancel := context.WithTimeout(c.Context(), agentTimeout)
				st, err := do(plugin.NewClient(g.stateDir), ctx, name)
				cancel()
				errs = append(errs, err)
				if err != nil {
					continue
				}
				all = append(all, st)
				if g.output == "table" {
					_, err = fmt.Fprintf(c.OutOrStdout(), "policy %s %s\n", name, done)
					errs = append(errs, err)
				}
			}
			if g.output != "table" {
				errs = append(errs, g.print(c.OutOrStdout(), all))
			}
			return errors.Join(errs...)
		},
	}
	g.outputFlag(c)
	return c
}

func newDeleteCommand(g *global) *cobra.Command {
	return g.policyVerb("delete", "Delete policies: their faults are taken off", "", "deleted", (*plugin.Client).DeletePolicy)
}

func newPauseCommand(g *global) *cobra.Command {
	return g.policyVerb("pause", "Pause policies: their faults are taken off until they are resumed",
		"Pause policies. Their faults are taken off, and their time (ttl) stands until \"faultgraft resume\".", "paused", (*plugin.Client).PausePolicy)
}

func newResumeCommand(g *global) *cobra.Command {
	return g.policyVerb("resume", "Resume policies that were paused, or that a guard stopped",
		"Resume policies. One that was paused goes on for the time that was left; one that a guard had stopped begins anew.", "resumed", (*plugin.Client).ResumePolicy)
}

// policies asks the agent for the policies of this node; without an agent none is at work.
func (g *global) policies(ctx context.Context) ([]policies.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	all, err := plugin.NewClient(g.stateDir).Policies(ctx)
	if errors.Is(err, plugin.ErrNoAgent) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	return all, nil
}

// withTargets fills in the targets, which a list of policies has not.
func (g *global) withTargets(ctx context.Context, all []policies.Status) ([]policies.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	var errs []error
	for i, p := range all {
		st, err := plugin.NewClient(g.stateDir).Policy(ctx, p.Name)
		if errors.Is(err, plugin.ErrNoPolicy) {
			continue // deleted meanwhile
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all[i] = st
	}
	return all, errors.Join(errs...)
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Round(time.Second).String()
}
