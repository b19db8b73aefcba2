package main

import (
	"os"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/spf13/cobra"
)

// global are the flags that all commands share.
type global struct {
	stateDir   string
	config     string
	output     string
	containerd string
	namespaces []string
}

func (g *global) keepers() *keeper.Client { return &keeper.Client{StateDir: g.stateDir} }

func newRootCommand() *cobra.Command {
	g := &global{}
	root := &cobra.Command{
		Use:   "faultgraft",
		Short: "Attach I/O faults to containers that are already running",
		Long: `faultgraft grafts a fault layer over a path of a running container or process
tree, moves the files that are open there onto it, and takes it off again. The
target is not restarted and holds the same descriptors before, during and after.
On kernels that can carry it, it also fails calls of the kernel in a container's cgroup.
Labels of containers and policies say what a node agent (faultgraft plugin) puts where.`,
		Example: `  faultgraft inject pg --path /var/lib/postgresql 'io error=EIO op=fsync p=5% ttl=1m'
  faultgraft inject --pid 4711 --path /data 'io error=ENOSPC op=write'
  faultgraft apply -f pg-wal.yaml
  faultgraft ps
  faultgraft events -f
  faultgraft recover --all`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	f := root.PersistentFlags()
	f.StringVar(&g.stateDir, "state-dir", envOr("FAULTGRAFT_STATE", keeper.DefaultStateDir), "where keepers and the event log live (env FAULTGRAFT_STATE)")
	f.StringVar(&g.config, "config", os.Getenv("FAULTGRAFT_CONFIG"), "the node's configuration (env FAULTGRAFT_CONFIG; default "+plugin.DefaultConfigFile+", if it is there)")
	root.AddCommand(
		newInjectCommand(g), newUpdateCommand(g), newReleaseCommand(g), newStopCommand(g),
		newApplyCommand(g), newDeleteCommand(g), newPauseCommand(g), newResumeCommand(g), newPsCommand(g), newShowCommand(g), newEventsCommand(g), newRecoverCommand(g),
		newValidateCommand(g), newSchemaCommand(), newDoctorCommand(g), newPluginCommand(g), newCheckConfigCommand(g), newHookCommand(g), newRuncCommand(), newCDICommand(g), newPurgeCommand(g),
		newKeeperCommand(g), newServerCommand(g), newSwapCommand(),
	)
	root.AddCommand(newTopCommand(g), newManCommand(root))
	completeArguments(g, root)
	return root
}

// outputFlag adds -o to a command.
func (g *global) outputFlag(c *cobra.Command) {
	c.Flags().StringVarP(&g.output, "output", "o", "table", "table, json or yaml")
}

// containerdFlags add the flags by which a container is found.
func (g *global) containerdFlags(c *cobra.Command) {
	c.Flags().StringVar(&g.containerd, "containerd-address", os.Getenv("CONTAINERD_ADDRESS"), "containerd's socket (env CONTAINERD_ADDRESS; default /run/containerd/containerd.sock)")
	var ns []string
	if v := os.Getenv("CONTAINERD_NAMESPACE"); v != "" {
		ns = []string{v}
	}
	c.Flags().StringSliceVarP(&g.namespaces, "namespace", "n", ns, "containerd namespaces to look in (env CONTAINERD_NAMESPACE; default all)")
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
