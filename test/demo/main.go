// Command demo shows faultgraft's main job on real containers, in three acts,
// and checks each step of them. Its exit status says whether all of it held.
//
// It runs in the private lab of contrib/lab, which it builds on first use, or,
// with CONTAINERD_ADDRESS and NERDCTL set, in the containerd of the machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/faultgraft/faultgraft/test/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is one performance.
type demo struct {
	lab    *lab.Lab
	dir    string // of this run, removed at its end
	failed int
	faults []event // of all acts, for the table at the end
}

func run(ctx context.Context) (err error) {
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		return fmt.Errorf("this machine has no FUSE for us: %w; load it with: modprobe fuse", err)
	} else if err := f.Close(); err != nil {
		return err
	}
	external, err := lab.ExternalFromEnv()
	if err != nil {
		return err
	}
	d := &demo{}
	say("Setting up containerd, NRI and faultgraft.")
	if d.lab, err = lab.Up(ctx, lab.Options{Progress: os.Stderr, External: external}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.lab.Down()) }()
	if d.dir, err = os.MkdirTemp("", "faultgraft-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	if err := buildWriter(ctx, d.dir); err != nil {
		return err
	}
	if err := d.sweep(ctx); err != nil {
		return err
	}
	if external != nil {
		stop, err := d.startPlugin(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}

	before, err := d.lab.Snapshot()
	if err != nil {
		return err
	}
	for _, act := range []struct {
		title string
		play  func(context.Context) error
	}{
		{"Act 1: a container that already runs loses its fsync, and gets it back", d.actRunning},
		{"Act 2: a label on nerdctl run is enough", d.actLabel},
		{"Act 3: a Kubernetes pod is faulted before its first instruction", d.actPod},
	} {
		fmt.Printf("\n%s\n", act.title)
		limited, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err := act.play(limited)
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d.check(err == nil, "the act was played to its end%s", because(err))
	}
	d.printFaults()

	fmt.Printf("\nAfterwards\n")
	settle, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	left, err := d.lab.Settle(settle, before)
	d.check(err == nil && len(left) == 0, "processes and mounts are as before%s", because(err))
	for _, l := range left {
		fmt.Println("         " + l)
	}
	grafts, err := d.grafts(ctx)
	d.check(err == nil && len(grafts) == 0, "faultgraft ps lists no graft%s", because(err))
	if d.failed > 0 {
		return fmt.Errorf("%d checks failed", d.failed)
	}
	say("\nAll of it held.")
	return nil
}

// buildWriter makes the program that acts as target; static, because the image has no libc.
func buildWriter(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "bin", "writer"), "./test/demo/writer")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the demo's writer: %w\n%s", err, msg)
	}
	return nil
}

// The containers of nerdctl.
const (
	writerName = "demo-writer"
	labelName  = "demo-label"
)

// sweep removes what a run that was killed left behind.
func (d *demo) sweep(ctx context.Context) error {
	for _, name := range []string{writerName, labelName} {
		if out, err := d.lab.Nerdctl(ctx, "ps", "-aq", "--filter", "name=^"+name+"$"); err != nil {
			return err
		} else if out == "" {
			continue
		}
		if err := d.removeContainer(ctx, name); err != nil {
			return err
		}
	}
	return d.lab.RemovePods(ctx, podLabel, "true")
}

// startPlugin runs the agent by hand, where containerd was not configured to
// launch it and nobody else runs it.
func (d *demo) startPlugin(ctx context.Context) (stop func() error, err error) {
	const socket = "/run/faultgraft/daemon.sock"
	if c, err := net.Dial("unix", socket); err == nil {
		return c.Close, nil
	}
	config := filepath.Join(d.dir, "config.yaml")
	if err := os.WriteFile(config, []byte("labels: {namespaces: [\"*\"]}\n"), 0o600); err != nil {
		return nil, err
	}
	cmd, err := d.lab.FaultgraftCommand(context.WithoutCancel(ctx), "plugin", "--config", config)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(d.dir, "plugin.log"))
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	err = errors.Join(cmd.Start(), log.Close())
	if err != nil {
		return nil, fmt.Errorf("faultgraft plugin: %w", err)
	}
	stop = func() error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		return cmd.Wait()
	}
	ready := func(ctx context.Context) (bool, error) {
		_, err := os.Stat(socket)
		return err == nil, nil
	}
	if err := await(ctx, 10*time.Second, "faultgraft plugin to listen", ready); err != nil {
		text, _ := os.ReadFile(log.Name()) // only to say more
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, text), stop())
	}
	return stop, nil
}
