package main

import (
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/spf13/cobra"
)

func newSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON schema of a FaultPolicy",
		Long: `Print the JSON schema of a FaultPolicy, for editors that check YAML as it is written.
It knows fields, types and fixed values; "faultgraft validate FILE" checks the rest.`,
		Example: `  faultgraft schema > faultpolicy.schema.json
  # and in the first line of a policy, for the YAML language server:
  # yaml-language-server: $schema=faultpolicy.schema.json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write(faultpolicy.Schema())
			return err
		},
	}
}
