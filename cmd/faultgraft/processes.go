package main

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/spf13/cobra"
)

// firstFD is the number of the first descriptor that a parent hands down.
const firstFD = 3

func processLogger() *slog.Logger { return slog.New(slog.NewTextHandler(os.Stderr, nil)) }

// newKeeperCommand, newServerCommand and newSwapCommand are the processes that stand by a target; faultgraft starts them itself.
func newKeeperCommand(g *global) *cobra.Command {
	o := keeper.Options{Version: version, Logger: processLogger()}
	var target, inherit string // they name the target, for who looks at processes
	c := &cobra.Command{
		Use: "keeper", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.StateDir = g.stateDir
			o.Ready = -1
			switch {
			case target != "":
				o.Ready, o.Target = firstFD, firstFD+1
			case inherit != "":
				o.Inherit = firstFD
			}
			return keeper.Run(c.Context(), o)
		},
	}
	c.Flags().StringVar(&target, "target", "", "")
	c.Flags().StringVar(&inherit, "inherit", "", "")
	c.Flags().StringVar(&o.Follow, "follow", "", "")
	c.MarkFlagsOneRequired("target", "inherit", "follow")
	c.MarkFlagsMutuallyExclusive("target", "inherit", "follow")
	return c
}

func newServerCommand(g *global) *cobra.Command {
	o := keeper.ServerOptions{Control: firstFD, News: firstFD + 1, Estate: firstFD + 2, Logger: processLogger()}
	c := &cobra.Command{
		Use: "server", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			o.StateDir = g.stateDir
			return keeper.RunServer(o)
		},
	}
	c.Flags().StringVar(&o.Follow, "follow", "", "")
	return c
}

func newSwapCommand() *cobra.Command {
	var server, closes, asks, orphan bool
	c := &cobra.Command{
		Use: "swap", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			tell := func() *os.File { return os.NewFile(firstFD, "tell") }
			switch {
			case closes:
				return keeper.RunCloser(os.Stdin, tell())
			case asks:
				return keeper.RunAsker(os.Stdin, tell())
			case orphan:
				return keeper.RunOrphanTaker(os.Stdin, tell())
			}
			o := keeper.SwapperOptions{Progress: firstFD, Keeper: firstFD + 1, Server: -1}
			if server {
				o.Server = firstFD + 2
			}
			return keeper.RunSwapper(o)
		},
	}
	c.Flags().BoolVar(&server, "server", false, "")
	c.Flags().BoolVar(&closes, "closes", false, "") // for a swapper: see keeper.RunCloser
	c.Flags().BoolVar(&asks, "asks", false, "")     // see keeper.RunAsker
	c.Flags().BoolVar(&orphan, "orphan", false, "") // see keeper.RunOrphanTaker
	return c
}

func newPluginCommand(g *global) *cobra.Command {
	o := plugin.Options{}
	c := &cobra.Command{
		Use:   "plugin",
		Short: "Run the node agent: watch containers and their labels",
		Long: `Run the node agent. It registers with NRI and follows containerd's events, grafts
the containers whose labels or annotations ask for faults, and leaves everything
that is grafted in place when it ends. containerd starts it by itself when the
binary is installed as /opt/nri/plugins/10-faultgraft; by hand and from systemd
it connects to the NRI socket.

The node's configuration says what labels and policies may ask for; without one,
labels may ask for nothing. SIGHUP reads it anew. "faultgraft check-config" checks it.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.ConfigFile, o.ConfigFileOptional = g.configFile()
			reload := make(chan os.Signal, 1)
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			o.Reload = reload
			o.ContainerdAddress, o.ContainerdNamespaces = g.containerd, g.namespaces
			if c.Flags().Changed("state-dir") || os.Getenv("FAULTGRAFT_STATE") != "" {
				o.StateDir = g.stateDir
			}
			o.Version = version
			return plugin.Run(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.NRISocket, "nri-socket", "", "NRI's socket (default "+plugin.DefaultNRISocket+")")
	f.BoolVar(&o.DisableNRI, "disable-nri", false, "follow containerd's events only")
	g.containerdFlags(c)
	return c
}
