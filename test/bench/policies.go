package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"text/tabwriter"
)

// policiesGoals are what the issue tracker asks of ten thousand containers and a thousand policies.
var policiesGoals = []struct {
	unit, name string
	most       float64
}{
	{"ms/container", "a new container, ms", 1},
	{"ms/reconcile", "all containers once more, ms", 1000},
	{"ms/start", "an agent that starts, ms", 0},
	{"MiB", "memory, MiB", 200},
}

// policiesCost measures the agent's side of ten thousand containers and a
// thousand policies, as plugin/policies' BenchmarkScale simulates them.
func policiesCost() error {
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", "Scale", "-benchtime", "3x", "./plugin/policies")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w:\n%s", cmd, err, out)
	}
	figures := map[string]map[string]float64{} // by shape and unit
	var shapes []string
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "BenchmarkScale/") {
			continue
		}
		shape, _, _ := strings.Cut(strings.TrimPrefix(fields[0], "BenchmarkScale/"), "-")
		shapes = append(shapes, shape)
		figures[shape] = map[string]float64{}
		for i := 2; i+1 < len(fields); i += 2 {
			if figures[shape][fields[i+1]], err = strconv.ParseFloat(fields[i], 64); err != nil {
				return fmt.Errorf("the benchmark says %q: %w", line, err)
			}
		}
	}
	if len(shapes) == 0 {
		return fmt.Errorf("%s: no figures:\n%s", cmd, out)
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "10,000 containers, 1,000 policies\t%s\tgoal\t\n", strings.Join(shapes, "\t")) // tabwriter keeps errors for Flush
	for _, g := range policiesGoals {
		_, _ = fmt.Fprintf(t, "%s\t", g.name)
		for _, shape := range shapes {
			_, _ = fmt.Fprintf(t, "%s\t", short(figures[shape][g.unit]))
		}
		goal := "reported"
		if g.most > 0 {
			goal = "< " + short(g.most)
		}
		_, _ = fmt.Fprintf(t, "%s\t\n", goal)
	}
	return t.Flush()
}
