package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"sort"
	"strings"
	"time"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/graft"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type injectOptions struct {
	*global
	pid     int
	path    string
	name    string
	kernel  []string
	toda    string
	ttl     time.Duration
	outlive bool
	limits  graft.Limits
}

func newInjectCommand(g *global) *cobra.Command {
	o := &injectOptions{global: g}
	c := &cobra.Command{
		Use:   "inject (CONTAINER | --pid PID) [--path PATH] [--kernel 'RULE'] ['RULE'...]",
		Short: "Graft a fault layer onto a running container or process tree, or fail calls of the kernel in it",
		Long: `Graft a fault layer over PATH of a running container, or of a process and its
descendants, and print the graft's id.

CONTAINER is an id, the start of an id, or a name, as nerdctl, ctr or Kubernetes
know it. PATH is as the target sees it; without --path it is taken from the
rules' path. Every rule ends by itself after its ttl (10 minutes when it has
none) and the layer is taken off with the last one. "faultgraft validate --help"
lists the fields of a rule.

Over a path that has a graft already the rules are added to that one, without
stopping the target; see also faultgraft update.

The processes that serve the layer stay in the control group of whoever calls this; where
that is killed as a whole, the agent or "faultgraft recover --orphans" takes the layer off.

What takes the layer off later has the same --deadline; where it fails with one that is
shorter than 2s, it is tried once more at once, with 2s.

A PID whose mount namespace is the host's own is grafted too; the layer is then
visible to every process there, but only PID and its descendants get faults, and
only their open files are moved.

A rule of the kind kernel, given like the others or with --kernel, fails a function of
the kernel for the processes in the target's cgroup, and for those that they start.
The node agent (faultgraft plugin) holds it and logs what it injects; when the agent
ends, so does the fault. With --outlive it is pinned in the kernel until its ttl is
over, with or without an agent. Of several rules all are put in force, or none.

--toda-config takes the injectors of Chaos Mesh's toda (a list, or the JSON-RPC call
update with one); see docs/chaos-mesh.md. Its manifests are for faultgraft apply.`,
		Example: `  faultgraft inject pg --path /var/lib/postgresql 'io error=EIO op=fsync p=5% ttl=1m'
  faultgraft inject --pid 4711 --path /data 'io error=ENOSPC op=write' 'io latency=20ms op=read'
  faultgraft inject pg --kernel 'hook=syscall:mount error=ENOMEM times=3 ttl=1m'
  faultgraft inject pg --path /var/lib/postgresql --toda-config injectors.json --ttl 5m`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error { return o.run(c, args) },
	}
	f := c.Flags()
	f.IntVar(&o.pid, "pid", 0, "first process of the target, instead of a container")
	f.StringVar(&o.path, "path", "", "path to graft, as the target sees it")
	f.StringArrayVar(&o.kernel, "kernel", nil, "a kernel rule, with or without the word kernel before it; may be repeated")
	f.StringVar(&o.toda, "toda-config", "", "file with injectors of toda, in JSON (- for standard input); needs --path")
	f.DurationVar(&o.ttl, "ttl", policy.DefaultTTL, "ttl of rules that name none")
	f.BoolVar(&o.outlive, "outlive", false, "keep kernel faults until their ttl is over, also without the node agent")
	f.StringVar(&o.name, "name", "rule", "name of the rule in ps and events")
	limitFlags(f, &o.limits, "moved onto the layer")
	g.outputFlag(c)
	g.containerdFlags(c)
	return c
}

