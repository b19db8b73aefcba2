package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/plugin"
	"github.com/faultgraft/faultgraft/plugin/keeper"
	"github.com/faultgraft/faultgraft/policy"
)

func newTopCommand(g *global) *cobra.Command {
	var frames int
	var once bool
	interval := 2 * time.Second
	c := &cobra.Command{
		Use:   "top",
		Short: "Show what is injected now, as a table that is kept up to date",
		Long: `Show the faults of this node as a table that is kept up to date: the targets, what was
asked of them and by whom, how often each rule fires in a second, how often it has fired,
and how long it has made operations wait. Ctrl-C ends it. Where standard output is no
terminal the tables follow each other.

The first table shows the rate since each fault began, the others that since the table before.`,
		Example: `  faultgraft top
  faultgraft top --once
  faultgraft top -n 10 --interval 1s > top.txt`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond {
				return fmt.Errorf("--interval %v: at least 100ms", interval)
			}
			if frames < 0 {
				return fmt.Errorf("-n %d: give a number of tables; 0 is without an end", frames)
			}
			if once {
				frames = 1
			}
			return g.top(c.Context(), c.OutOrStdout(), frames, interval)
		},
	}
	f := c.Flags()
	f.IntVarP(&frames, "frames", "n", 0, "end after that many tables; 0: go on")
	f.BoolVar(&once, "once", false, "one table, as -n 1")
	f.DurationVar(&interval, "interval", interval, "time between two tables")
	return c
}

// top prints tables until there were enough of them, or ctx ends.
func (g *global) top(ctx context.Context, w io.Writer, frames int, interval time.Duration) error {
	size := terminalOf(w)
	var before *topFrame
	for n := 1; ; n++ {
		now, err := g.topFrame(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil // ended by whoever looks at it
			}
			return err
		}
		var b bytes.Buffer
		rows, columns := size()
		now.print(&b, before, rows, columns)
		if rows > 0 && frames != 1 {
			b = *bytes.NewBufferString("\x1b[H\x1b[J" + b.String()) // to the top left, and clear from there: console_codes(4)
		} else if n > 1 {
			b = *bytes.NewBufferString("\n" + b.String())
		}
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
		if n == frames {
			return nil
		}
		before = now
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
	}
}

// terminalOf gives a function that asks for the size of a terminal; 0 rows: w is none.
func terminalOf(w io.Writer) func() (rows, columns int) {
	f, ok := w.(*os.File)
	return func() (int, int) {
		if !ok {
			return 0, 0
		}
		size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			return 0, 0 // ENOTTY
		}
		return int(size.Row), int(size.Col)
	}
}

// topFrame is what one table shows.
type topFrame struct {
	at       time.Time
	grafts   []keeper.Graft // kernel faults and containers that were refused too
	known    int            // containers
	stopped  string
	warnings []string
}

// topFrame asks the agent, the keepers and the kernel faults.
func (g *global) topFrame(ctx context.Context) (*topFrame, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client := plugin.NewClient(g.stateDir)
	containers, warning, err := client.Containers(ctx)
	if errors.Is(err, plugin.ErrNoAgent) {
		return nil, fmt.Errorf("%w; faultgraft ps lists what is grafted without one", err)
	}
	if err != nil {
		return nil, err
	}
	f := &topFrame{at: time.Now(), known: len(containers)}
	warn := func(err error) {
		if err != nil {
			f.warnings = append(f.warnings, err.Error())
		}
	}
	if warning != "" {
		f.warnings = append(f.warnings, warning)
	}
	grafts, err := g.keepers().List(ctx)
	warn(err)
	f.grafts = grafts
	faults, err := g.kernelFaults(ctx)
	warn(err)
	for _, k := range faults {
		f.grafts = append(f.grafts, asGraft(k))
	}
	refused, err := g.refused(ctx)
	warn(err)
	f.grafts = append(f.grafts, refused...)
	stopped, err := keeper.ReadStopped(g.stateDir)
	warn(err)
	if stopped != nil {
		f.stopped = fmt.Sprintf("STOPPED since %s: %s; faultgraft release lifts it", stopped.Since.Local().Format("15:04:05"), stopped.Reason)
	}
	return f, nil
}

