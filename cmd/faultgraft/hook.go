package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/faultgraft/faultgraft/hooks"
	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/spf13/cobra"
)

func newHookCommand(g *global) *cobra.Command {
	var rules []string
	c := &cobra.Command{
		Use:   "hook poststart [--rule NAME=RULE]…",
		Short: "Graft a container as an OCI runtime hook (runc, crun, podman)",
		Long: `Graft what a container's annotations ask for, as a hook that an OCI runtime
calls: the container's state comes on standard input. It needs neither containerd
nor NRI; where the agent runs, the hook has it do the work for containerd's containers.
--rule brings a rule as an annotation would, as CDI devices do (faultgraft cdi). List it under hooks.poststart in config.json, or in podman's hooks.d.

The layer is there just after the container's program has started; with runc, which
calls these hooks early, just before. A wrong annotation, or a graft that cannot be made,
never stops the container: the hook says so on standard error and in the event
log, and succeeds. Only a container whose faults a policy requires is stopped.`,
		Example: `  "hooks": {"poststart": [{"path": "/usr/local/bin/faultgraft", "args": ["faultgraft", "hook", "poststart"]}]}`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("name the phase of the hook: %s", hooks.Poststart)
			}
			return hooks.CheckPhase(args[0])
		},
		ValidArgs: []string{hooks.Poststart},
		RunE:      func(c *cobra.Command, _ []string) error { return runHook(c, g, rules) },
	}
	c.Flags().StringArrayVar(&rules, strings.TrimPrefix(plugin.HookRuleFlag, "--"), nil, "a rule, NAME=RULE")
	return c
}

// runHook returns no error but for a container that must not start: the runtime kills it for that.
func runHook(c *cobra.Command, g *global, rules []string) error {
	say := func(format string, args ...any) {
		_, _ = fmt.Fprintf(c.ErrOrStderr(), "faultgraft: "+format+"\n", args...) // nobody may be listening
	}
	if err := hooks.SealDescriptors(); err != nil {
		say("%v", err)
		return nil
	}
	res := hooks.Run(c.Context(), hooks.Options{
		Input: c.InOrStdin(), Injector: g.keepers(), Seed: rand.Uint64,
		Agent: agentOf{plugin.NewClient(g.stateDir)}, Rules: rulesOfHook(rules),
		Kernel: func(ctx context.Context, t keeper.Target, rules []policy.Rule) error {
			_, err := g.injectKernel(ctx, plugin.KernelRequest{Target: t, Rules: rules, Origin: keeper.OriginAnnotation})
			return err
		},
		Record: func(e keeper.Event) error { return record(g.stateDir, e) },
	})
	for _, gr := range res.Grafts {
		say("grafted %s of container %s: %s", gr.Path, res.Container, gr.ID)
	}
	for _, id := range res.InForce {
		say("in force for container %s: %s", res.Container, id)
	}
	for _, p := range res.Problems {
		if res.Container == "" {
			say("%v", p)
		} else {
			say("container %s: %v", res.Container, p)
		}
	}
	return res.Refused
}

// rulesOfHook has the rules as the agent reads them from the hook's arguments.
func rulesOfHook(rules []string) map[string]string {
	args := []string{"faultgraft", "hook"}
	for _, r := range rules {
		args = append(args, plugin.HookRuleFlag, r)
	}
	return plugin.HookRules(args)
}

// record appends an event to the log; it is opened only for a container that there is something to say of.
func record(stateDir string, e keeper.Event) error {
	log, err := keeper.OpenEventLog(stateDir)
	if err != nil {
		return err
	}
	return errors.Join(log.Write(e), log.Close())
}
