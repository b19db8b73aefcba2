package main

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"text/tabwriter"
)

// table measures all rows at all places in turn, and prints medians.
func (b *bench) table() (err error) {
	rows := b.rows()
	if b.only != "" {
		var some []row
		for _, r := range rows {
			if strings.Contains(r.name, b.only) {
				some = append(some, r)
			}
		}
		rows = some
	}
	withCost := b.only == "" || strings.Contains("server", b.only)
	if len(rows) == 0 && !withCost {
		return nil
	}
	places, err := b.places()
	defer func() {
		for _, p := range places {
			p.end()
		}
	}()
	if err != nil {
		return err
	}
	c := newCost()
	if withCost {
		if err := c.atRest(places); err != nil {
			return err
		}
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, p := range places {
		_, _ = fmt.Fprintf(t, "\t%s", p.name) // tabwriter keeps errors for Flush
	}
	_, _ = fmt.Fprint(t, "\t\n")
	var verdicts []string
	for _, r := range rows {
		got, err := b.measure(r, places)
		if err != nil {
			return err
		}
		unit := "µs"
		if r.higher {
			unit = "MB/s"
		}
		_, _ = fmt.Fprintf(t, "%s, %s", r.name, unit)
		for _, p := range places {
			_, _ = fmt.Fprintf(t, "\t%s", short(got[p.name]))
		}
		_, _ = fmt.Fprint(t, "\t\n")
		for _, p := range places {
			cell := ""
			if p != places[0] {
				cell = fmt.Sprintf("%.2f×", got[p.name]/got[places[0].name])
			}
			_, _ = fmt.Fprintf(t, "\t%s", cell)
		}
		_, _ = fmt.Fprint(t, "\t\n")
		verdicts = append(verdicts, r.verdicts(got)...)
	}
	if withCost {
		if err := c.atEnd(places); err != nil {
			return err
		}
		for _, l := range []struct {
			name string
			of   map[string]float64
		}{
			{"server's RSS, idle, MiB", c.rss},
			{fmt.Sprintf("with %d open files", openFiles), c.rssOpen},
			{"after these rows", c.rssEnd},
			{fmt.Sprintf("server's CPU, idle %s, ms", idleTime), c.cpu},
		} {
			_, _ = fmt.Fprint(t, l.name)
			for _, p := range places {
				cell := ""
				if len(p.servers) > 0 {
					cell = short(l.of[p.name])
				}
				_, _ = fmt.Fprintf(t, "\t%s", cell)
			}
			_, _ = fmt.Fprint(t, "\t\n")
		}
		verdicts = append(verdicts,
			fmt.Sprintf("idle CPU of the server 0: %s (%s ms)", yes(c.cpu["idle"]+c.cpu["p=0"] == 0), short(c.cpu["idle"]+c.cpu["p=0"])),
			fmt.Sprintf("server under 25 MiB: %s (%s)", yes(c.rss["idle"] < 25), short(c.rss["idle"])))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Println("\n" + legend + "\n\ngoals:")
	for _, v := range verdicts {
		fmt.Println("  " + v)
	}
	return nil
}

const legend = `native: the directory itself. idle: our layer with a rule for another path. p=0: our layer with a rule that matches each read and write
and never fires. Below each figure: its ratio to native; more is better for MB/s, less for µs per operation.`

// measure runs a row at each place in turn, round by round.
func (b *bench) measure(r row, places []*place) (map[string]float64, error) {
	got := map[string][]float64{}
	rounds := b.rounds
	if !r.higher {
		rounds *= 3 // these are short
	}
	for range rounds {
		for _, p := range places {
			v, err := r.run(p)
			if err != nil {
				return nil, fmt.Errorf("%s on %s: %w", r.name, p.name, err)
			}
			got[p.name] = append(got[p.name], v)
		}
	}
	out := map[string]float64{}
	for name, v := range got {
		out[name] = median(v)
	}
	return out, nil
}

// verdicts say whether the goals of a row are reached.
func (r row) verdicts(got map[string]float64) (out []string) {
	for _, g := range r.goals {
		if got[g.than] == 0 {
			continue // a peer that is not here
		}
		ratio := got[g.column] / got[g.than]
		sign, reached := "≤", ratio <= g.ratio
		if r.higher {
			sign, reached = "≥", ratio >= g.ratio
		}
		out = append(out, fmt.Sprintf("%s: %s %s %.3g× %s: %s (%.3g×)", r.name, g.column, sign, g.ratio, g.than, yes(reached), ratio))
	}
	return out
}

func yes(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

// short prints three digits, as a person would.
func short(v float64) string {
	switch {
	case v >= 100 || v == 0:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func median(v []float64) float64 {
	s := append([]float64{}, v...)
	sort.Float64s(s)
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
