package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func newReleaseCommand(g *global) *cobra.Command {
	var rule string
	c := &cobra.Command{
		Use:   "release [GRAFT [--rule NAME]]",
		Short: "Lift a stop of this node; with a graft: let operations go on that a hang rule holds",
		Long: `Without an argument, lift the stop of "faultgraft stop --all": faults can start again.

With a graft, let the operations go on that hang under the rules of a graft, as if there had been
no rule, and print how many they were. The rules stay: what comes later hangs again.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := g.checkOutput(); err != nil {
				return err
			}
			if len(args) == 0 {
				if rule != "" {
					return errors.New("--rule goes with a graft; without one, release lifts the stop of this node")
				}
				return g.releaseNode(c)
			}
			if err := refuseKernelFault(args[0], "it fails calls, and holds none"); err != nil {
				return err
			}
			r, err := g.keepers().Release(c.Context(), args[0], rule)
			if err != nil {
				return err
			}
			if g.output != "table" {
				return g.print(c.OutOrStdout(), r)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "released %s\n", count(r.Operations, "operation"))
			return err
		},
	}
	c.Flags().StringVar(&rule, "rule", "", "only what hangs under the rule of that name")
	g.outputFlag(c)
	return c
}
