package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/faultgraft/faultgraft/plugin"
)

// completeTimeout bounds how long a shell waits for names after the tab key.
const completeTimeout = 2 * time.Second

// named gives names with what to tell them apart by, each as NAME or NAME\tDESCRIPTION.
type named func(ctx context.Context) []string

// completeArguments has shells complete what commands name. What cannot be asked completes to nothing.
func completeArguments(g *global, root *cobra.Command) {
	for _, c := range root.Commands() {
		var names named
		most := 0 // arguments; 0: any number
		switch c.Name() {
		case "inject":
			names, most = g.containerNames, 1
		case "show", "update", "release":
			names, most = g.graftIDs, 1
		case "recover":
			names = g.graftIDs
		case "delete", "pause", "resume":
			names = g.policyNames
		default:
			continue
		}
		c.ValidArgsFunction = func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if most > 0 && len(args) >= most {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(orBackground(c.Context())), completeTimeout)
			defer cancel()
			all := names(ctx)
			slices.Sort(all)
			return slices.Compact(all), cobra.ShellCompDirectiveNoFileComp
		}
	}
}

func orBackground(ctx context.Context) context.Context {
	if ctx == nil {
		return context.Background()
	}
	return ctx
}

func (g *global) containerNames(ctx context.Context) (names []string) {
	containers, _, err := plugin.NewClient(g.stateDir).Containers(ctx)
	if err != nil {
		return nil
	}
	for _, c := range containers {
		if c.PID != 0 && c.Protected == "" {
			names = append(names, c.DisplayName()+"\t"+c.Namespace+" "+c.Image)
		}
	}
	return names
}

func (g *global) graftIDs(ctx context.Context) (ids []string) {
	grafts, _ := g.keepers().List(ctx) // those that could be listed
	for _, gr := range grafts {
		ids = append(ids, gr.ID+"\t"+displayName(gr.Target)+" "+gr.Path)
	}
	faults, _ := g.kernelFaults(ctx)
	for _, f := range faults {
		ids = append(ids, f.ID+"\t"+displayName(f.Target)+" kernel "+f.Kernel.Hook)
	}
	return ids
}

func (g *global) policyNames(ctx context.Context) (names []string) {
	all, err := plugin.NewClient(g.stateDir).Policies(ctx)
	if err != nil {
		return nil
	}
	for _, p := range all {
		names = append(names, p.Name+"\t"+string(p.Phase))
	}
	return names
}