// hits are how often a rule has fired and what it has added, by all that tells it apart.
type topKey struct{ graft, rule string }

type topHits struct {
	n     uint64
	delay time.Duration
}

func (f *topFrame) hits() map[topKey]topHits {
	out := map[topKey]topHits{}
	for _, g := range f.grafts {
		for _, r := range g.Rules {
			k := topKey{g.ID, r.FullName()}
			h := out[k]
			h.n += r.Fired
			out[k] = h
		}
		for _, c := range g.Faults {
			k := topKey{g.ID, policy.FullName(c.Policy, c.Rule)}
			h := out[k]
			h.delay += c.DelayNs
			out[k] = h
		}
	}
	return out
}

// print writes the table; rows and columns are those of the terminal, 0: no limit.
func (f *topFrame) print(w io.Writer, before *topFrame, rows, columns int) {
	now := f.hits()
	var was map[topKey]topHits
	if before != nil {
		was = before.hits()
	}
	type line struct {
		cells []string
		rate  float64
	}
	var lines []line
	active, total := 0, 0.0
	for _, g := range f.grafts {
		if g.State == keeper.StateActive {
			active++
		}
		name, path := displayName(g.Target), g.Path
		if path == "" {
			path = "-"
		}
		if len(g.Rules) == 0 {
			lines = append(lines, line{cells: []string{name, path, string(g.State), "-", "-", "-", "-", "-", g.Reason}})
		}
		for _, r := range g.Rules {
			k := topKey{g.ID, r.FullName()}
			since, from := g.Since, topHits{}
			if old, ok := was[k]; ok && before != nil {
				since, from = before.at, old
			}
			rate := 0.0
			if d := f.at.Sub(since).Seconds(); d > 0 && now[k].n >= from.n {
				rate = float64(now[k].n-from.n) / d
			}
			total += rate
			left := "ended"
			if d := r.Expires.Sub(f.at); d > 0 && !r.Expired {
				left = d.Round(time.Second).String()
			}
			origin := string(g.Origin)
			if r.Policy != "" {
				origin = "policy " + r.Policy
			}
			added := "-"
			if d := now[k].delay; d > 0 {
				added = d.Round(time.Millisecond).String()
			}
			lines = append(lines, line{[]string{name, path, string(g.State), origin, r.Name, fmt.Sprintf("%.1f", rate), fmt.Sprint(now[k].n), added, left}, rate})
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { // the busiest first
		switch {
		case a.rate > b.rate:
			return -1
		case a.rate < b.rate:
			return 1
		}
		return 0
	})
	head := []string{fmt.Sprintf("faultgraft  %s  %s known, %s in force, %.1f faults/s", f.at.Local().Format("15:04:05"), count(f.known, "container"), count(active, "graft"), total)}
	if f.stopped != "" {
		head = append(head, f.stopped)
	}
	for _, warning := range f.warnings {
		head = append(head, "incomplete: "+strings.ReplaceAll(warning, "\n", "; "))
	}
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "TARGET\tPATH\tSTATE\tFROM\tRULE\tHITS/S\tHITS\tADDED\tENDS IN") // tabwriter keeps the error for Flush, which a buffer does not give
	for _, l := range lines {
		_, _ = fmt.Fprintln(t, strings.Join(l.cells, "\t"))
	}
	_ = t.Flush()
	all := append(head, strings.Split(strings.TrimRight(b.String(), "\n"), "\n")...)
	if rows > 1 && len(all) > rows-1 {
		left := len(all) - (rows - 2)
		all = append(all[:rows-2], fmt.Sprintf("and %d more", left))
	}
	for _, l := range all {
		l = strings.Map(func(r rune) rune { // names and reasons come from labels
			if unicode.IsControl(r) {
				return '?'
			}
			return r
		}, l)
		if r := []rune(l); columns > 0 && len(r) > columns {
			l = string(r[:columns])
		}
		_, _ = fmt.Fprintln(w, l)
	}
}