func (o *injectOptions) run(c *cobra.Command, args []string) error {
	if err := o.checkOutput(); err != nil {
		return err
	}
	ref := ""
	if !c.Flags().Changed("pid") {
		if len(args) == 0 {
			return errors.New("name a container, or a process with --pid")
		}
		ref, args = args[0], args[1:]
		if strings.HasPrefix(ref, "io ") || isKernelRule(ref) {
			return fmt.Errorf("%q is a rule: name a container before it, or a process with --pid", ref)
		}
	}
	for _, text := range o.kernel {
		args = append(args, kernelText(text))
	}
	if len(args) == 0 && o.toda == "" {
		return errors.New("give a rule, for instance 'io error=EIO op=fsync ttl=1m'")
	}
	byPath, inKernel, err := o.rules(args)
	if err != nil {
		return err
	}
	if o.outlive && len(inKernel) == 0 {
		return errors.New("--outlive is for kernel rules; a graft outlives its command anyway")
	}
	target := keeper.Target{ID: fmt.Sprintf("pid-%d", o.pid), PID: o.pid}
	if ref != "" {
		ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
		defer cancel()
		limits, err := o.limitsOfNode(ctx)
		if err != nil {
			return err
		}
		if target, err = plugin.Resolve(ctx, plugin.ResolveOptions{Address: o.containerd, Namespaces: o.namespaces, Limits: limits}, ref); err != nil {
			return err
		}
	}
	return o.inject(c, target, byPath, inKernel)
}

// rules parses the rules and groups those for a layer by the path that they need it over.
func (o *injectOptions) rules(texts []string) (byPath map[string][]policy.Rule, inKernel []policy.Rule, err error) {
	if o.path != "" {
		if !path.IsAbs(o.path) {
			return nil, nil, fmt.Errorf("--path %s: not an absolute path", o.path)
		}
		o.path = path.Clean(o.path)
	}
	if o.ttl <= 0 || o.ttl > policy.DefaultMaxTTL {
		return nil, nil, fmt.Errorf("--ttl %v: write a time above 0 and up to %v", o.ttl, policy.DefaultMaxTTL)
	}
	rules, err := todaRules(o.toda, o.path, policy.Defaults{TTL: o.ttl})
	if err != nil {
		return nil, nil, err
	}
	given, err := parseRules(o.name, o.path, o.ttl, texts)
	if err != nil {
		return nil, nil, err
	}
	rules = append(rules, given...)
	var onFiles []policy.Rule
	for _, r := range rules {
		r.EnsureSeed(rand.Uint64)
		if r.Kernel != nil {
			inKernel = append(inKernel, r)
		} else {
			onFiles = append(onFiles, r)
		}
	}
	switch {
	case o.path == "":
		byPath = policy.GraftPaths(onFiles)
	case len(onFiles) == 0:
		return nil, nil, errors.New("--path says where a layer goes; a kernel rule needs none")
	default:
		byPath = map[string][]policy.Rule{o.path: onFiles}
	}
	return byPath, inKernel, nil
}

