package main

import (
	"errors"
	"fmt"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/spf13/cobra"
)

func newPurgeCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "purge",
		Short: "Leave nothing behind: end all faults and remove the state directory",
		Long: `Take every layer off, end every kernel fault, also those that outlive their agent, and
remove the state directory with the event log, the audit log and the policies. It is for
after the agent was stopped, before faultgraft is uninstalled; while an agent runs it
refuses. The configuration stays, and so does what lies outside the state directory.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := plugin.NewClient(g.stateDir).Health(c.Context())
			if err == nil {
				return fmt.Errorf("the agent still runs, as process %d: stop it first (systemctl stop faultgraft; or take /opt/nri/plugins/10-faultgraft away and restart containerd)", h.PID)
			}
			if !errors.Is(err, plugin.ErrNoAgent) {
				return fmt.Errorf("whether an agent runs is not known: %w", err)
			}
			recovery := newRecoverCommand(g)
			recovery.SetArgs([]string{"--all", "--purge"})
			recovery.SetOut(c.OutOrStdout())
			recovery.SetErr(c.ErrOrStderr())
			recovery.SilenceErrors, recovery.SilenceUsage = true, true
			return recovery.ExecuteContext(c.Context())
		},
	}
}
