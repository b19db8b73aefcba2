package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/spf13/cobra"
)

// agentTimeout bounds a question to the node agent.
const agentTimeout = 10 * time.Second

// direct reaches the kernel faults that live without an agent.
func (g *global) direct() plugin.Direct { return plugin.Direct{StateDir: g.stateDir} }

// kernelFaults asks the agent for the kernel faults of this node; without an
// agent there can only be those that were pinned.
func (g *global) kernelFaults(ctx context.Context) ([]plugin.KernelFault, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	faults, err := plugin.NewClient(g.stateDir).KernelFaults(ctx)
	if errors.Is(err, plugin.ErrNoAgent) {
		return g.direct().List()
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	return faults, nil
}

// showKernel prints one kernel fault.
func (g *global) showKernel(c *cobra.Command, id string) error {
	faults, err := g.kernelFaults(c.Context())
	if err != nil {
		return err
	}
	for _, f := range faults {
		if f.ID == id {
			return g.print(c.OutOrStdout(), f)
		}
	}
	return plugin.NoKernelFault(id)
}

// endKernel ends one kernel fault.
func (g *global) endKernel(ctx context.Context, id string) (plugin.KernelFault, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	f, err := plugin.NewClient(g.stateDir).EndKernel(ctx, id)
	if errors.Is(err, plugin.ErrNoAgent) {
		return g.direct().End(id)
	}
	return f, err
}

// injectKernel arms kernel faults: by the agent, or pinned in the kernel if there is none.
func (g *global) injectKernel(ctx context.Context, req plugin.KernelRequest) ([]plugin.KernelFault, error) {
	made, err := plugin.NewClient(g.stateDir).InjectKernel(ctx, req)
	switch {
	case !errors.Is(err, plugin.ErrNoAgent):
		return made, err
	case req.Outlive:
		return g.direct().Inject(ctx, req)
	}
	return nil, fmt.Errorf("%w, which holds kernel faults; or give --outlive, which pins the fault in the kernel until its ttl is over. Nothing was done", err)
}

// kernelText makes a kernel rule of the text of --kernel, whose leading word may be missing.
func kernelText(text string) string {
	if isKernelRule(text) {
		return text
	}
	return "kernel " + text
}

func isKernelRule(text string) bool {
	word, _, _ := strings.Cut(strings.TrimSpace(text), " ")
	return word == "kernel"
}

// kernelPath stands for a kernel fault where a graft has its path.
func kernelPath(f plugin.KernelFault) string {
	return fmt.Sprintf("kernel %s (%s)", f.Kernel.Hook, f.Kernel.Backend)
}

// asGraft gives the columns that a kernel fault shares with a graft.
func asGraft(f plugin.KernelFault) keeper.Graft {
	return keeper.Graft{ID: f.ID, Target: f.Target, Path: kernelPath(f), State: f.State, Origin: f.Origin, Since: f.Since, Rules: f.Rules}
}

// explainKernel says in words what was armed.
func explainKernel(w io.Writer, f plugin.KernelFault) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s fails in cgroup %s of %s (pid %d), by %s of %s\n", f.Kernel.Hook, f.Kernel.Cgroup.Path, displayName(f.Target), f.Target.PID, f.Kernel.Backend, strings.Join(f.Kernel.Functions, ", "))
	for _, r := range f.Rules {
		fmt.Fprintf(&b, "  %s: %s\n    until %s\n", r.FullName(), r.Text, r.Expires.Local().Format(time.TimeOnly))
	}
	if f.Kernel.Note != "" {
		fmt.Fprintf(&b, "  note: %s\n", f.Kernel.Note)
	}
	if f.Kernel.Outlive {
		b.WriteString("  it stays until then, with or without an agent\n")
	}
	fmt.Fprintf(&b, "undo: faultgraft recover %s\n", f.ID)
	_, _ = io.WriteString(w, b.String()) // a closed standard error is not worth failing for
}

func kernelEnded(w io.Writer, f plugin.KernelFault) error {
	n := f.Kernel.Counters
	_, err := fmt.Fprintf(w, "recovered %s: %s of %s works again (%d of %d matching calls were failed)\n", f.ID, f.Kernel.Hook, displayName(f.Target), n.Injected, n.Matched)
	return err
}

// refuseKernelFault says that a command is about grafts only.
func refuseKernelFault(id, why string) error {
	if plugin.IsKernelFault(id) {
		return fmt.Errorf("%s is a kernel fault: %s", id, why)
	}
	return nil
}

// kernelOutcome is what an event says of the call that was failed.
func kernelOutcome(e keeper.Event) string {
	s := fmt.Sprintf("  %s #%d: %s", policy.FullName(e.Policy, e.Rule), e.N, e.Hook)
	if e.Function != "" {
		s += fmt.Sprintf(" (%s by %s)", e.Function, e.Backend)
	}
	s += fmt.Sprintf(" by %s, process %d", e.Comm, e.PID)
	if e.TID != e.PID {
		s += fmt.Sprintf(" thread %d", e.TID)
	}
	if s += " -> " + e.Errno; len(e.Stack) > 0 {
		s += "  in " + strings.Join(e.Stack, " < ")
	}
	return s
}
