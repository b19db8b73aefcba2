package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

const module = "github.com/faultgraft/faultgraft"

// A tier is a group of packages whose tests need the same of the machine.
type tier struct {
	name string
	what string
	// folders of the module; one that ends in /... means all below it too. The
	// tier without folders takes every package that no other tier names.
	folders []string
	// also are folders whose tests belong to another tier and run here too
	also []string
	// flags for go test
	flags []string
	// run runs the packages; it reports to the writer and returns a remark for the summary.
	run func(context.Context, tier, []string, io.Writer) (results, string, error)
	// again runs one test that failed once more, alone.
	again func(context.Context, tier, failure, io.Writer) (results, error)
	// unable says why the tier cannot run here; "" when it can.
	unable func(context.Context) string
}

var tiers = []tier{
	{
		name: "unit", what: "no privileges needed, with the race detector",
		flags: raceFlags(), run: goTest, again: goTestAgain, unable: func(context.Context) string { return "" },
	},
	{
		name: "fs", what: "the fault layer against the file system under it",
		folders: []string{"fusefs/..."}, run: goTest, again: goTestAgain, unable: needs(root, fuse),
	},
	{
		name: "swap", what: "real target programs, grafted and swapped",
		folders: []string{"tracer/...", "plugin/graft/...", "plugin/keeper/...", "test/process/...", "test/property/..."},
		run:     goTest, again: goTestAgain,
		unable: needs(root, fuse, packages("test"), ptrace),
	},
	{
		name: "lab", what: "real containerd, runc, nerdctl and CRI",
		folders: []string{"test/lab", "test/e2e/...", "test/databases", "test/soak/...", "test/hook", "test/start", "test/demo/..."},
		// packages share the one lab, which they take in turn
		flags: []string{"-p", "1"},
		run:   goTest, again: goTestAgain,
		unable: needs(root, fuse, packages("lab"), buildLab),
	},
	{
		name: "vm", what: "kernel faults, in an emulated machine with a kernel of its own",
		folders: []string{"test/kernel/..."}, also: []string{"kernel/...", "plugin"}, run: vmTest, again: vmTestAgain,
		unable: needs(amd64, packages("vm"), buildLab),
	},
}

// Benchmarks have a target of their own: make bench.
var excluded = []string{"test/bench/..."}

func tierNames() string {
	var n []string
	for _, t := range tiers {
		n = append(n, t.name)
	}
	return strings.Join(n, ", ")
}

// raceFlags turns the race detector on where it can work: it needs cgo and a C compiler.
func raceFlags() []string {
	if _, err := exec.LookPath("gcc"); err != nil {
		return nil
	}
	return []string{"-race"}
}

// assign maps tiers to their packages: each package to exactly one, so that a new one is not forgotten,
// and to those that run it too.
func assign(packages []string) map[string][]string {
	out := map[string][]string{}
next:
	for _, p := range packages {
		if inFolders(p, excluded) {
			continue
		}
		rest := ""
		for _, t := range tiers {
			if inFolders(p, t.also) {
				out[t.name] = append(out[t.name], p)
			}
		}
		for _, t := range tiers {
			if len(t.folders) == 0 {
				rest = t.name
			} else if inFolders(p, t.folders) {
				out[t.name] = append(out[t.name], p)
				continue next
			}
		}
		out[rest] = append(out[rest], p)
	}
	return out
}

func inFolders(pkg string, folders []string) bool {
	rel := strings.TrimPrefix(pkg, module+"/")
	for _, f := range folders {
		base, below := strings.CutSuffix(f, "/...")
		if rel == base || below && strings.HasPrefix(rel, base+"/") {
			return true
		}
	}
	return false
}

// listPackages lists the packages that have tests.
func listPackages(ctx context.Context) ([]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-f",
		"{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}", module+"/...")
	var msg bytes.Buffer
	cmd.Stderr = &msg
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages: %w: %s", err, msg.String())
	}
	return strings.Fields(string(out)), nil
}

// needs joins checks: the first reason counts.
func needs(checks ...func(context.Context) string) func(context.Context) string {
	return func(ctx context.Context) string {
		for _, c := range checks {
			if reason := c(ctx); reason != "" {
				return reason
			}
		}
		return ""
	}
}

func root(context.Context) string {
	if os.Geteuid() != 0 {
		return "needs root"
	}
	return ""
}

func amd64(context.Context) string {
	if runtime.GOARCH != "amd64" {
		return "the emulated machine is an amd64 one and runs programs built here, on " + runtime.GOARCH
	}
	return ""
}

func fuse(context.Context) string {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Sprintf("needs FUSE: %v (modprobe fuse)", err)
	}
	if err := f.Close(); err != nil {
		return err.Error()
	}
	return ""
}

// ptrace asks Yama: at 3 even root may not attach (Documentation/admin-guide/LSM/Yama.rst).
func ptrace(context.Context) string {
	b, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if err == nil && strings.TrimSpace(string(b)) == "3" {
		return "ptrace is switched off until the next boot: kernel.yama.ptrace_scope is 3"
	}
	return ""
}

func packages(task string) func(context.Context) string {
	return func(ctx context.Context) string {
		out, err := exec.CommandContext(ctx, "contrib/lab/packages.sh", "--check", task).CombinedOutput()
		if err != nil {
			return strings.TrimSpace(string(out))
		}
		return ""
	}
}

// buildLab builds what tests must not wait for; a second time it takes no time.
func buildLab(ctx context.Context) string {
	for _, step := range []string{"build", "image", "databases"} {
		cmd := exec.CommandContext(ctx, "contrib/lab/lab.sh", step)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil && step != "databases" { // of the tests that need them, each says so
			return fmt.Sprintf("contrib/lab/lab.sh %s: %v", step, err)
		}
	}
	return ""
}
