// Package lab drives a real containerd for tests and for the demo: the private
// one of contrib/lab (its own mount and network namespace, NRI on, faultgraft
// registered as a plugin), or the machine's own when the caller names it.
package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// What the lab's images and its containerd namespace are called.
const (
	// Image is a busybox with a shell and the usual commands.
	Image = "lab.local/busybox:1"
	// PostgresImage runs a PostgreSQL over /data/db, RedisImage has redis-server; see Databases.
	PostgresImage = "lab.local/postgres:1"
	RedisImage    = "lab.local/redis:1"
	// DatabaseUID is the user and the group as whom both run.
	DatabaseUID = 999
	// Namespace is the containerd namespace that nerdctl and ctr use in the private lab.
	Namespace = "faultgraft-lab"
)

// Options say which containerd Up brings up. The zero value is the private lab
// with faultgraft built from this tree.
type Options struct {
	// Dir is the private lab's folder; default $FAULTGRAFT_LAB, then faultgraft/lab in the user's cache folder.
	Dir string
	// Binary is the faultgraft to install; default $FAULTGRAFT_BIN, then ./cmd/faultgraft of this tree, built now.
	Binary string
	// Progress takes what lab.sh says while it builds; nil discards it.
	Progress io.Writer
	// Env are variables for lab.sh, as in FAULTGRAFT_LAB_CGROUP=v2.
	Env []string
	// External, if set, names a containerd of the machine to use instead.
	External *External
}

// External is a containerd that somebody else runs. It is used, never started,
// configured or stopped.
type External struct {
	// Address is containerd's socket, as in /run/containerd/containerd.sock.
	Address string
	// Nerdctl is the nerdctl command.
	Nerdctl string
}

// ExternalFromEnv reads CONTAINERD_ADDRESS and NERDCTL; nil when neither is set.
func ExternalFromEnv() (*External, error) {
	a, n := os.Getenv("CONTAINERD_ADDRESS"), os.Getenv("NERDCTL")
	switch {
	case a == "" && n == "":
		return nil, nil
	case a == "" || n == "":
		return nil, errors.New("set both CONTAINERD_ADDRESS and NERDCTL to use the machine's own containerd, or neither for a private one")
	}
	return &External{Address: a, Nerdctl: n}, nil
}

// Lab is a containerd that answers. One process at a time has a private lab:
// others wait in Up until Down.
type Lab struct {
	dir     string
	tree    string
	binary  string
	started bool // by this Lab, so Down stops it
	lock    *os.File
	opts    Options
}

// Up starts the private lab, or takes the one that runs, and waits until it can
// run containers. What is not built yet is built: minutes the first time.
func Up(ctx context.Context, o Options) (l *Lab, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab needs root: it makes namespaces, mounts and cgroups")
	}
	l = &Lab{opts: o}
	if l.tree, err = treeRoot(); err != nil {
		return nil, err
	}
	if l.dir, err = labDir(o.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the lab's folder: %w", err)
	}
	lock, err := lockFile(ctx, filepath.Join(l.dir, "test.lock"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	l.lock = lock
	if l.binary, err = l.build(ctx); err != nil {
		return nil, err
	}
	if o.External != nil {
		if err := l.useExternal(ctx); err != nil {
			return nil, err
		}
		return l, nil
	}
	_, perr := l.PID()
	l.started = perr != nil
	if err := l.script(ctx, "up"); err != nil {
		return nil, err
	}
	if !l.started && len(o.Env) > 0 { // it runs with another configuration
		if err := l.Restart(ctx); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// Down stops the lab if this Lab started it, and lets the next one have it. A
// lab that ran before Up is left running.
func (l *Lab) Down() error {
	var err error
	if l.started {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		err = l.script(ctx, "down")
	} else if len(l.opts.Env) > 0 && l.Private() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		l.opts.Env = nil
		err = l.Restart(ctx)
	}
	return errors.Join(err, l.lock.Close())
}

// Restart stops the private lab's containerd and starts it again under the
// containers that run.
func (l *Lab) Restart(ctx context.Context) error { return l.script(ctx, "restart") }

// Databases makes PostgresImage and RedisImage, which takes seconds the first
// time, and loads them into the lab.
func (l *Lab) Databases(ctx context.Context) error {
	if err := l.script(ctx, "databases"); err != nil {
		return err
	}
	if l.Private() {
		return nil // the script loaded them
	}
	for _, name := range []string{"postgres", "redis"} {
		if _, err := l.Nerdctl(ctx, "load", "-q", "-i", filepath.Join(l.dir, "img", name+".tar")); err != nil {
			return fmt.Errorf("load the image of %s: %w", name, err)
		}
	}
	return nil
}

// Dir is the lab's folder on the machine; Log and pod logs are below it.
func (l *Lab) Dir() string { return l.dir }

// Private says whether containerd is the lab's own, in namespaces of its own.
func (l *Lab) Private() bool { return l.opts.External == nil }

// Binary is the faultgraft binary in use.
func (l *Lab) Binary() string { return l.binary }

// PID is the private lab's containerd.
func (l *Lab) PID() (int, error) {
	pid, err := readPID(filepath.Join(l.dir, "run", "containerd.pid"))
	if err != nil {
		return 0, fmt.Errorf("the lab is down: %w", err)
	}
	if !isMember(l.source(), pid) {
		return 0, fmt.Errorf("the lab is down: process %d is not its containerd", pid)
	}
	return pid, nil
}

// Path translates a path inside the lab, such as /run/faultgraft/daemon.sock,
// to one that this process can open.
func (l *Lab) Path(inside string) (string, error) {
	if !l.Private() {
		return inside, nil
	}
	pid, err := l.PID()
	if err != nil {
		return "", err
	}
	return filepath.Join(fmt.Sprintf("/proc/%d/root", pid), inside), nil
}

// script runs a command of contrib/lab/lab.sh.
func (l *Lab) script(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(l.tree, "contrib", "lab", "lab.sh"), args...)
	cmd.Env = append(os.Environ(), "FAULTGRAFT_LAB="+l.dir, "FAULTGRAFT_BIN="+l.binary)
	cmd.Env = append(cmd.Env, l.opts.Env...)
	var tail tailWriter
	cmd.Stdout = io.Discard
	cmd.Stderr = &tail
	if p := l.opts.Progress; p != nil {
		cmd.Stdout, cmd.Stderr = p, io.MultiWriter(p, &tail)
	}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("lab.sh %s: %w: %s", strings.Join(args, " "), err, tail.String())
	}
	return nil
}

// build makes the faultgraft binary of this tree, unless the caller brought one.
func (l *Lab) build(ctx context.Context) (string, error) {
	if b := cmp.Or(l.opts.Binary, os.Getenv("FAULTGRAFT_BIN")); b != "" {
		return filepath.Abs(b)
	}
	out := filepath.Join(l.dir, "faultgraft.built")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", out, "./cmd/faultgraft")
	cmd.Dir = l.tree
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build faultgraft: %w\n%s", err, msg)
	}
	return out, nil
}
