package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/faultgraft/faultgraft/plugin/keeper"
)

// pauses grafts and ungrafts targets with 10, 100 and 1,000 open files.
func (b *bench) pauses() error {
	fmt.Println()
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(t, "open files\tpause graft\tpause ungraft\tprepare graft\t") // tabwriter keeps errors for Flush
	for _, n := range []int{10, 100, 1000} {
		dir := filepath.Join(b.dir, fmt.Sprintf("pause%d", n))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		h, err := b.hold(dir, n)
		if err != nil {
			return err
		}
		var there, back, prepare []float64
		for range b.rounds {
			g, err := b.graft("inject", "--pid", h.pid(), "--path", dir, "-o", "json", "io error=EIO op=fsync p=0 ttl=1h")
			if err != nil {
				return err
			}
			if len(g.Report.Swapped) < n {
				return fmt.Errorf("%d of %d files moved", len(g.Report.Swapped), n)
			}
			u, err := b.graft("recover", g.ID, "-o", "json")
			if err != nil {
				return err
			}
			there, back, prepare = append(there, g.PauseMs), append(back, u.PauseMs), append(prepare, float64(g.Report.Prepare)/1e6)
		}
		h.end()
		_, _ = fmt.Fprintf(t, "%d\t%.1f ms\t%.1f ms\t%.1f ms\t\n", n, median(there), median(back), median(prepare))
	}
	return t.Flush()
}

func (b *bench) graft(args ...string) (keeper.Graft, error) {
	out, err := b.command(args...)
	if err != nil {
		return keeper.Graft{}, err
	}
	var g []keeper.Graft
	if err := json.Unmarshal([]byte(out), &g); err != nil || len(g) != 1 || g[0].Report == nil {
		return keeper.Graft{}, fmt.Errorf("%v: answer %q: %w", args, out, err)
	}
	return g[0], nil
}
