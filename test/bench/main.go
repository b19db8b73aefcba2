// Command bench compares a grafted directory with the native file system below
// it and with other pass-through file systems, in one run, interleaved, and
// prints medians and ratios; and it measures how long a target stands still for
// a graft. `make bench` runs it as root.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

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
	flag.IntVar(&b.rounds, "rounds", 5, "interleaved rounds, three times as many for operations on names; the median counts")
	flag.StringVar(&b.dir, "dir", "", "where to measure (default: the folder for temporary files)")
	flag.StringVar(&b.only, "only", "", "measure only the rows whose name contains this; \"server\", \"pause\", \"nri\", \"policies\" and \"kernel\" are names too")
	flag.DurationVar(&b.runtime, "fio-runtime", time.Second, "length of one fio run")
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
	only       string
	state      string
	batch      int // of files with names of their own
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
	fmt.Printf("%s, %d processors, %s, load average %s; medians of %d interleaved rounds\n\n", release(), runtime.NumCPU(), fsName(b.dir), load(), b.rounds)
	if err := b.table(); err != nil {
		return err
	}
	if b.only == "" || strings.Contains("pause", b.only) {
		if err := b.pauses(); err != nil {
			return err
		}
	}
	if b.only == "" || strings.Contains("nri", b.only) {
		if err := b.nriLatency(); err != nil {
			return err
		}
	}
	if b.only == "" || strings.Contains("policies", b.only) {
		if err := policiesCost(); err != nil {
			return err
		}
	}
	if b.only == "" || strings.Contains("kernel", b.only) {
		return kernelCost()
	}
	return nil
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "Linux"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}

func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}

func fsName(dir string) string {
	out, err := exec.Command("stat", "-f", "-c", "%T", dir).Output()
	if err != nil {
		return "unknown file system"
	}
	return strings.TrimSpace(string(out))
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
