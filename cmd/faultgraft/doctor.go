package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/faultgraft/faultgraft/kernel"
	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/spf13/cobra"
)

// doctorReport is what doctor prints with -o json and -o yaml.
type doctorReport struct {
	Checks []graft.Check    `json:"checks"`
	Kernel []kernel.Backend `json:"kernel"`
}

func (r doctorReport) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	// tabwriter keeps an error of the writes for Flush
	for _, k := range r.Checks {
		state := "ok"
		if !k.OK && k.Required {
			state = "MISSING"
		} else if !k.OK {
			state = "no"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", state, k.Name, k.Detail)
		if !k.OK && k.Fix != "" {
			_, _ = fmt.Fprintf(t, "\t\tfix: %s\n", k.Fix)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w, "\nkernel faults: hook points and backends (`faultgraft doctor functions` lists what hook=function:NAME can fail)"); err != nil {
		return err
	}
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, b := range r.Kernel {
		state, detail := "ok", b.Target
		if !b.OK {
			state, detail = "no", b.Reason
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", state, b.Hook, b.Name, detail)
	}
	return t.Flush()
}

func newDoctorCommand(g *global) *cobra.Command {
	var nriSocket string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what works on this machine, and why the rest does not",
		Long: `Say what works on this machine, why the rest does not, and what to do about it: what
grafts and kernel faults need of the kernel, containerd and NRI, the agent with its
connections and time-outs, the state directory, the runc wrapper. Nothing is changed.

The exit status is 1 if something is MISSING without which faultgraft cannot graft here;
what says "no" costs a part, or is not wanted, and the exit status is 0.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			r := doctorReport{Checks: graft.Doctor(), Kernel: kernel.Probe()}
			r.Checks = append(r.Checks, plugin.CheckNode(c.Context(), plugin.NodeCheckOptions{
				StateDir: g.stateDir, ContainerdAddress: g.containerd, NRISocket: nriSocket, Version: version,
			})...)
			failed := 0
			for _, k := range r.Checks {
				if k.Required && !k.OK {
					failed++
				}
			}
			var err error
			if g.output == "table" {
				err = r.table(c.OutOrStdout())
			} else {
				err = g.print(c.OutOrStdout(), r)
			}
			if failed > 0 {
				err = errors.Join(err, fmt.Errorf("%s missing: faultgraft cannot graft here", count(failed, "requirement")))
			}
			return err
		},
	}
	g.outputFlag(c)
	c.Flags().StringVar(&g.containerd, "containerd-address", os.Getenv("CONTAINERD_ADDRESS"), "containerd's socket (env CONTAINERD_ADDRESS; default "+plugin.DefaultContainerdAddress+")")
	c.Flags().StringVar(&nriSocket, "nri-socket", "", "NRI's socket (default "+plugin.DefaultNRISocket+")")
	c.AddCommand(newDoctorFunctionsCommand(g))
	return c
}

func newDoctorFunctionsCommand(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "functions [PART]",
		Short: "List the kernel functions that hook=function:NAME can fail here",
		Long: `List the kernel functions that a rule with hook=function:NAME can fail on this
kernel: those of its error-injection list; with PART those that have it in their name.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			names, err := kernel.Functions()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				names = slices.DeleteFunc(names, func(n string) bool { return !strings.Contains(n, args[0]) })
			}
			if g.output != "table" {
				return g.print(c.OutOrStdout(), names)
			}
			for _, n := range names {
				if _, err := fmt.Fprintln(c.OutOrStdout(), n); err != nil {
					return err
				}
			}
			return nil
		},
	}
	g.outputFlag(c)
	return c
}