// parseRules reads rules for a layer over a path; "" when the rules say it. ttl is for those that name none.
func parseRules(name, layer string, ttl time.Duration, texts []string) ([]policy.Rule, error) {
	d := policy.Defaults{TTL: ttl}
	if layer != "" {
		d.Path = policy.EscapeGlob(strings.TrimSuffix(layer, "/")) + "/**"
	}
	var rules []policy.Rule
	for i, text := range texts {
		called := name
		if len(texts) > 1 {
			called = fmt.Sprintf("%s-%d", name, i+1)
		}
		r, err := policy.ParseRule(called, text, d)
		if err != nil {
			return nil, detailed(err)
		}
		if layer != "" && r.IO != nil && !r.IO.Touches(layer) {
			return nil, fmt.Errorf("rule %q: path=%s does not lie in %s, where the layer is: it could never fire", text, r.IO.Path, layer)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// detailed shows a rule's error with the line and a caret under the place.
func detailed(err error) error {
	var s *policy.SyntaxError
	if errors.As(err, &s) {
		return errors.New(s.Detail())
	}
	return err
}

func (o *injectOptions) inject(c *cobra.Command, t keeper.Target, byPath map[string][]policy.Rule, inKernel []policy.Rule) error {
	var faults []plugin.KernelFault
	if len(inKernel) > 0 {
		var err error
		req := plugin.KernelRequest{Target: t, Rules: inKernel, Origin: keeper.OriginUser, Outlive: o.outlive}
		if faults, err = o.injectKernel(c.Context(), req); err != nil {
			return err
		}
	}
	paths := make([]string, 0, len(byPath))
	for p := range byPath {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	done := []keeper.Graft{}
	for _, p := range paths {
		g, err := o.keepers().Inject(c.Context(), t, keeper.Request{
			Path: p, Rules: byPath[p], Limits: o.limits, Origin: keeper.OriginUser,
		})
		if err != nil {
			// Half of what was asked for is not what was asked for.
			undo := context.WithoutCancel(c.Context())
			for _, d := range done {
				err = errors.Join(err, o.takeBack(undo, d))
			}
			for _, f := range faults {
				_, kerr := o.endKernel(undo, f.ID)
				err = errors.Join(err, kerr)
			}
			return err
		}
		done = append(done, g)
	}
	if o.output != "table" {
		return o.print(c.OutOrStdout(), listed(done, faults, nil))
	}
	for _, f := range faults {
		if _, err := fmt.Fprintln(c.OutOrStdout(), f.ID); err != nil {
			return err
		}
		explainKernel(c.ErrOrStderr(), f)
	}
	for _, g := range done {
		_, err := fmt.Fprintln(c.OutOrStdout(), g.ID)
		if err != nil {
			return err
		}
		if len(g.Added) > 0 {
			explainChange(c.ErrOrStderr(), g)
		} else {
			explain(c.ErrOrStderr(), g)
		}
	}
	return nil
}

// takeBack undoes what an Inject did: a graft, or rules that were added to one.
func (o *injectOptions) takeBack(ctx context.Context, g keeper.Graft) error {
	if len(g.Added) == 0 {
		_, err := o.keepers().Ungraft(ctx, g.ID)
		return err
	}
	_, err := o.keepers().Update(ctx, g.ID, keeper.Change{Keep: true, Drop: g.Added, Origin: keeper.OriginUser})
	return err
}

// explain says in words what was done; the id alone goes to standard output, for scripts.
func explain(w io.Writer, g keeper.Graft) {
	var b strings.Builder
	fmt.Fprintf(&b, "grafted %s of %s (pid %d)", g.Path, displayName(g.Target), g.Target.PID)
	if r := g.Report; r != nil {
		fmt.Fprintf(&b, ": %s moved onto the layer", count(len(r.Swapped), "open object"))
		if len(r.Stopped) > 0 {
			fmt.Fprintf(&b, ", %s", stoppedFor(len(r.Stopped), g.Pause))
		} else {
			b.WriteString(", nothing had to be stopped")
		}
	}
	b.WriteString("\n")
	for _, r := range g.Rules {
		fmt.Fprintf(&b, "  %s: %s\n    until %s\n", r.FullName(), r.Text, r.Expires.Local().Format(time.TimeOnly))
	}
	explainReport(&b, g.Report, "not moved")
	fmt.Fprintf(&b, "undo: faultgraft recover %s\n", g.ID)
	_, _ = io.WriteString(w, b.String()) // a closed standard error is not worth failing for
}

func explainReport(b *strings.Builder, r *graft.Report, skipped string) {
	if r == nil {
		return
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(b, "  %s: %s: %s\n", skipped, &s.Object, s.Reason)
	}
	for _, s := range r.Kept {
		fmt.Fprintf(b, "  goes on as it is: %s: %s\n", &s.Object, s.Reason)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(b, "  note: %s\n", n)
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if strings.HasSuffix(what, "s") {
		return fmt.Sprintf("%d %ses", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// limitFlags are the flags for what a swap may do to the target.
func limitFlags(f *pflag.FlagSet, l *graft.Limits, moved string) {
	f.DurationVar(&l.Deadline, "deadline", graft.DefaultDeadline, "how long it may take to stop all processes and move what they have open")
	f.DurationVar(&l.Budget, "budget", 0, "how long one process may have been stopped when its open objects are moved; beyond it nothing is changed (0: as long as the deadline)")
	f.BoolVar(&l.RequireAll, "require-all", false, "fail, and change nothing, if an open object cannot be "+moved+", or is one that the kernel holds (in flight over a socket, in an io_uring …)")
}

// stoppedFor says how long processes stood still: in all, and each of them.
func stoppedFor(n int, p keeper.Pause) string {
	s := fmt.Sprintf("%s stopped for %.1f ms", count(n, "process"), p.PauseMs)
	if n > 1 {
		s += fmt.Sprintf(" in all, each for %.1f ms at most", p.LongestPauseMs)
	}
	return s
}
