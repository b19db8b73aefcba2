package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// say narrates.
func say(format string, a ...any) { fmt.Printf(format+"\n", a...) }

// check states what must hold, and notes when it does not.
func (d *demo) check(held bool, format string, a ...any) {
	word := "ok"
	if !held {
		word = "FAILED"
		d.failed++
	}
	fmt.Printf("  %-6s %s\n", word, fmt.Sprintf(format, a...))
}

// because ends a sentence with the reason, if there is one.
func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// await asks until done says so; limit bounds it.
func await(ctx context.Context, limit time.Duration, what string, done func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var err error
	for {
		ok, e := done(ctx)
		if ok && e == nil {
			return nil
		}
		if ctx.Err() == nil {
			err = e // else the time was up while it asked, which says nothing
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s%s", limit, what, because(err))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// printFaults sums the log of injected faults up.
func (d *demo) printFaults() {
	type row struct{ container, rule, op, path, errno string }
	count := map[row]int{}
	for _, e := range d.faults {
		count[row{e.container(), e.Rule, e.Op, e.Path, e.Errno}]++
	}
	fmt.Printf("\nWhat was injected (faultgraft events)\n")
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	line := func(a ...any) {
		_, _ = fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%v\n", a...) // tabwriter keeps the error for Flush
	}
	line("CONTAINER", "RULE", "OP", "PATH", "ERROR", "TIMES")
	for _, r := range slices.SortedFunc(maps.Keys(count), func(a, b row) int {
		return cmp.Or(cmp.Compare(a.container, b.container), cmp.Compare(a.path, b.path), cmp.Compare(a.op, b.op))
	}) {
		line(r.container, r.rule, r.op, r.path, r.errno, count[r])
	}
	if err := w.Flush(); err != nil {
		d.check(false, "the table is printed%s", because(err))
	}
}
