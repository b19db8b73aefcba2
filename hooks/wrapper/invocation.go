// Package wrapper stands in for an OCI runtime: it finds out what was asked of
// it, finds the real runtime and becomes it, or runs it. It imports little,
// because each command of each container passes through it.
package wrapper

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// runtimes are the names under which a link to faultgraft is a runtime.
var runtimes = []string{"runc", "crun", "youki"}

// prefix may come before the runtime's name in the name of a link.
const prefix = "faultgraft-"

// Options are the wrapper's own: flags before the runtime's, or the environment.
type Options struct {
	// Real is the real runtime, a path or a name; empty: the next one of that name on PATH. Env FAULTGRAFT_RUNTIME.
	Real string
	// StateDir is the agent's state directory; empty: the default. Env FAULTGRAFT_STATE.
	StateDir string
	// Budget bounds the wait for the agent; 0: the default. Env FAULTGRAFT_RUNTIME_BUDGET.
	Budget time.Duration
	// WithoutAgent is start or refuse: what a container does that the agent gives no
	// answer for; empty: what the node's configuration says. Env FAULTGRAFT_WITHOUT_AGENT.
	WithoutAgent string
}

// Invocation is one call of a runtime.
type Invocation struct {
	Options
	// Name is the runtime's, as in runc.
	Name string
	// Args are the runtime's arguments, without its name.
	Args []string
	// Command is the runtime's subcommand; empty: none.
	Command string

	// Create is what a create is about.
	Create Create

	// Problems are what is wrong with the wrapper's own options; the defaults hold
	// then, because a container that asks for nothing must start all the same.
	Problems []string
}

// Create are the arguments of `create` that matter, and where the runtime logs.
type Create struct {
	ID      string
	Bundle  string // empty: the working directory
	PIDFile string // empty: none
	// Globals are the runtime's flags before the subcommand.
	Globals []string
	// Log is the runtime's log file, empty: standard error; JSON: one object a line.
	Log  string
	JSON bool
}

// Parse says whether a process was started as a runtime (by a link that is named
// like one, or by the command `runc`), and what as.
func Parse(argv []string, getenv func(string) string) (inv Invocation, is bool) {
	if len(argv) == 0 {
		return inv, false
	}
	name := strings.TrimPrefix(filepath.Base(argv[0]), prefix)
	switch {
	case slices.Contains(runtimes, name):
		inv.Name, inv.Args = name, argv[1:]
	case len(argv) > 1 && argv[1] == "runc":
		inv.Name, inv.Args = "runc", argv[2:]
	default:
		return inv, false
	}
	inv.Options = Options{Real: getenv("FAULTGRAFT_RUNTIME"), StateDir: getenv("FAULTGRAFT_STATE")}
	if b := getenv("FAULTGRAFT_RUNTIME_BUDGET"); b != "" {
		inv.setBudget("FAULTGRAFT_RUNTIME_BUDGET", b)
	}
	if w := getenv("FAULTGRAFT_WITHOUT_AGENT"); w != "" {
		inv.setWithoutAgent("FAULTGRAFT_WITHOUT_AGENT", w)
	}
	inv.ownFlags()
	inv.parse()
	return inv, true
}

func (inv *Invocation) setBudget(where, text string) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		inv.Problems = append(inv.Problems, fmt.Sprintf("%s %q: give a duration above zero, as in 5s", where, text))
		return
	}
	inv.Budget = d
}

func (inv *Invocation) setWithoutAgent(where, text string) {
	if text != "start" && text != "refuse" {
		inv.Problems = append(inv.Problems, fmt.Sprintf("%s %q: give start or refuse", where, text))
		return
	}
	inv.WithoutAgent = text
}

// ownFlags takes the wrapper's flags from the front. They are written with two
// dashes; no runtime has flags of these names.
func (inv *Invocation) ownFlags() {
	for len(inv.Args) > 0 {
		name, value, joined := strings.Cut(inv.Args[0], "=")
		var set func(string)
		switch name {
		case "--real":
			set = func(v string) { inv.Real = v }
		case "--state-dir":
			set = func(v string) { inv.StateDir = v }
		case "--without-agent":
			set = func(v string) { inv.setWithoutAgent(name, v) }
		case "--budget":
			set = func(v string) { inv.setBudget(name, v) }
		default:
			return
		}
		inv.Args = inv.Args[1:]
		if !joined {
			if len(inv.Args) == 0 {
				inv.Problems = append(inv.Problems, name+" needs a value")
				return
			}
			value, inv.Args = inv.Args[0], inv.Args[1:]
		}
		set(value)
	}
}

// globalValues and createValues are the flags that take a value, of runc, crun
// and youki, before the subcommand and for `create`.
var (
	globalValues = []string{"log", "l", "log-format", "log-level", "root", "r", "criu", "rootless", "cgroup-manager"}
	createValues = []string{"bundle", "b", "console-socket", "pidfd-socket", "pid-file", "preserve-fds", "config", "f"}
)

// parse finds the subcommand, and for `create` its container.
func (inv *Invocation) parse() {
	set := func(name, value string) {
		switch name {
		case "log", "l":
			inv.Create.Log = value
		case "log-format":
			inv.Create.JSON = value == "json"
		case "bundle", "b":
			inv.Create.Bundle = value
		case "pid-file":
			inv.Create.PIDFile = value
		}
	}
	rest := flags(inv.Args, globalValues, set)
	if len(rest) == 0 {
		return
	}
	inv.Command = rest[0]
	if inv.Command != "create" {
		return
	}
	inv.Create.Globals = inv.Args[:len(inv.Args)-len(rest)]
	if rest = flags(rest[1:], createValues, set); len(rest) > 0 {
		inv.Create.ID = rest[0]
	}
}

// flags passes over the flags at the front and returns what follows them. A flag
// has one or two dashes; its value is joined by = or the next argument.
func flags(args, withValue []string, set func(name, value string)) []string {
	for len(args) > 0 {
		arg := args[0]
		if arg == "--" {
			return args[1:]
		}
		if len(arg) < 2 || arg[0] != '-' {
			return args
		}
		args = args[1:]
		name, value, joined := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		if !joined && slices.Contains(withValue, name) {
			if len(args) == 0 {
				return nil
			}
			value, args = args[0], args[1:]
		}
		set(name, value)
	}
	return nil
}

// errLoop: what was taken for the real runtime is a wrapper again.
var errLoop = errors.New("the wrapper was called by itself: what it took for the real runtime is a wrapper too; name the real one by --real or FAULTGRAFT_RUNTIME")
