package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/policy/limits"
)

// configFile is the node's configuration; optional: it need not be there, because nobody named it.
func (g *global) configFile() (file string, optional bool) {
	if g.config != "" {
		return g.config, false
	}
	return plugin.DefaultConfigFile, true
}

// limitsOfNode are those of the agent, which may have some of them from
// containerd, or of the configuration if no agent runs.
func (g *global) limitsOfNode(ctx context.Context) (limits.Limits, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := plugin.NewClient(g.stateDir).Config(ctx)
	if errors.Is(err, plugin.ErrNoAgent) {
		file, optional := g.configFile()
		c, err = plugin.LoadConfig(file, optional)
	}
	if err != nil {
		return limits.Limits{}, fmt.Errorf("what this node protects is not known: %w", err)
	}
	return c.NodeLimits(), nil
}

func newCheckConfigCommand(g *global) *cobra.Command {
	output := ""
	c := &cobra.Command{
		Use:   "check-config [FILE]",
		Short: "Check the node's configuration and print it with all defaults",
		Long: `Check a configuration file of the node agent, by default the one that the agent
would read, and print what is in force by it, with all defaults written out. If it is
wrong, all errors are printed, each with its place and the way out, and the exit status
is not 0. Nothing is changed: "systemctl reload faultgraft", or SIGHUP, has the agent
read its configuration anew.

What containerd hands to its plugin (10-faultgraft.conf) has the same fields: check it
in the same way.`,
		Example: `  faultgraft check-config
  faultgraft check-config /etc/nri/conf.d/10-faultgraft.conf`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "yaml" && output != "json" {
				return fmt.Errorf("-o %s: it is yaml or json", output)
			}
			g.output = output
			file, optional := g.configFile()
			if len(args) > 0 {
				file, optional = args[0], false
			}
			config, err := plugin.LoadConfig(file, optional)
			if err != nil {
				return err
			}
			return g.print(c.OutOrStdout(), config.Effective())
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "yaml", "yaml or json")
	return c
}
