package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"text/tabwriter"
)

// kernelStates are the columns of the table, as test/kernel's BenchmarkCost names them.
var kernelStates = []string{"without", "outside", "no_match", "match", "injecting"}

// kernelCost measures what hook points of kernel faults cost, in the emulated
// machine of contrib/testkernel, and prints ns for each hit.
func kernelCost() error {
	cmd := exec.Command("contrib/testkernel/vm.sh", "fault")
	cmd.Env = append(os.Environ(), "PACKAGES=test/kernel", "BENCH=Cost")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var names []string
	figures := map[string]map[string]map[string]float64{} // by hook, state, unit
	var last []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if last = append(last, lines.Text()); len(last) > 20 {
			last = last[1:]
		}
		hook, state, units, ok := parseCost(lines.Text())
		if !ok {
			continue
		}
		if figures[hook] == nil {
			names = append(names, hook)
			figures[hook] = map[string]map[string]float64{}
		}
		figures[hook][state] = units
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		return fmt.Errorf("contrib/testkernel/vm.sh: %w:\n%s", err, strings.Join(last, "\n"))
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(t, "kernel faults, ns\t%s\t\n", strings.Join(kernelStates, "\t")) // tabwriter keeps errors for Flush
	for _, name := range names {
		for _, unit := range []string{"ns/call", "ns/hit", "ns/chain"} {
			cells, some := "", false
			for _, state := range kernelStates {
				cell := ""
				if v, ok := figures[name][state][unit]; ok {
					cell, some = short(v), some || v > 0
				}
				cells += cell + "\t"
			}
			if some {
				_, _ = fmt.Fprintf(t, "%s, %s\t%s\n", name, unit, cells)
			}
		}
	}
	return t.Flush()
}

// parseCost reads a line of a Go benchmark:
//
//	BenchmarkCost/slab/outside-2   2000   0 ns/op   337.6 ns/hit   5120 ns/call
func parseCost(line string) (hook, state string, units map[string]float64, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 4 || !strings.HasPrefix(fields[0], "BenchmarkCost/") {
		return "", "", nil, false
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(fields[0], "BenchmarkCost/"), "-")
	if hook, state, ok = strings.Cut(name, "/"); !ok {
		return "", "", nil, false
	}
	units = map[string]float64{}
	for i := 2; i+1 < len(fields); i += 2 {
		v, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return "", "", nil, false
		}
		units[fields[i+1]] = v
	}
	return hook, state, units, true
}
