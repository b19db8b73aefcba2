package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/faultgraft/faultgraft/policy"
	"github.com/faultgraft/faultgraft/policy/faultpolicy"
	"github.com/faultgraft/faultgraft/policy/manifest"
	"github.com/faultgraft/faultgraft/policy/strictyaml"
	"github.com/spf13/cobra"
)

// validFiles is what validate prints of files with -o json and -o yaml.
type validFiles struct {
	Policies []validPolicy       `json:"policies"`
	Errors   []*strictyaml.Error `json:"errors"`
}

// validPolicy is a policy of a file without a mistake.
type validPolicy struct {
	File string `json:"file"`
	Line int    `json:"line"`
	// Policy has its defaults; one that was a manifest of Chaos Mesh is shown as what it stands for.
	Policy faultpolicy.FaultPolicy `json:"policy"`
	Rules  []validRule             `json:"rules"`
}

// validateFile checks one file. A predicate that this machine's kernel does not know is a mistake at its place.
func validateFile(file string, data []byte) ([]validPolicy, strictyaml.Errors) {
	all, err := manifest.Open(file, data, policy.Defaults{})
	var errs strictyaml.Errors
	if err != nil && !errors.As(err, &errs) {
		errs = strictyaml.Errors{{File: file, Message: err.Error()}}
	}
	var valid []validPolicy
	for _, m := range all {
		v := validPolicy{Policy: m.Policy, Rules: []validRule{}}
		v.File, v.Line = m.Place()
		for i, r := range m.Rules {
			rule, err := explained(r)
			var wrong *policy.SyntaxError
			switch {
			case errors.As(err, &wrong):
				errs = append(errs, m.RuleError(i, wrong))
			case err != nil:
				errs = append(errs, &strictyaml.Error{File: file, Line: v.Line, Path: m.Policy.Metadata.Name, Message: err.Error()})
			default:
				v.Rules = append(v.Rules, rule)
			}
		}
		if len(v.Rules) == len(m.Rules) {
			valid = append(valid, v)
		}
	}
	return valid, errs
}

func (v validPolicy) table(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "ok  %s:%d: policy %s, %s\n", v.File, v.Line, v.Policy.Metadata.Name, v.choice()); err != nil {
		return err
	}
	for _, r := range v.Rules {
		here := ""
		if r.Here != nil {
			here = "\n      here: " + r.Here.words()
		}
		if _, err := fmt.Fprintf(w, "    %s: %s%s\n", r.Name, r.Canonical, here); err != nil {
			return err
		}
	}
	return nil
}

// choice says in words how many containers the policy is for.
func (v validPolicy) choice() string {
	s := v.Policy.Spec
	switch s.Mode {
	case faultpolicy.ModeOne:
		return "one of the containers that match"
	case faultpolicy.ModeFixed:
		return fmt.Sprintf("%d of the containers that match", s.Value)
	case faultpolicy.ModeFixedPercent:
		return fmt.Sprintf("%d%% of the containers that match", s.Value)
	case faultpolicy.ModeRandomMaxPercent:
		return fmt.Sprintf("up to %d%% of the containers that match", s.Value)
	}
	return "all containers that match"
}

// errInvalid ends validate where the mistakes are in its output already.
var errInvalid = errors.New("there are mistakes; they are listed under errors")

func validateFiles(c *cobra.Command, g *global, names []string) error {
	out := validFiles{Policies: []validPolicy{}, Errors: []*strictyaml.Error{}}
	at := make(map[string]string) // the places of policies by name
	for _, name := range names {
		data, err := readManifest(c.InOrStdin(), name)
		if err != nil {
			message := err.Error()
			var missing *fs.PathError
			if errors.As(err, &missing) {
				message = missing.Err.Error()
			}
			out.Errors = append(out.Errors, &strictyaml.Error{File: name, Message: message})
			continue
		}
		file := name
		if name == "-" {
			file = "standard input"
		}
		valid, errs := validateFile(file, data)
		for _, v := range valid {
			policyName, place := v.Policy.Metadata.Name, fmt.Sprintf("%s:%d", v.File, v.Line)
			if first, twice := at[policyName]; twice {
				errs = append(errs, &strictyaml.Error{File: v.File, Line: v.Line, Path: "metadata.name", Message: fmt.Sprintf("the policy %q is there twice", policyName), Fix: "the first is at " + first})
				continue
			}
			at[policyName] = place
			out.Policies = append(out.Policies, v)
		}
		out.Errors = append(out.Errors, errs...)
	}
	if g.output != "table" {
		if err := g.print(c.OutOrStdout(), out); err != nil {
			return err
		}
		if len(out.Errors) > 0 {
			return errInvalid
		}
		return nil
	}
	for _, v := range out.Policies {
		if err := v.table(c.OutOrStdout()); err != nil {
			return err
		}
	}
	if len(out.Errors) > 0 {
		return errors.New(strictyaml.Errors(out.Errors).Detail())
	}
	return nil
}
