// Command bench compares a grafted directory with the native file system below
// it, in one run, interleaved, and prints medians as ratios; and it measures
// how long a target stands still for a graft. `make bench` runs it as root.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/faultgraft/faultgraft/plugin/keeper"
	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "target-") {
		if err := target(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	b := &bench{}
	flag.StringVar(&b.faultgraft, "faultgraft", "bin/faultgraft", "the binary")
	flag.IntVar(&b.rounds, "rounds", 5, "interleaved rounds; the median counts")
	flag.StringVar(&b.dir, "dir", "", "where to measure (default: a temporary folder)")
	flag.DurationVar(&b.runtime, "fio-runtime", 2*time.Second, "length of one fio run")
	flag.Parse()
	if err := b.run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	faultgraft string
	rounds     int
	dir        string
	runtime    time.Duration
	state      string
}

func (b *bench) run() (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	if b.faultgraft, err = filepath.Abs(b.faultgraft); err != nil {
		return err
	}
	if _, err := os.Stat(b.faultgraft); err != nil {
		return fmt.Errorf("%w; run make build first", err)
	}
	if b.dir, err = os.MkdirTemp(b.dir, "faultgraft-bench-"); err != nil {
		return err
	}
	b.state = filepath.Join(b.dir, "state")
	defer func() {
		if err != nil {
			logs, _ := filepath.Glob(filepath.Join(b.state, "keepers", "*", "keeper.log")) // a bad pattern is impossible
			for _, l := range logs {
				text, _ := os.ReadFile(l)
				err = fmt.Errorf("%w\n%s", err, text)
			}
		}
		_, rerr := b.command("recover", "--all", "--purge")
		err = errors.Join(err, rerr, os.RemoveAll(b.dir))
	}()
	fmt.Printf("%s, %d processors, %s; medians of %d interleaved rounds\n\n", release(), runtime.NumCPU(), fsName(b.dir), b.rounds)
	if err := b.throughput(); err != nil {
		return err
	}
	return b.pauses()
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "Linux"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}

func fsName(dir string) string {
	out, err := exec.Command("stat", "-f", "-c", "%T", dir).Output()
	if err != nil {
		return "unknown file system"
	}
	return strings.TrimSpace(string(out))
}

// measure is one figure: bytes/s and ops/s are better when high, ns/op when low.
type measure struct {
	name   string
	higher bool
	run    func(dir string) (float64, error)
}

// throughput grafts one folder with a rule that matches nothing in it, one with
// a rule that matches all and fires never, and leaves one as it is.
func (b *bench) throughput() error {
	places := []string{"native", "idle", "matched"}
	for _, p := range places {
		if err := os.MkdirAll(filepath.Join(b.dir, p), 0o755); err != nil {
			return err
		}
	}
	holder, err := b.hold(filepath.Join(b.dir, "native"), 0)
	if err != nil {
		return err
	}
	defer holder.end()
	for p, rule := range map[string]string{
		"idle":    "io error=EIO op=data path=" + b.dir + "/idle/nothing/** ttl=1h",
		"matched": "io error=EIO op=data p=0 ttl=1h",
	} {
		if _, err := b.command("inject", "--pid", holder.pid(), "--path", filepath.Join(b.dir, p), rule); err != nil {
			return err
		}
	}
	measures := b.fio(holder)
	measures = append(measures, b.meta(holder)...)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(t, "\tnative\tno rule matches\trule with p=0\t") // tabwriter keeps errors for Flush
	for _, m := range measures {
		got := map[string][]float64{}
		for range b.rounds {
			for _, p := range places {
				v, err := m.run(filepath.Join(b.dir, p))
				if err != nil {
					return fmt.Errorf("%s on %s: %w", m.name, p, err)
				}
				got[p] = append(got[p], v)
			}
		}
		native := median(got["native"])
		unit := "µs"
		if m.higher {
			unit = "MB/s"
		}
		_, _ = fmt.Fprintf(t, "%s\t%.4g %s\t%.3g×\t%.3g×\t\n", m.name, native, unit, median(got["idle"])/native, median(got["matched"])/native)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Println("\nthroughput: higher is better, 1× is native; times (µs per operation): lower is better")
	return nil
}

func (b *bench) fio(h *holder) []measure {
	if _, err := exec.LookPath("fio"); err != nil {
		fmt.Println("fio is not installed: reads and writes are not measured (apt-get install fio)")
		return nil
	}
	var out []measure
	for _, j := range []struct{ name, rw, bs string }{
		{"sequential read 1 MiB", "read", "1M"}, {"sequential write 1 MiB", "write", "1M"},
		{"random read 4 KiB", "randread", "4k"}, {"random write 4 KiB", "randwrite", "4k"},
	} {
		out = append(out, measure{name: j.name, higher: true, run: func(dir string) (float64, error) {
			cmd := h.inside("fio", "--name=b", "--filename="+dir+"/fio", "--size=128M", "--ioengine=psync", "--rw="+j.rw, "--bs="+j.bs,
				"--time_based", "--runtime="+strconv.Itoa(int(b.runtime.Seconds())), "--randseed=1", "--output-format=json", "--fallocate=none",
				"--invalidate=0") // all read from a warm cache: what fio drops of the layer's file it would not drop of the one below
			text, err := cmd.Output()
			if err != nil {
				return 0, fmt.Errorf("fio: %w: %s", err, text)
			}
			var r struct {
				Jobs []struct {
					Read, Write struct {
						BW float64 `json:"bw_bytes"`
					}
				}
			}
			if err := json.Unmarshal(text, &r); err != nil || len(r.Jobs) == 0 {
				return 0, fmt.Errorf("fio's answer: %w", err)
			}
			return (r.Jobs[0].Read.BW + r.Jobs[0].Write.BW) / 1e6, nil
		}})
	}
	return out
}

func (b *bench) meta(h *holder) []measure {
	var out []measure
	for _, op := range []string{"create", "open", "stat", "unlink"} {
		name := map[string]string{"create": "create", "open": "open+read+close", "stat": "stat", "unlink": "unlink"}[op]
		out = append(out, measure{name: name, run: func(dir string) (float64, error) {
			text, err := h.inside("/proc/self/exe", "target-meta", op, dir).Output()
			if err != nil {
				return 0, err
			}
			return strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
		}})
	}
	return out
}

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

func (b *bench) command(args ...string) (string, error) {
	cmd := exec.Command(b.faultgraft, args...)
	cmd.Env = append(os.Environ(), "FAULTGRAFT_STATE="+b.state)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("faultgraft %s: %w: %s", args[0], err, said.String())
	}
	return string(out), err
}

func median(v []float64) float64 {
	s := append([]float64{}, v...)
	sort.Float64s(s)
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
