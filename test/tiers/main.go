// Command tiers runs the tests of this module tier by tier, says which tiers
// ran and which were skipped and why, and ends with the line
//
//	N passed, N failed, N skipped
//
// A test that failed is run once more, alone; one that passes then counts as
// passed and is named in a line that begins with FLAKY.
// Arguments are the names of tiers; without any, all run. With CI=true a
// skipped tier counts as a failure.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tiers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, wanted []string) error {
	for _, w := range wanted {
		if !slices.ContainsFunc(tiers, func(t tier) bool { return t.name == w }) {
			return fmt.Errorf("no tier %q: the tiers are %s", w, tierNames())
		}
	}
	packages, err := listPackages(ctx)
	if err != nil {
		return err
	}
	byTier := assign(packages)

	var total counts
	var summary, flaky []string
	failed := false
	for _, t := range tiers {
		if len(wanted) > 0 && !slices.Contains(wanted, t.name) {
			continue
		}
		if len(byTier[t.name]) == 0 {
			summary = append(summary, fmt.Sprintf("  %-5s nothing to run: no package of this tier has tests", t.name))
			continue
		}
		if reason := t.unable(ctx); reason != "" {
			summary = append(summary, fmt.Sprintf("  %-5s SKIPPED: %s", t.name, reason))
			failed = failed || os.Getenv("CI") == "true"
			continue
		}
		fmt.Printf("== tier %s: %s\n", t.name, t.what)
		start := time.Now()
		r, note, err := t.run(ctx, t, byTier[t.name], os.Stdout)
		if err != nil {
			return fmt.Errorf("tier %s: %w", t.name, err)
		}
		unsteady, err := t.repeat(ctx, &r, os.Stdout)
		if err != nil {
			return fmt.Errorf("tier %s: %w", t.name, err)
		}
		flaky = append(flaky, unsteady...)
		c := r.counts
		summary = append(summary, fmt.Sprintf("  %-5s ran: %d passed, %d failed, %d skipped in %d packages%s, %s",
			t.name, c.passed, c.failed, c.skipped, len(byTier[t.name]), note, time.Since(start).Round(time.Second)))
		total.add(c)
	}
	fmt.Printf("== tiers\n%s\n", strings.Join(summary, "\n"))
	if failed {
		fmt.Println("a tier was skipped, and CI=true forbids that")
	}
	for _, f := range flaky {
		fmt.Printf("FLAKY: %s: failed (see above), and passed when it was run again alone. That is a defect of it or of what it tests\n", f)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", total.passed, total.failed, total.skipped)
	if total.failed > 0 {
		return fmt.Errorf("%d tests failed", total.failed)
	}
	if failed {
		return fmt.Errorf("a tier was skipped")
	}
	return nil
}
