package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"golang.org/x/sys/unix"
)

// pauseRow is a target that is grafted and ungrafted.
type pauseRow struct {
	name  string
	start func(dir string) (pauseTarget, error)
	// moved is the least number of objects that a graft has to move.
	moved int
	// total and longest are goals in ms: for all processes together, and for each of them. Negative: none.
	total, longest float64
}

// pauseTarget is a process tree that runs.
type pauseTarget interface {
	pid() string
	end()
}

func (b *bench) pauseRows() []pauseRow {
	hold := func(files, threads int) func(string) (pauseTarget, error) {
		return func(dir string) (pauseTarget, error) { return b.holdWith(dir, files, threads) }
	}
	return []pauseRow{
		{"no objects", hold(0, 1), 0, 0, -1},
		{"10 files", hold(10, 1), 10, -1, -1},
		{"100 files", hold(100, 1), 100, -1, -1},
		{"1,000 files", hold(1000, 1), 1000, 15, -1},
		{"100 files, 64 threads", hold(100, 64), 100, 15, -1},
		{"5,000 files, 200 threads", hold(5000, 200), 5000, -1, -1},
		{"10,000 files, 200 threads", func(dir string) (pauseTarget, error) {
			if err := descriptors(21000); err != nil {
				return nil, err
			}
			return b.holdWith(dir, 10000, 200)
		}, 10000, -1, -1},
		{"PostgreSQL, 50 backends", b.postgres, 50, 60, 15},
	}
}

// pauses says how long targets stand still.
func (b *bench) pauses() error {
	fmt.Println()
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(t, "target\tpause graft\tpause ungraft\tlongest of a process\tprepare graft\tobjects\tprocesses\tremote calls\ta call\t") // tabwriter keeps errors for Flush
	var verdicts []string
	var small, large float64 // pauses of 10 and 1,000 files
	for i, row := range b.pauseRows() {
		f, err := b.pause(row, filepath.Join(b.dir, fmt.Sprintf("pause%d", i)))
		var left *leftOut
		if errors.As(err, &left) {
			verdicts = append(verdicts, fmt.Sprintf("%s is left out: %v", row.name, err))
			continue
		}
		if err != nil {
			return fmt.Errorf("pause of %s: %w", row.name, err)
		}
		_, _ = fmt.Fprintf(t, "%s\t%.1f ms\t%.1f ms\t%.1f ms\t%.1f ms\t%d\t%d\t%d\t%.1f µs\t\n", row.name,
			median(f.there), median(f.back), max(median(f.longestThere), median(f.longestBack)), median(f.prepare), f.objects, f.processes, f.calls, median(f.call))
		for _, g := range []struct {
			what string
			goal float64
			got  float64
		}{
			{"pause to graft", row.total, median(f.there)}, {"pause to ungraft", row.total, median(f.back)},
			{"pause of each process, graft", row.longest, median(f.longestThere)}, {"pause of each process, ungraft", row.longest, median(f.longestBack)},
		} {
			switch {
			case g.goal == 0:
				verdicts = append(verdicts, fmt.Sprintf("%s: %s 0: %s (%.1f ms)", row.name, g.what, yes(g.got == 0), g.got))
			case g.goal > 0:
				verdicts = append(verdicts, fmt.Sprintf("%s: %s < %.0f ms: %s (%.1f ms)", row.name, g.what, g.goal, yes(g.got < g.goal), g.got))
			}
		}
		switch row.name {
		case "10 files":
			small = median(f.there)
		case "1,000 files":
			large = median(f.there)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("\neach file more stops a target %.1f µs longer for a graft (the rows of 10 and 1,000 files)\n\ngoals:\n", (large-small)*1000/990)
	for _, v := range verdicts {
		fmt.Println("  " + v)
	}
	return nil
}

// descriptors says whether a process may have so many: the swapper and the server
// need two for each file, and take what the hard limit gives (setrlimit(2)).
func descriptors(n uint64) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	if l.Max < n {
		return &leftOut{fmt.Sprintf("it takes %d descriptors, and the hard limit is %d (ulimit -Hn)", n, l.Max)}
	}
	return nil
}

// leftOut is a target that this machine cannot run.
type leftOut struct{ reason string }

func (l *leftOut) Error() string { return l.reason }

// figures of one target, ms.
type figures struct {
	there, back, longestThere, longestBack, prepare []float64
	call                                            []float64 // µs of the exchange for each system call in the target
	objects, processes, calls                       int       // of the last graft
}

// pause grafts and ungrafts one target round by round.
func (b *bench) pause(row pauseRow, dir string) (figures, error) {
	var f figures
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return f, err
	}
	target, err := row.start(dir)
	if err != nil {
		return f, err
	}
	defer target.end()
	for range b.rounds {
		g, err := b.graft("inject", "--pid", target.pid(), "--path", dir, "-o", "json", "io error=EIO op=fsync p=0 ttl=1h")
		if err != nil {
			return f, err
		}
		if len(g.Report.Swapped) < row.moved {
			return f, fmt.Errorf("%d of %d objects moved", len(g.Report.Swapped), row.moved)
		}
		f.objects, f.processes, f.calls = len(g.Report.Swapped), len(g.Report.Stopped), g.Report.RemoteCalls
		f.call = append(f.call, 1000*ms(g.Report.Phases.Exchange)/float64(max(g.Report.RemoteCalls, 1)))
		if g.Report.RemoteCalls == 0 {
			f.call[len(f.call)-1] = 0
		}
		u, err := b.graft("recover", g.ID, "-o", "json")
		if err != nil {
			return f, err
		}
		f.there, f.back, f.prepare = append(f.there, g.PauseMs), append(f.back, u.PauseMs), append(f.prepare, ms(g.Report.Prepare))
		f.longestThere, f.longestBack = append(f.longestThere, ms(g.Report.Longest)), append(f.longestBack, ms(u.Report.Longest))
	}
	return f, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

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
