package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/faultgraft/faultgraft/hooks"
	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/spf13/cobra"
)

type cdiOptions struct {
	rules   []string
	files   []string
	program string
	install string
}

func newCDICommand(g *global) *cobra.Command {
	var o cdiOptions
	c := &cobra.Command{
		Use:   "cdi (NAME --rule 'RULE'… | -f FILE…) [--install[=DIR]]",
		Short: "Make a CDI device faultgraft.io/fault=NAME of rules",
		Long: `Print the CDI specification of a device that brings faults to a container, or
install it. A container gets the device by its engine's --device flag, and has the
faults before its program starts under runc. --rule is RULE, or NAME=RULE for several;
-f makes a device of each FaultPolicy in a file, of its faults only: selector, mode,
timing and guard are not for a container that names its faults itself.`,
		Example: `  faultgraft cdi slow-disk --rule 'io latency=20ms op=fsync path=/data/** ttl=10m' --install
  nerdctl run --device faultgraft.io/fault=slow-disk …
  ctr run --device faultgraft.io/fault=slow-disk …`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			devices, err := o.devices(args)
			if err != nil {
				return err
			}
			return o.write(c, g, devices)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&o.rules, "rule", nil, "a rule of the device")
	f.StringArrayVarP(&o.files, "file", "f", nil, "a file of FaultPolicies")
	f.StringVar(&o.program, "program", "", "the faultgraft that the hook runs (default: this one)")
	f.StringVar(&o.install, "install", "", "write into this folder instead of printing; without a value "+hooks.CDIDir)
	f.Lookup("install").NoOptDefVal = hooks.CDIDir
	return c
}

// device is a CDI device with its rules, NAME=RULE each.
type device struct {
	name  string
	rules []string
}

func (o *cdiOptions) devices(args []string) ([]device, error) {
	switch {
	case len(args) == 1 && len(o.files) == 0 && len(o.rules) > 0:
		d, err := deviceOf(args[0], o.rules)
		return []device{d}, err
	case len(args) == 0 && len(o.files) > 0 && len(o.rules) == 0:
	default:
		return nil, errors.New("give a name and its rules (NAME --rule 'io …'), or files of policies (-f FILE)")
	}
	var out []device
	for _, file := range o.files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		all, err := faultpolicy.Decode(file, b)
		if err != nil {
			return nil, err
		}
		for _, p := range all {
			rules, err := p.Rules(policy.Defaults{})
			if err != nil {
				return nil, fmt.Errorf("%s: policy %s: %w", file, p.Metadata.Name, err)
			}
			d := device{name: p.Metadata.Name}
			for _, r := range rules {
				d.rules = append(d.rules, r.Name+"="+r.Text)
			}
			out = append(out, d)
		}
	}
	return out, nil
}

// deviceOf checks the rules of a device; one without a name has the device's.
func deviceOf(name string, rules []string) (device, error) {
	d := device{name: name}
	for _, text := range rules {
		rule := name
		if head, rest, ok := strings.Cut(text, "="); ok && !strings.ContainsAny(head, " \t") {
			rule, text = head, rest
		}
		r, err := policy.ParseRule(rule, text, policy.Defaults{})
		if err != nil {
			return d, err
		}
		d.rules = append(d.rules, r.Name+"="+text)
	}
	return d, nil
}

func (o *cdiOptions) write(c *cobra.Command, g *global, devices []device) error {
	program := o.program
	if program == "" {
		var err error
		if program, err = os.Executable(); err != nil {
			return err
		}
	}
	for _, d := range devices {
		args := []string{filepath.Base(program)}
		if g.stateDir != keeper.DefaultStateDir {
			args = append(args, "--state-dir", g.stateDir)
		}
		args = append(args, "hook", hooks.Poststart)
		for _, r := range d.rules {
			args = append(args, plugin.HookRuleFlag, r)
		}
		spec, err := hooks.CDISpec(d.name, program, args)
		if err != nil {
			return err
		}
		if o.install == "" {
			if _, err := c.OutOrStdout().Write(spec); err != nil {
				return err
			}
			continue
		}
		file, err := hooks.InstallCDI(o.install, d.name, spec)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(c.OutOrStdout(), "%s=%s: %s\n", hooks.CDIKind, d.name, file); err != nil {
			return err
		}
	}
	return nil
}
