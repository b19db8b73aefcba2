// Command soak has PostgreSQL, Redis and a program that knows what must come of
// its calls work in containers of the private lab, while layers come and go over
// their files, rules and policies change, and the processes of faultgraft are
// killed in the middle of it. It checks all along, and thoroughly at checkpoints,
// that the containers noticed nothing but the faults that were asked for, and
// that nothing is left.
//
//	make soak HOURS=8
//	make soak HOURS=1 SOAK="-seed 7 -v"
//
// The same seed draws the same steps. The exit status says whether all held.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

// options of one soak.
type options struct {
	// length is how long steps are done; what is begun then is ended, checked and taken down.
	length time.Duration
	// checkpoint is how long clients work between two thorough checks.
	checkpoint time.Duration
	seed       uint64
	// without are kinds of steps that are left out; steps, if there are some, those that are not.
	without, steps []string
	// takeover: servers are killed too, and their layers must go on.
	takeover bool
	verbose  bool
	// only are the containers to have, by name.
	only []string
}

func main() {
	var o options
	var hours float64
	var without, only, steps string
	flag.Float64Var(&hours, "hours", 1, "how long, in hours")
	flag.DurationVar(&o.checkpoint, "checkpoint", 4*time.Minute, "how long clients work between two thorough checks")
	flag.Uint64Var(&o.seed, "seed", 0, "draw the steps that were drawn from this seed; 0: take a new one")
	flag.StringVar(&without, "without", "", "leave out these kinds of steps, with commas in between: "+strings.Join(kindNames(), ", "))
	flag.StringVar(&steps, "steps", "", "have these kinds of steps and no other")
	flag.StringVar(&only, "only", "", "the containers to have: postgres, redis, recorder (default: all)")
	flag.BoolVar(&o.takeover, "takeover", true, "kill servers too, whose layers must then go on")
	flag.BoolVar(&o.verbose, "v", false, "print each step")
	flag.Parse()
	o.length = time.Duration(hours * float64(time.Hour))
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano()) % 1e9
	}
	o.without, o.only, o.steps = list(without), list(only), list(steps)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func run(ctx context.Context, o options) (err error) {
	if !o.takeover {
		o.without = append(o.without, needTakeover...)
	}
	for _, k := range slices.Concat(o.without, o.steps) {
		if kindOf(k) == nil {
			return fmt.Errorf("no kind of step %q: there are %s", k, strings.Join(kindNames(), ", "))
		}
	}
	if len(o.steps) > 0 {
		o.without = append(o.without, slices.DeleteFunc(kindNames(), func(k string) bool { return slices.Contains(o.steps, k) })...)
	}
	fmt.Printf("soak: seed %d, %s\n", o.seed, o.length.Round(time.Second))
	l, err := lab.Up(ctx, lab.Options{Progress: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	if err := l.Databases(ctx); err != nil {
		return err
	}
	s, err := newSoak(l, o, os.Stdout)
	if err != nil {
		return err
	}
	return s.run(ctx)
}
