package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/faultgraft/faultgraft/hooks"
	_ "github.com/faultgraft/faultgraft/hooks/passthrough" // becomes the real runtime early
	"github.com/faultgraft/faultgraft/hooks/wrapper"
	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/spf13/cobra"
)

// newRuncCommand is there for its help; main calls runAsRuntime before any command is looked for.
func newRuncCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "runc [--real RUNTIME] [--state-dir DIR] [--budget DURATION] [--without-agent start|refuse] ARGS…",
		Short: "Stand in for runc: containers have their faults before their program starts",
		Long: `Stand in for an OCI runtime under containerd. Every command is the real runtime's,
but for one thing: after "create", when the container's first process waits for
"start" and has run none of its program, the agent is asked to bring the container to
its rules, and create returns when that is done or when the budget is used up.

A link named runc (or crun, faultgraft-runc, …) to faultgraft does the same. The real
runtime is the next one of that name on PATH, unless --real or FAULTGRAFT_RUNTIME names it.
A container that asks for no faults starts in any case, also without an agent, unless
the node's configuration (runtime: {withoutAgent: refuse}) or --without-agent=refuse
(FAULTGRAFT_WITHOUT_AGENT) says that none starts without the agent's answer.`,
		Example: `  ln -s /usr/local/bin/faultgraft /usr/local/lib/faultgraft/runc   # a folder that comes first in the shim's PATH
  nerdctl run --runtime /usr/local/lib/faultgraft/runc …`,
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			inv, _ := wrapper.Parse(append([]string{"faultgraft", "runc"}, args...), os.Getenv)
			os.Exit(runtimeMain(c.Context(), inv))
			return nil
		},
	}
}

// runAsRuntime does the work of a container runtime if this process was started
// as one; handled is false if it was not.
func runAsRuntime(ctx context.Context) (status int, handled bool) {
	inv, is := wrapper.Parse(os.Args, os.Getenv)
	if !is {
		return 0, false
	}
	return runtimeMain(ctx, inv), true
}

func runtimeMain(ctx context.Context, inv wrapper.Invocation) int {
	if inv.Command != "create" || inv.Create.ID == "" {
		err := inv.Become()
		fmt.Fprintln(os.Stderr, "faultgraft:", err)
		return 1
	}
	if inv.StateDir == "" {
		inv.StateDir = keeper.DefaultStateDir
	}
	return hooks.Create(ctx, &inv, hooks.CreateOptions{
		Agent:  agentOf{plugin.NewClient(inv.StateDir)},
		Record: func(e keeper.Event) error { return recordIfThere(inv.StateDir, e) },
		Stderr: os.Stderr,
		Refuse: refusesWithoutAgent,
	})
}

// refusesWithoutAgent is what the node's configuration says. The wrapper has no flag for its file.
func refusesWithoutAgent() (bool, error) {
	file, optional := (&global{config: os.Getenv("FAULTGRAFT_CONFIG")}).configFile()
	c, err := plugin.LoadConfig(file, optional)
	return c.Runtime.WithoutAgent == plugin.WithoutAgentRefuse, err
}

// recordIfThere leaves a node alone on which there has been no agent.
func recordIfThere(stateDir string, e keeper.Event) error {
	if _, err := os.Stat(stateDir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return record(stateDir, e)
}

// agentOf asks the agent of this node on behalf of package hooks.
type agentOf struct{ client *plugin.Client }

func (a agentOf) Start(ctx context.Context, t hooks.Task) (hooks.Answer, error) {
	said, err := a.client.Start(ctx, plugin.StartRequest{Namespace: t.Namespace, ID: t.ID, PID: t.PID, Bundle: t.Bundle})
	if errors.Is(err, plugin.ErrNoAgent) {
		err = fmt.Errorf("%w: %w", hooks.ErrNoAgent, err)
	}
	if err != nil {
		return hooks.Answer{}, err
	}
	out := hooks.Answer{Known: said.Known, Faulty: said.State == plugin.StateActive, Required: said.Refused != "", Grafts: said.Grafts}
	if said.Refused != "" {
		out.Missing = said.Refused
		return out, nil
	}
	switch said.State {
	case plugin.StateFailed, plugin.StateRefused, plugin.StatePending:
		out.Missing = fmt.Sprintf("%s: %s", said.State, said.Reason)
	}
	return out, nil
}
